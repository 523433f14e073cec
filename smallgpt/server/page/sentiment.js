// Texts -> verdicts: probabilities of all labels, and how much each character weighs.

import * as api from './api.js';
import { byId, el, languageOf } from './dom.js';
import { percent, t } from './words.js';

const AT_ONCE = 16; // texts in a request that asks for weights
const LONG_AT_ONCE = 4;
const LONGEST_EXPLAINED = 4096; // characters that the server weighs
const LONGEST_TEXT = 32_768; // and that it takes
const STRONGEST = 5; // characters named for and against a verdict
const STEPS = 4; // strengths of a mark

export class Sentiment {
  constructor() {
    this.model = null; // the card of the classifier
    this.verdicts = []; // { text, label, probs, labels, explanation }
    this.controller = null;
    byId('texts-form').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#judge();
    });
    byId('stop-texts').addEventListener('click', () => this.controller?.abort());
    byId('texts').addEventListener('keydown', (event) => {
      if (event.key === 'Enter' && (event.ctrlKey || event.metaKey)) this.#judge();
    });
    byId('texts').addEventListener('paste', (event) => {
      const pasted = event.clipboardData?.getData('text/plain') ?? '';
      if (pasted.trim().includes('\n')) byId('by-line').checked = true;
    });
  }

  async #judge() {
    if (this.controller || !this.model) return;
    const typed = byId('texts').value;
    const texts = (byId('by-line').checked ? typed.split('\n') : [typed])
      .map((text) => text.trim())
      .filter(Boolean);
    const tooLong = texts.some((text) => text.length > LONGEST_TEXT);
    const problem = texts.length ? tooLong && 'textTooLong' : 'noText';
    this.#trouble(problem ? t(problem) : '');
    if (problem) return;
    this.controller = new AbortController();
    this.verdicts = [];
    this.render();
    try {
      await this.#all(texts, byId('explain').checked);
    } catch (error) {
      if (error instanceof api.Failure) this.#trouble(error.message);
      else if (error.name !== 'AbortError') throw error;
    } finally {
      this.controller = null;
      this.render();
      byId('texts-said').textContent = t('judged', this.verdicts.length);
    }
  }

  async #all(texts, explain) {
    const isLong = (text) => text.length > LONGEST_EXPLAINED;
    if (explain && texts.some(isLong)) this.#trouble(t('notExplained'));
    for (let at = 0; at < texts.length; at = this.verdicts.length) {
      const long = isLong(texts[at]);
      const next = texts.slice(at, at + (long ? LONG_AT_ONCE : AT_ONCE));
      const other = next.findIndex((text) => isLong(text) !== long);
      const input = other < 0 ? next : next.slice(0, other);
      byId('texts-said').textContent = t('judging', at, texts.length);
      const body = { model: this.model.id, input, explain: explain && !long };
      const { data, labels } = await api.classify(body, this.controller.signal);
      this.verdicts.push(...data.map((one, i) => ({ ...one, text: input[i], labels })));
      this.render();
    }
  }

  #trouble(text) {
    byId('texts-trouble').replaceChildren(...(text ? [el('p', { class: 'error' }, text)] : []));
  }

  render() {
    byId('verdicts').replaceChildren(...this.verdicts.map(verdictItem));
    byId('legend').hidden = !this.verdicts.some((verdict) => verdict.explanation);
    byId('judge').hidden = this.controller !== null;
    byId('stop-texts').hidden = this.controller === null;
  }
}

function verdictItem({ text, label, probs, labels, explanation }) {
  return el(
    'li',
    { class: 'panel verdict' },
    explanation
      ? marked(explanation)
      : el('p', { class: 'text', lang: languageOf(text) }, text),
    probabilityBars(labels, probs, label),
    explanation && strongest(explanation),
  );
}

// Bars for all labels, the likeliest first.
function probabilityBars(labels, probs, label) {
  const order = labels.map((_, i) => i).sort((a, b) => probs[b] - probs[a]);
  const lines = order.map((i) => bar(labels[i], probs[i], percent(probs[i]), labels[i] === label));
  return el('ul', { class: 'bars' }, lines);
}

// A line with a name, a bar for a share of 0 to 1, and what it stands for.
export function bar(name, share, words, strong = false) {
  const fill = el('span', { class: 'fill' });
  fill.style.width = `${100 * share}%`;
  return el(
    'li',
    { class: strong ? 'strong' : null },
    el('span', { class: 'name', lang: languageOf(name) }, name),
    el('span', { class: 'track', 'aria-hidden': 'true' }, fill),
    el('span', { class: 'value' }, words),
  );
}

// The text, its characters marked in colour and by a line below, stronger with their weight.
function marked(explanation) {
  const most = Math.max(...explanation.map(({ weight }) => Math.abs(weight)), 1e-9);
  const parts = explanation.map(({ text, weight }) => {
    const strength = Math.round((STEPS * Math.abs(weight)) / most);
    if (!strength) return text;
    const title = t('weight', text, signed(weight));
    const kind = weight > 0 ? 'for' : 'against';
    return el('mark', { class: kind, 'data-weight': strength, title }, text);
  });
  const text = explanation.map((part) => part.text).join('');
  return el('p', { class: 'text', lang: languageOf(text) }, parts);
}

// The characters that weigh most, in words.
function strongest(explanation) {
  const named = (sign) =>
    explanation
      .filter(({ text, weight }) => weight * sign > 0 && text.trim())
      .sort((a, b) => sign * (b.weight - a.weight))
      .slice(0, STRONGEST)
      .map(({ text, weight }) => `${text} ${signed(weight)}`)
      .join('　');
  const lines = [
    ['speaksFor', named(1)],
    ['speaksAgainst', named(-1)],
  ].filter(([, words]) => words);
  return el(
    'dl',
    { class: 'quiet strongest' },
    lines.map(([key, words]) => el('div', {}, el('dt', {}, t(key)), el('dd', {}, words))),
  );
}

const signed = (weight) => (weight > 0 ? '+' : '−') + Math.abs(weight).toFixed(2);
