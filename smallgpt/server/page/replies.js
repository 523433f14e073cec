// Replies being written, one a conversation at most. What has come is kept, whatever happens.

import * as api from './api.js';
import { add, change, path, remove } from './talk.js';

const SAVE_EVERY = 1000; // milliseconds
const SHORT = 100;
// What is sent at most; the server takes more, and a small model reads far less.
const MOST_MESSAGES = 500;
const MOST_CHARACTERS = 200_000;

// A conversation's messages as the API has them.
export function messagesOf(talk, until = null) {
  const said = path(talk, until).map(({ role, content }) => ({ role, content }));
  return talk.system ? [{ role: 'system', content: talk.system }, ...said] : said;
}

// Those that the server is sent: the newest, the last one in any case.
export function newest(messages) {
  let begin = messages.length - 1;
  let characters = messages[begin].content.length;
  while (begin > 0 && messages.length - begin < MOST_MESSAGES) {
    characters += messages[begin - 1].content.length;
    if (characters > MOST_CHARACTERS) break;
    begin -= 1;
  }
  return messages.slice(begin);
}

export class Replies {
  // `onchange(talk)`: its messages have changed; `onpiece(talk, node)`: a reply has grown;
  // `onend(talk, node)`: it is written, node null where nothing came.
  constructor(store, { onchange, onpiece, onend }) {
    Object.assign(this, { store, onchange, onpiece, onend });
    this.running = new Map(); // id of the conversation: { controller, node: id of the reply }
    this.failures = new Map(); // id of the conversation: what went wrong last
    window.addEventListener('pagehide', () => {
      for (const id of this.running.keys()) this.#save(this.store.talks.get(id));
    });
  }

  isRunning = (talk) => this.running.has(talk.id);

  // The id of the reply being written in a conversation.
  writing = (talk) => this.running.get(talk.id)?.node ?? null;

  stop(id) {
    this.running.get(id)?.controller.abort();
  }

  // Ask for a reply to a message, beside those it may have.
  async ask(talk, parent, model, values) {
    if (this.running.has(talk.id)) return;
    const controller = new AbortController();
    const run = { controller, node: null };
    this.running.set(talk.id, run);
    this.failures.delete(talk.id);
    this.onchange(talk);
    const messages = messagesOf(talk, parent);
    const sent = newest(messages);
    run.unsent = messages.length - sent.length;
    let state;
    try {
      // Until it is complete, every copy that is saved says that it was interrupted.
      const body = { model, messages: sent, ...values };
      await this.#write(talk, parent, run, api.reply(body, controller.signal));
    } catch (error) {
      if (error.name === 'AbortError') state = 'stopped';
      else if (error instanceof api.Failure) {
        state = 'interrupted';
        this.failures.set(talk.id, error.message);
      } else throw error;
    } finally {
      this.running.delete(talk.id);
      this.#close(talk, run, state);
    }
  }

  async #write(talk, parent, run, chunks) {
    const start = performance.now();
    let first = null;
    let saved = start;
    for await (const { text, finish, usage } of chunks) {
      if (text) {
        const now = performance.now();
        const node = this.#grow(talk, parent, run, text);
        if (!node) return;
        const length = Array.from(node.content).length;
        first ??= { now, length };
        // From the first piece on: before it, others may have been served. But pieces may come
        // together, and then there is nothing to measure between them.
        const [since, grown] = now - first.now > SHORT ? [first.now, first.length] : [start, 0];
        node.rate = ((length - grown) * 1000) / Math.max(now - since, 1);
        if (now - saved > SAVE_EVERY) {
          saved = now;
          this.#save(talk);
        }
      }
      const node = talk.nodes[run.node];
      if (finish && node) change(talk, node.id, { state: finish === 'length' ? 'length' : 'done' });
      if (usage && node) change(talk, node.id, { leftOut: leftOut(usage, run.unsent) });
    }
  }

  // Add to the reply; null if another tab has deleted it or what it answers.
  #grow(talk, parent, run, text) {
    const deleted = !this.store.talks.has(talk.id) || !talk.nodes[parent];
    if (deleted || (run.node && !talk.nodes[run.node])) {
      run.controller.abort();
      return null;
    }
    if (!run.node) {
      run.node = add(talk, parent, 'assistant', text, { state: 'interrupted' }).id;
      this.onchange(talk);
    } else change(talk, run.node, { content: talk.nodes[run.node].content + text });
    this.onpiece(talk, talk.nodes[run.node]);
    return talk.nodes[run.node];
  }

  #close(talk, run, state) {
    const node = talk.nodes[run.node] ?? null;
    if (node && state) change(talk, node.id, { state });
    if (node && !node.content.trim()) remove(talk, node.id);
    this.#save(talk);
    this.onchange(talk);
    this.onend(talk, talk.nodes[run.node] ?? null);
  }

  #save(talk) {
    if (talk && this.store.talks.has(talk.id)) this.store.save(talk);
  }
}

function leftOut({ left_out: left }, unsent) {
  const messages = (left?.messages ?? 0) + unsent;
  const characters = left?.characters ?? 0;
  return messages || characters ? { messages, characters } : null;
}
