// Elements made by script. Text is only ever inserted as text.

const SVG = 'http://www.w3.org/2000/svg';

export const byId = (id) => document.getElementById(id);

// An element with attributes, listeners (`onclick`) and children: elements, or strings as text.
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

// The same for an element of SVG.
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, '');
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null && child !== false));
  return element;
}

// Drawn on 24 x 24 with strokes.
const ICONS = {
  bars: 'M4 7h9M4 12h16M4 17h6',
  chat: 'M6 4h12a3 3 0 0 1 3 3v7a3 3 0 0 1-3 3h-6l-5 4v-4H6a3 3 0 0 1-3-3V7a3 3 0 0 1 3-3z',
  close: 'M6 6l12 12M18 6L6 18',
  curve: 'M4 4v16h16M7 7c1.5 7 5 9 12 9',
  down: 'M12 5v14M6 13l6 6 6-6',
  download: 'M12 4v11M7 11l5 5 5-5M4 20h16',
  edit: 'M4 20l1-4.5L16 4.5a2 2 0 0 1 3 0l.5.5a2 2 0 0 1 0 3L8.5 19zM14 7l3 3',
  left: 'M14 6l-6 6 6 6',
  menu: 'M4 7h16M4 12h16M4 17h16',
  plus: 'M12 5v14M5 12h14',
  redo: 'M20 12a8 8 0 1 1-2.5-5.8M20 3v5h-5',
  right: 'M10 6l6 6-6 6',
  sliders: 'M4 8h8M18 8h2M15 5v6M4 16h2M12 16h8M9 13v6',
  stop: 'M7 7h10v10H7z',
  thumbDown: 'M7 4v10M7 13l4 7c1.5 0 2.5-1 2.5-2.5V14H19a2 2 0 0 0 2-2.3l-1-6A2 2 0 0 0 18 4H7H4v10h3',
  thumbUp: 'M7 20V10M7 11l4-7c1.5 0 2.5 1 2.5 2.5V10H19a2 2 0 0 1 2 2.3l-1 6a2 2 0 0 1-2 1.7H7H4V10h3',
  trash: 'M4 7h16M9 7V4h6v3M6 7l1 13h10l1-13M10 11v5M14 11v5',
  up: 'M12 19V5M6 11l6-6 6 6',
  upload: 'M12 16V5M7 9l5-5 5 5M4 20h16',
};

// A drawing beside or instead of a button's words, which say what it means.
export function icon(name) {
  return svg(
    'svg',
    { viewBox: '0 0 24 24', 'aria-hidden': 'true', class: 'glyph', focusable: 'false' },
    svg('path', { d: ICONS[name] }),
  );
}

// A button with nothing but a drawing.
export function iconButton(name, label, onclick, more = {}) {
  const attributes = { type: 'button', class: 'icon', 'aria-label': label, title: label, ...more };
  return el('button', { ...attributes, onclick }, icon(name));
}

// Whether Enter was pressed to send, and not to choose a word in an input method.
export function isSend(event) {
  const composing = event.isComposing || event.keyCode === 229;
  return event.key === 'Enter' && !event.shiftKey && !composing;
}

// The language of a text for the browser's fonts and voices, where its characters tell it.
export const languageOf = (text) => (/\p{Script=Han}/u.test(text) ? 'zh-CN' : null);

// Hand a file to the user.
export function download(name, content, type) {
  const url = URL.createObjectURL(new Blob([content], { type }));
  el('a', { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// Say something for a while, at the edge of the page.
export function notice(text) {
  const place = byId('notices');
  if ([...place.children].some((said) => said.textContent === text)) return;
  const saying = el('p', {}, text);
  place.append(saying);
  setTimeout(() => saying.remove(), 8000);
}
