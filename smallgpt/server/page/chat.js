// The conversation that is open: its messages, what can be done with them, and the line to type.

import * as api from './api.js';
import { confirm, showKept } from './dialogs.js';
import { byId, el, iconButton, isSend, languageOf, notice } from './dom.js';
import { messagesOf, newest, Replies } from './replies.js';
import * as settings from './settings.js';
import { add, change, children, conversation, path, remove, titleOf, turn } from './talk.js';
import { number, t } from './words.js';

const SUGGESTIONS = ['你好', '今天天气真好', '晚上吃什么好呢', '讲个笑话吧'];
const NEAR = 80; // pixels from the end that count as being there

export class Chat {
  // `onopen(talk)`: another conversation is shown; `onlist()`: the list of them has changed.
  constructor(store, { onopen, onlist }) {
    Object.assign(this, { store, onopen, onlist });
    this.model = null; // the card of the model that replies
    this.feedback = false;
    this.settings = settings.load();
    this.editing = null; // { id, depth, draft, trouble, sending } of the message being edited
    this.talk = this.#fresh();
    this.replies = new Replies(store, {
      onchange: (talk) => this.#changed(talk),
      onpiece: (talk, node) => this.#grown(talk, node),
      onend: (talk, node) => this.#ended(talk, node),
    });
    this.#listen();
  }

  #fresh = () => conversation({ system: this.settings.system });

  #listen() {
    const field = byId('message');
    byId('composer').addEventListener('submit', (event) => {
      event.preventDefault();
      this.#send(field.value);
    });
    field.addEventListener('keydown', (event) => {
      if (!isSend(event)) return;
      event.preventDefault();
      this.#send(field.value);
    });
    byId('stop').addEventListener('click', () => this.replies.stop(this.talk.id));
    byId('settings').addEventListener('click', () => this.#changeSettings());
    byId('newest').addEventListener('click', () => this.#toEnd());
    byId('kept-more').addEventListener('click', () => showKept());
    this.following = true; // the view stays at the end, unless one has scrolled away from it
    byId('scroll').addEventListener('scroll', () => {
      this.following = this.#isAtEnd();
      this.#showNewest();
    });
    new ResizeObserver(() => this.following && this.#toEnd()).observe(byId('scroll'));
    for (const text of SUGGESTIONS) {
      const button = el('button', { type: 'button', lang: 'zh-CN' }, text);
      button.addEventListener('click', () => this.#send(text));
      byId('suggestions').append(button);
    }
  }

  // Show a conversation; without one, a new one.
  open(talk = this.#fresh()) {
    this.talk = talk;
    this.editing = null;
    this.render();
    this.#toEnd();
    this.onopen(talk);
  }

  // Another tab has changed or deleted it.
  heard(id) {
    if (id !== this.talk.id) return;
    const talk = this.store.talks.get(id);
    if (talk) this.render();
    else {
      this.replies.stop(id);
      this.open();
    }
  }

  focus() {
    byId('message').focus();
  }

  #send(text) {
    const field = byId('message');
    if (!text.trim() || this.replies.isRunning(this.talk)) return;
    const parent = path(this.talk).at(-1)?.id ?? '';
    const node = add(this.talk, parent, 'user', text.trim());
    if (text === field.value) field.value = '';
    this.store.save(this.talk);
    this.onlist();
    this.#ask(node.id);
    this.#toEnd();
    this.focus();
  }

  #ask(parent) {
    byId('announcer').textContent = t('writing');
    this.replies.ask(this.talk, parent, this.model?.id, this.settings.values);
  }

  async #changeSettings() {
    const { system } = this.talk;
    const changed = await settings.change(this.settings, this.model?.sampling, system);
    if (!changed) return;
    this.settings = changed;
    if (changed.system === system) return;
    this.talk.system = changed.system;
    this.talk.changed = Date.now();
    if (this.store.talks.has(this.talk.id)) this.store.save(this.talk);
    this.render();
  }

  // Show messages as they are now; the focus stays where it is.
  render() {
    const shown = path(this.talk);
    const focused = document.activeElement?.dataset?.key;
    const writing = this.replies.writing(this.talk);
    const items = shown.map((node, depth) => this.#message(node, depth, writing === node.id));
    if (this.talk.system && shown.length) items.unshift(systemItem(this.talk.system));
    const last = shown.findLast((node) => node.role === 'assistant');
    const forgotten = last?.leftOut?.messages ?? 0;
    for (const item of items.slice(0, forgotten)) item.classList.add('forgotten');
    if (forgotten) items.splice(forgotten, 0, el('li', { class: 'divider' }, t('forgotten')));
    const running = this.replies.isRunning(this.talk);
    if (running && !writing) items.push(waitingItem());
    byId('messages').replaceChildren(...items);
    byId('messages').setAttribute('aria-busy', String(running));
    byId('chat-title').textContent = titleOf(this.talk) || t('untitled');
    byId('welcome').hidden = shown.length > 0;
    byId('send').hidden = running;
    byId('stop').hidden = !running;
    byId('kept').hidden = !this.feedback;
    for (const id of ['rename', 'export', 'delete']) byId(id).hidden = !shown.length;
    this.#renderTrouble(shown, running);
    this.#showNewest();
    if (focused) document.querySelector(`[data-key="${focused}"]`)?.focus();
  }

  #renderTrouble(shown, running) {
    const last = shown.at(-1);
    const failure = running ? null : this.replies.failures.get(this.talk.id);
    const unanswered = !running && last?.role === 'user' && this.editing === null;
    const again = el(
      'button',
      { type: 'button', 'data-key': 'again', onclick: () => this.#ask(last.id) },
      t(failure ? 'tryAgain' : 'askReply'),
    );
    const parts = failure ? [el('p', { class: 'error' }, failure)] : [];
    if (unanswered) parts.push(again);
    byId('trouble').replaceChildren(...parts);
  }

  #message(node, depth, writing) {
    const who = { user: 'you', assistant: 'them', system: 'system' }[node.role];
    const text = el('p', { class: 'text', lang: languageOf(node.content) }, node.content);
    const editing = this.editing?.id === node.id;
    const state = `${writing ? ' writing' : ''}${isEdited(node) ? ' edited' : ''}`;
    return el(
      'li',
      { class: `message ${node.role}${state}`, 'data-id': node.id },
      el('span', { class: 'visually-hidden' }, t(who)),
      editing ? this.#editor(node) : text,
      el(
        'div',
        { class: 'foot' },
        notes(node, writing),
        !editing && !writing && this.#tools(node, depth),
      ),
    );
  }

  #tools(node, depth) {
    const siblings = children(this.talk, node.parent);
    const at = siblings.findIndex(({ id }) => id === node.id);
    const disabled = this.replies.isRunning(this.talk);
    const tool = (name, label, action, more = {}) =>
      iconButton(name, t(label), action, { 'data-key': `${depth}:${label}`, disabled, ...more });
    const show = (places) => () => {
      turn(this.talk, node, places);
      this.#keep();
    };
    const isReply = node.role === 'assistant';
    const wanted = this.#isWanted(node);
    const versions = siblings.length > 1 && [
      tool('left', 'before', show(-1), { 'aria-disabled': String(at === 0) }),
      el(
        'span',
        { class: 'versions', title: t('versions', at + 1, siblings.length) },
        el('span', { 'aria-hidden': 'true' }, `${at + 1}/${siblings.length}`),
        el('span', { class: 'visually-hidden' }, t('versions', at + 1, siblings.length)),
      ),
      tool('right', 'after', show(1), { 'aria-disabled': String(at === siblings.length - 1) }),
    ];
    const verdict = (name, label, value) =>
      tool(name, label, () => this.#judge(node, value), {
        'aria-pressed': String(node.verdict === value),
      });
    return el(
      'div',
      { class: 'tools' },
      versions,
      isReply && tool('redo', 'regenerate', () => this.#ask(node.parent)),
      wanted && !isEdited(node) && [verdict('thumbUp', 'good', 'up'), verdict('thumbDown', 'bad', 'down')],
      tool('edit', wanted ? 'wouldSay' : 'editMessage', () => this.#edit(node, depth), {
        'data-key': `${depth}:edit`,
      }),
      tool('trash', 'deleteMessage', () => this.#delete(node)),
    );
  }

  #keep(talk = this.talk) {
    this.store.save(talk);
    this.render();
    this.onlist();
  }

  #edit(node, depth) {
    this.editing = { id: node.id, depth, draft: node.content, trouble: '', sending: false };
    this.#focusEditor();
  }

  #focusEditor() {
    this.render();
    const area = document.querySelector('.editor textarea');
    if (!area) return; // another tab has deleted the message
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  #closeEditor() {
    const { depth } = this.editing;
    this.editing = null;
    this.render();
    document.querySelector(`[data-key="${depth}:edit"]`)?.focus();
  }

  #editor(node) {
    const edit = this.editing;
    const isUser = node.role === 'user';
    const wanted = this.#isWanted(node);
    const area = el('textarea', {
      rows: 1,
      'aria-label': t(wanted ? 'wouldSay' : 'editMessage'),
      'aria-describedby': wanted ? 'would-say-more' : null,
      'data-key': 'editor',
      readonly: edit.sending,
    });
    area.value = edit.draft;
    area.addEventListener('input', () => (edit.draft = area.value));
    const save = () => {
      const text = area.value.trim();
      if (!text || edit.sending || this.replies.isRunning(this.talk)) return;
      if (node.role === 'assistant') {
        this.#rewrite(node, text, wanted);
        return;
      }
      const changed = text !== node.content;
      const other = changed ? add(this.talk, node.parent, node.role, text, { state: 'done' }) : node;
      if (changed) this.store.save(this.talk);
      this.#closeEditor();
      if (isUser && changed) this.#ask(other.id);
      if (isUser) this.focus();
      this.onlist();
    };
    const keys = (event) => {
      if (event.key === 'Escape' && !event.isComposing) this.#closeEditor();
      if (!isSend(event)) return;
      event.preventDefault();
      save();
    };
    return el(
      'form',
      {
        class: 'editor',
        onkeydown: keys,
        onsubmit(event) {
          event.preventDefault();
          save();
        },
      },
      area,
      wanted && el('p', { id: 'would-say-more', class: 'quiet' }, t('wouldSayMore')),
      edit.trouble && el('p', { class: 'error', role: 'alert' }, edit.trouble),
      el(
        'div',
        { class: 'row end' },
        el('button', { type: 'button', onclick: () => this.#closeEditor() }, t('cancel')),
        el('button', { type: 'submit', class: 'primary', disabled: edit.sending }, t(isUser ? 'send' : 'save')),
      ),
    );
  }

  // Add a person's version of a reply; where the server wants to know, once it does.
  async #rewrite(node, text, wanted) {
    const { talk, editing: edit } = this;
    const generated = node.generated ?? node.content;
    const refuse = (trouble) => {
      Object.assign(edit, { trouble, sending: false });
      if (this.editing === edit) this.#focusEditor();
      else notice(trouble);
    };
    if (text === node.content.trim() || text === generated.trim()) {
      refuse(t('unchanged'));
      return;
    }
    Object.assign(edit, { draft: text, trouble: '', sending: true });
    this.render();
    try {
      if (wanted) await this.#tell(node, { correction: text });
    } catch (error) {
      if (!(error instanceof api.Failure)) throw error;
      refuse(error.message);
      return;
    }
    add(talk, node.parent, 'assistant', text, { state: 'done', generated, sent: wanted });
    if (this.editing === edit) this.#closeEditor();
    this.#keep(talk);
    if (wanted) notice(t('thanks'));
  }

  async #delete(node) {
    const following = path(this.talk).length - path(this.talk, node.id).length + 1;
    if (!(await confirm(t('deleteMessages', following), null, t('delete')))) return;
    remove(this.talk, node.id);
    this.#keep();
    this.focus();
  }

  // Whether the server keeps what people think of a message: of replies to something.
  #isWanted(node) {
    return this.feedback && node.role === 'assistant' && node.parent !== '';
  }

  // Tell the server what somebody thinks of what the model said there. Throws Failure.
  #tell(node, opinion) {
    const reply = { role: 'assistant', content: node.generated ?? node.content };
    const messages = newest([...messagesOf(this.talk, node.parent), reply]);
    return api.feedback({ model: this.model.id, messages, ...opinion });
  }

  async #judge(node, verdict) {
    if (node.verdict === verdict) return;
    const { talk } = this;
    try {
      await this.#tell(node, { verdict });
    } catch (error) {
      if (!(error instanceof api.Failure)) throw error;
      notice(error.message);
      return;
    }
    if (talk.nodes[node.id]) change(talk, node.id, { verdict });
    this.#keep(talk);
    notice(t('thanks'));
  }

  #changed(talk) {
    this.onlist();
    if (talk !== this.talk) return;
    this.render();
    if (this.following) this.#toEnd();
  }

  #grown(talk, node) {
    if (talk !== this.talk) return;
    const text = document.querySelector(`[data-id="${node.id}"] .text`);
    if (!text) return;
    text.textContent = node.content;
    if (this.following) this.#toEnd();
    else this.#showNewest();
  }

  #ended(talk, node) {
    if (talk !== this.talk) return;
    byId('announcer').textContent = node ? t('replied', node.content) : '';
    if (!node && !this.replies.failures.has(talk.id)) byId('announcer').textContent = t('noReply');
  }

  #isAtEnd() {
    const { scrollTop, scrollHeight, clientHeight } = byId('scroll');
    return scrollHeight - scrollTop - clientHeight < NEAR;
  }

  #toEnd() {
    byId('scroll').scrollTop = byId('scroll').scrollHeight;
  }

  #showNewest() {
    byId('newest').hidden = this.#isAtEnd();
  }
}

function systemItem(text) {
  return el(
    'li',
    { class: 'message system' },
    el('p', { class: 'text', lang: languageOf(text) }, el('strong', {}, t('system')), ' ', text),
  );
}

function waitingItem() {
  const dots = [1, 2, 3].map(() => el('span', {}));
  return el('li', { class: 'message assistant' }, el('p', { class: 'text dots' }, dots));
}

// Whether a person has written this version of a reply.
const isEdited = (node) => node.generated !== undefined;

// What is said below a message.
function notes(node, writing) {
  if (writing || node.role !== 'assistant') return null;
  const parts = isEdited(node) ? [t(node.sent ? 'editedSent' : 'edited')] : [];
  if (node.rate) parts.push(t('speed', number(Array.from(node.content).length), number(node.rate)));
  if (['stopped', 'interrupted', 'length'].includes(node.state)) parts.push(t(node.state));
  const cut = node.leftOut?.characters;
  if (cut) parts.push(t('forgottenCharacters', number(cut)));
  return parts.length ? el('p', { class: 'note' }, parts.join(' · ')) : null;
}
