// Questions to the user, as <dialog>: Esc closes, and the focus goes back to where it was.

import { el, iconButton } from './dom.js';
import { t } from './words.js';

// Show a form in a dialog. Resolves to `read()` when it is sent, to null when it is closed.
export function ask({ title, content = [], send, danger = false, more = [], read = () => true }) {
  return new Promise((resolve) => {
    let result = null;
    const before = document.activeElement;
    const heading = el('h2', { id: 'dialog-title' }, title);
    const close = iconButton('close', t('close'), () => dialog.close());
    const form = el(
      'form',
      {
        onsubmit(event) {
          event.preventDefault();
          result = read();
          dialog.close();
        },
      },
      el('div', { class: 'dialog-head' }, heading, close),
      el('div', { class: 'dialog-body' }, content),
      el(
        'div',
        { class: 'row end' },
        more,
        el('button', { type: 'button', onclick: () => dialog.close() }, t(send ? 'cancel' : 'close')),
        send && el('button', { type: 'submit', class: danger ? 'danger' : 'primary' }, send),
      ),
    );
    const dialog = el('dialog', { 'aria-labelledby': 'dialog-title' }, form);
    dialog.addEventListener('pointerdown', (event) => event.target === dialog && dialog.close());
    dialog.addEventListener('close', () => {
      dialog.remove();
      if (before?.isConnected) before.focus();
      resolve(result);
    });
    document.body.append(dialog);
    dialog.showModal();
    const field = form.querySelector('input, textarea, select') ?? form.querySelector('[type=submit]');
    field?.focus();
    field?.select?.();
  });
}

export const confirm = (title, text, send) =>
  ask({ title, content: text ? [el('p', {}, text)] : [], send, danger: true });

// A line of text, or null.
export function askText(title, label, value) {
  const input = el('input', { type: 'text', value, autocomplete: 'off', maxlength: 200 });
  const content = [el('label', { class: 'field' }, label, input)];
  return ask({ title, content, send: t('save'), read: () => input.value.trim() });
}

// What the server keeps of replies that are marked or corrected, and how to delete it.
export const showKept = () => {
  const said = ['keptWhat', 'keptWhere', 'keptDelete', 'keptRepeat'];
  return ask({ title: t('keptTitle'), content: said.map((key) => el('p', {}, t(key))) });
};

// The server's key, or null.
export function askForKey(wrong) {
  const pattern = String.raw`\s*[!-~]([ -~]*[!-~])?\s*`; // what a header can carry
  const input = el('input', { type: 'password', required: true, pattern, autocomplete: 'off' });
  const content = [
    el('p', {}, t('keyMore')),
    wrong && el('p', { class: 'error' }, t('keyWrong')),
    el('label', { class: 'field' }, t('key'), input),
  ];
  return ask({ title: t('keyTitle'), content, send: t('save'), read: () => input.value.trim() });
}
