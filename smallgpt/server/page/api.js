// The server's API (docs/serving.md).

import { events } from './sse.js';
import { t } from './words.js';

const KEY = 'smallgpt.key';

// An answer that is not the wanted one; status 0: no answer at all.
export class Failure extends Error {
  constructor(status, message, retryAfter = null) {
    super(message);
    this.status = status;
    this.retryAfter = retryAfter; // seconds
  }

  // Whether the same may succeed later.
  get passes() {
    return [0, 429, 503].includes(this.status);
  }
}

// `askForKey(wrong)` -> the key that the user types, or null; `unreachable()` is told of failures.
export const hooks = { askForKey: async () => null, unreachable: () => {} };

let asked = null; // the question that several requests wait for

async function newKey(wrong) {
  asked ??= hooks.askForKey(wrong).finally(() => (asked = null));
  const key = await asked;
  if (key === null) return false;
  sessionStorage.setItem(KEY, key);
  return true;
}

// GET, or POST with a body; asks for a key where the server does. Throws Failure, or the signal's
// AbortError.
async function request(path, { body, signal } = {}) {
  for (;;) {
    const key = sessionStorage.getItem(KEY);
    const headers = { Accept: 'application/json' };
    if (key) headers.Authorization = `Bearer ${key}`;
    if (body) headers['Content-Type'] = 'application/json';
    const options = { headers, signal, credentials: 'omit', cache: 'no-store' };
    if (body) Object.assign(options, { method: 'POST', body: JSON.stringify(body, wellFormed) });
    const response = await reached(fetch(path, options));
    if (response.ok) return response;
    if (response.status === 401) {
      const other = sessionStorage.getItem(KEY) !== key; // another request has just asked
      if (other || (await newKey(key !== null))) continue;
    }
    throw await failure(response);
  }
}

// Half a surrogate pair, which only a cut leaves, is no text.
const wellFormed = (_, value) => (typeof value === 'string' ? value.toWellFormed() : value);

async function reached(promise) {
  try {
    return await promise;
  } catch (error) {
    if (error.name === 'AbortError') throw error;
    hooks.unreachable();
    throw new Failure(0, t('unreachable'));
  }
}

async function failure(response) {
  const retryAfter = Number(response.headers.get('Retry-After')) || null;
  const answer = await response.json().catch(() => null);
  let message = answer?.error?.message ?? t('refused', response.status);
  if (response.status === 429) message = t('busy');
  if (response.status === 503) hooks.unreachable();
  return new Failure(response.status, message, retryAfter);
}

const json = async (response) => reached(response.json());

export const models = async () => (await json(await request('v1/models'))).data;
export const model = async (id) => json(await request(`v1/models/${encodeURIComponent(id)}`));
export const classify = async (body, signal) =>
  json(await request('v1/classify', { body, signal }));
export const feedback = async (body) => {
  await request('v1/feedback', { body });
};

// A reply as it is written: { text } for each piece, { finish } and { usage } at the end. Throws
// Failure where the stream breaks off.
export async function* reply(body, signal) {
  const streaming = { ...body, stream: true, stream_options: { include_usage: true } };
  const response = await request('v1/chat/completions', { body: streaming, signal });
  const stream = events(response.body);
  for (;;) {
    const { done, value } = await reached(stream.next());
    if (value === '[DONE]') return;
    if (done) {
      hooks.unreachable();
      throw new Failure(0, t('interrupted'));
    }
    const chunk = JSON.parse(value);
    if (chunk.error) throw new Failure(500, chunk.error.message);
    const [choice] = chunk.choices;
    if (choice?.delta.content) yield { text: choice.delta.content };
    if (choice?.finish_reason) yield { finish: choice.finish_reason };
    if (chunk.usage) yield { usage: chunk.usage };
  }
}

// Wait so many seconds; the signal's AbortError ends it.
export function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, seconds * 1000);
    signal?.addEventListener('abort', () => {
      clearTimeout(timer);
      reject(signal.reason);
    });
  });
}
