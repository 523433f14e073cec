// What the server's models are.

import { lossCurve } from './curve.js';
import { byId, el, languageOf } from './dom.js';
import { number, t } from './words.js';

export class Cards {
  constructor() {
    this.models = [];
  }

  render() {
    byId('cards').replaceChildren(...this.models.map(card));
  }
}

function card(model) {
  const words = { characters: 'vocabularyCharacters', subwords: 'vocabularySubwords' };
  const facts = [
    ['parameters', compact(model.parameters)],
    ['precision', model.precision],
    ['device', model.device],
    ['context', t('contextValue', number(model.context_length))],
    ['vocabulary', t(words[model.tokenizer] ?? 'contextValue', number(model.vocabulary))],
    ['step', model.step === null ? null : t('stepValue', number(model.step))],
    ['labels', model.labels?.join(' · ')],
    ['sampling', model.sampling && samplingOf(model.sampling)],
  ].filter(([, value]) => value);
  return el(
    'article',
    { class: 'panel' },
    el(
      'h2',
      {},
      el('span', { lang: languageOf(model.id) }, model.id),
      el('span', { class: 'badge' }, t(model.kind === 'chat' ? 'kindChat' : 'kindClassifier')),
    ),
    el(
      'dl',
      { class: 'facts' },
      facts.map(([key, value]) => el('div', {}, el('dt', {}, t(key)), el('dd', {}, value))),
    ),
    lossCurve(model.curve),
  );
}

const samplingOf = ({ temperature, top_p: p, top_k: k }) =>
  [`temperature ${temperature}`, `top_p ${p}`, k && `top_k ${k}`].filter(Boolean).join(' · ');

// 4.9 million as the language writes it; small numbers whole.
function compact(value) {
  const language = document.documentElement.lang;
  const short = { notation: 'compact', maximumSignificantDigits: 3 };
  return new Intl.NumberFormat(language, value < 10_000 ? {} : short).format(value);
}
