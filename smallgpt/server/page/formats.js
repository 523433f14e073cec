// Conversations as files: JSON of messages in OpenAI's format, and the text that train.py reads, one
// utterance a line and a blank line between dialogues.

const MOST = 1000;

// What is wrong with a file, as a key of words.js.
export class FormatError extends Error {}

// [{ title, messages }] -> JSON.
export const toJson = (talks) => `${JSON.stringify(talks, null, 2)}\n`;

// [{ messages }] -> text. As in `smallgpt data convert`: what the system says is left out, what one
// speaker says in several messages is one utterance, and fewer than two are no dialogue.
export function toText(talks) {
  const dialogues = talks.map(({ messages }) => utterances(messages));
  const lines = dialogues.filter((said) => said.length > 1).map((said) => said.join('\n'));
  return lines.length ? `${lines.join('\n\n')}\n` : '';
}

function utterances(messages) {
  const said = [];
  let last = null;
  for (const { role, content } of messages) {
    const text = content.replace(/\s*[\r\n\u2028\u2029\x0b\x0c\x85]+\s*/g, ' ').trim();
    if (role === 'system' || !text) continue;
    if (role === last) said[said.length - 1] += ` ${text}`;
    else said.push(text);
    last = role;
  }
  return said;
}

// The conversations of a file, [{ title, messages }]; throws FormatError.
export function read(name, text) {
  const clean = text.replace(/^\ufeff/, '');
  const talks = /^\s*[[{]/.test(clean) && !/\.txt$/i.test(name) ? readJson(clean) : readText(clean);
  if (!talks.length) throw new FormatError('importEmpty');
  if (talks.length > MOST) throw new FormatError('importTooMany');
  return talks;
}

function readText(text) {
  const dialogues = text.replace(/\r\n?/g, '\n').trim().split(/\n[^\S\n]*\n\s*/);
  return dialogues.filter(Boolean).map((dialogue) => ({
    title: '',
    messages: dialogue.split('\n').map((line, i) => {
      return { role: i % 2 ? 'assistant' : 'user', content: line.trim() };
    }),
  }));
}

function readJson(text) {
  let values = parse(text);
  if (values === undefined) values = text.split('\n').filter((line) => line.trim()).map(parse);
  if (!Array.isArray(values)) values = [values];
  if (values.length && values.every((value) => value?.role !== undefined)) values = [values];
  return values.map(readRecord).filter(({ messages }) => messages.length);
}

function parse(text) {
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}

function readRecord(record) {
  const messages = Array.isArray(record) ? record : record?.messages;
  if (!Array.isArray(messages)) throw new FormatError('importUnknown');
  const title = typeof record.title === 'string' ? record.title : '';
  return { title, messages: messages.map(readMessage) };
}

function readMessage(message) {
  const role = { developer: 'system' }[message?.role] ?? message?.role;
  const parts = message?.content;
  const isText = (part) => part?.type === 'text' && typeof part.text === 'string';
  const content =
    Array.isArray(parts) && parts.every(isText) ? parts.map((part) => part.text).join('') : parts;
  const known = ['system', 'user', 'assistant'].includes(role);
  if (!known || typeof content !== 'string') throw new FormatError('importUnknown');
  return { role, content };
}
