// The list of conversations: search, rename, delete, import, export; on a phone, a drawer.

import { decode } from './csv.js';
import { ask, askText, confirm } from './dialogs.js';
import { byId, download, el, languageOf, notice } from './dom.js';
import * as formats from './formats.js';
import { messagesOf } from './replies.js';
import { conversation, find, path, titleOf } from './talk.js';
import { t } from './words.js';

export class Sidebar {
  constructor(store, chat) {
    Object.assign(this, { store, chat });
    const on = (id, type, action) => byId(id).addEventListener(type, action);
    on('new', 'click', () => this.#open());
    on('search', 'input', () => this.render());
    on('import', 'click', () => byId('import-file').click());
    on('import-file', 'change', (event) => this.#import(event.target));
    on('export-all', 'click', () => this.#export(this.store.all()));
    on('export', 'click', () => this.#export([this.chat.talk]));
    on('rename', 'click', () => this.#rename());
    on('delete', 'click', () => this.#delete());
    on('close-menu', 'click', () => this.close());
    on('backdrop', 'click', () => this.close());
    for (const button of document.querySelectorAll('button.menu')) {
      button.addEventListener('click', () => this.#openDrawer(button));
    }
    document.addEventListener('keydown', (event) => event.key === 'Escape' && this.close());
  }

  render() {
    const words = byId('search').value;
    const found = this.store.all().map((talk) => [talk, find(talk, words)]);
    const items = found.filter(([, piece]) => piece !== null).map((one) => this.#item(...one));
    const focused = document.activeElement?.closest('#list button')?.dataset.talk;
    byId('list').replaceChildren(...items);
    byId('none-found').hidden = !words.trim() || items.length > 0;
    byId('unreadable').hidden = !this.store.unreadable;
    byId('unreadable').textContent = t('unreadable', this.store.unreadable);
    if (focused) byId('list').querySelector(`[data-talk="${focused}"]`)?.focus();
  }

  #item(talk, piece) {
    const title = titleOf(talk) || t('untitled');
    const open = talk === this.chat.talk;
    return el(
      'li',
      {},
      el(
        'button',
        {
          type: 'button',
          'data-talk': talk.id,
          'aria-current': open ? 'true' : null,
          lang: languageOf(title),
          onclick: () => this.#open(talk),
        },
        el('span', { class: 'title' }, title),
        piece && el('span', { class: 'quiet' }, piece),
      ),
    );
  }

  #open(talk) {
    location.hash = '#chat';
    this.close();
    this.chat.open(talk);
    this.chat.focus();
  }

  async #rename() {
    const { talk } = this.chat;
    const title = await askText(t('renameTitle'), t('title'), titleOf(talk));
    if (title === null) return;
    talk.title = title;
    talk.changed = Date.now();
    this.store.save(talk);
    this.chat.render();
    this.render();
  }

  async #delete() {
    const { talk } = this.chat;
    const title = t('deleteNamed', titleOf(talk));
    if (!(await confirm(title, t('deleteConversationMore'), t('delete')))) return;
    this.chat.replies.stop(talk.id);
    this.store.remove(talk.id);
    this.chat.open();
    this.render();
    this.chat.focus();
  }

  async #export(talks) {
    const radio = (value, label, checked) =>
      el(
        'label',
        { class: 'check' },
        el('input', { type: 'radio', name: 'format', value, checked }),
        el('span', {}, t(label)),
      );
    const choices = el(
      'fieldset',
      {},
      radio('json', 'exportJson', true),
      radio('txt', 'exportText', false),
      el('p', { class: 'quiet' }, t('exportMore')),
    );
    const one = talks.length === 1 && talks[0] === this.chat.talk;
    const title = one ? t('exportOne') : t('exportAll', talks.length);
    choices.prepend(el('legend', { class: 'visually-hidden' }, title));
    const read = () => choices.querySelector(':checked').value;
    const format = await ask({ title, content: [choices], send: t('export'), read });
    if (format === null) return;
    const records = talks
      .filter((talk) => path(talk).length)
      .map((talk) => ({ title: titleOf(talk), messages: messagesOf(talk) }));
    const text = format === 'json' ? formats.toJson(records) : formats.toText(records);
    if (!records.length || !text) notice(t('exportNothing'));
    else download(`conversations.${format}`, text, format === 'json' ? 'application/json' : 'text/plain');
  }

  async #import(input) {
    const files = [...input.files];
    input.value = '';
    let count = 0;
    let last = null;
    for (const file of files) {
      const records = await this.#read(file);
      if (!records) continue;
      for (const [place, { title, messages }] of records.toReversed().entries()) {
        const begins = messages[0].role === 'system';
        const system = begins ? messages[0].content : '';
        const rest = begins ? messages.slice(1) : messages;
        last = conversation({ title, system, messages: rest });
        last.updated += place; // the list is in the order of the file
        this.store.save(last);
      }
      count += records.length;
    }
    if (last) this.chat.open(last);
    if (count) notice(t('imported', count));
  }

  async #read(file) {
    try {
      return formats.read(file.name, decode(new Uint8Array(await file.arrayBuffer())));
    } catch (error) {
      const problem = error instanceof TypeError ? 'importUndecodable' : error.message;
      if (!(error instanceof TypeError || error instanceof formats.FormatError)) throw error;
      notice(t(problem, file.name));
      return null;
    }
  }

  #openDrawer(button) {
    document.body.classList.add('drawer');
    byId('main').inert = true;
    button.setAttribute('aria-expanded', 'true');
    byId('close-menu').focus();
  }

  close() {
    if (!document.body.classList.contains('drawer')) return;
    document.body.classList.remove('drawer');
    byId('main').inert = false;
    for (const button of document.querySelectorAll('button.menu')) {
      button.setAttribute('aria-expanded', 'false');
      if (button.checkVisibility()) button.focus();
    }
  }
}
