// Conversations in this browser: one entry of localStorage each, so that two tabs do not overwrite
// each other's. What cannot be read, or is of a later version, is left as it is.

import { VERSION, merge } from './talk.js';

const PREFIX = 'smallgpt.conversation.';

// localStorage, or null where the browser gives none.
export function local() {
  try {
    return window.localStorage;
  } catch {
    return null;
  }
}

export class Store {
  // `onchange(id)`: another tab has changed or deleted it; `onfull()`: there is no room left.
  constructor({ onchange = () => {}, onfull = () => {} } = {}) {
    this.talks = new Map();
    this.unreadable = 0;
    this.stored = new Set();
    this.onchange = onchange;
    this.onfull = onfull;
    this.storage = local();
    this.#readAll();
    window.addEventListener('storage', (event) => this.#heard(event));
  }

  // The conversations, the latest first.
  all() {
    return [...this.talks.values()].sort((a, b) => b.updated - a.updated);
  }

  // Write a conversation; false where another tab has deleted it, which holds.
  save(talk) {
    const key = PREFIX + talk.id;
    try {
      const text = this.storage?.getItem(key) ?? null;
      if (text === null && this.stored.has(talk.id)) {
        this.talks.delete(talk.id);
        return false;
      }
      const other = text === null ? null : parse(text);
      if (other) merge(talk, other);
      this.talks.set(talk.id, talk);
      if (!this.storage) throw new DOMException('', 'SecurityError');
      this.storage.setItem(key, JSON.stringify(talk));
      this.stored.add(talk.id);
    } catch (error) {
      if (!(error instanceof DOMException)) throw error;
      this.onfull();
    }
    return true;
  }

  remove(id) {
    this.talks.delete(id);
    this.storage?.removeItem(PREFIX + id);
  }

  #readAll() {
    const keys = Object.keys(this.storage ?? {}).filter((key) => key.startsWith(PREFIX));
    for (const key of keys) {
      const talk = parse(this.storage.getItem(key));
      if (!talk) this.unreadable += 1;
      else this.#take(talk);
    }
  }

  #take(talk) {
    const ours = this.talks.get(talk.id);
    if (ours) merge(ours, talk);
    else this.talks.set(talk.id, talk);
    this.stored.add(talk.id);
  }

  #heard({ key, newValue }) {
    if (key === null) {
      for (const id of [...this.stored]) {
        this.talks.delete(id);
        this.onchange(id);
      }
    } else if (key.startsWith(PREFIX)) {
      const talk = newValue === null ? null : parse(newValue);
      if (talk) this.#take(talk);
      else if (newValue === null) this.talks.delete(key.slice(PREFIX.length));
      this.onchange(key.slice(PREFIX.length));
    }
  }
}

function parse(text) {
  try {
    const talk = JSON.parse(text);
    return talk.version === VERSION && talk.id && talk.nodes && talk.chosen && talk.removed
      ? talk
      : null;
  } catch {
    return null;
  }
}
