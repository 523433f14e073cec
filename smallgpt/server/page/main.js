// Puts the page together: views, server, conversations, language.

import * as api from './api.js';
import { Cards } from './card.js';
import { Chat } from './chat.js';
import { askForKey } from './dialogs.js';
import { byId, icon, notice } from './dom.js';
import { Health } from './health.js';
import { Scoring } from './scoring.js';
import { Sentiment } from './sentiment.js';
import { Sidebar } from './sidebar.js';
import { Store } from './storage.js';
import { currentLanguage, speak, t, translate } from './words.js';

const VIEWS = ['chat', 'sentiment', 'model'];

for (const element of document.querySelectorAll('[data-icon]')) {
  element.prepend(icon(element.dataset.icon));
}
translate(document);

const store = new Store({
  onchange(id) {
    chat.heard(id);
    sidebar.render();
  },
  onfull: () => notice(t('full')),
});
const chat = new Chat(store, {
  onopen: () => sidebar.render(),
  onlist: () => sidebar.render(),
});
const sidebar = new Sidebar(store, chat);
const sentiment = new Sentiment();
const scoring = new Scoring();
const cards = new Cards();
const health = new Health(answered);

let refused = false; // the models could not be had: the key was not given
api.hooks.askForKey = async (wrong) => {
  const key = await askForKey(wrong);
  if (key !== null && refused) setTimeout(() => answered(health.answer));
  return key;
};
api.hooks.unreachable = () => health.check();

// The server has come or gone.
async function answered({ status, feedback }) {
  if (status !== 'ok') return;
  try {
    const ids = (await api.models()).map(({ id }) => id);
    cards.models = await Promise.all(ids.map(api.model));
    refused = false;
  } catch (error) {
    if (!(error instanceof api.Failure)) throw error;
    refused = error.status === 401;
    notice(error.message);
    return;
  }
  const first = (kind) => cards.models.find((model) => model.kind === kind) ?? null;
  chat.model = first('chat');
  chat.feedback = feedback;
  sentiment.model = scoring.model = first('classifier');
  byId('to-sentiment').hidden = !sentiment.model;
  byId('to-chat').hidden = byId('conversations').hidden = !chat.model;
  show();
  render();
}

// Show the view that the address names.
function show() {
  const missing = { chat: !chat.model && sentiment.model, sentiment: !sentiment.model };
  let wanted = location.hash.slice(1);
  if (!VIEWS.includes(wanted) || missing[wanted]) wanted = missing.chat ? 'sentiment' : 'chat';
  for (const view of VIEWS) {
    byId(view).hidden = view !== wanted;
    const link = byId(`to-${view}`);
    if (view === wanted) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
  document.title = `${t(wanted)} · Small GPT`;
}

function render() {
  for (const part of [chat, sidebar, sentiment, scoring, cards]) part.render();
}

window.addEventListener('hashchange', () => {
  show();
  sidebar.close();
});
byId('language').value = currentLanguage();
byId('language').addEventListener('change', ({ target }) => {
  speak(target.value);
  translate(document);
  health.render();
  show();
  render();
});

show();
chat.open(store.all()[0]);
health.check();
