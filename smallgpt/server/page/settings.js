// How replies are drawn: what the user has set, kept in the browser; the rest is the model's.

import { ask } from './dialogs.js';
import { el } from './dom.js';
import { local } from './storage.js';
import { t } from './words.js';

const KEY = 'smallgpt.settings';
const FIELDS = {
  temperature: { min: 0, max: 2, step: 0.01 },
  top_p: { min: 0.01, max: 1, step: 0.01 },
  top_k: { min: 0, step: 1 },
  repetition_penalty: { min: 0.1, max: 10, step: 0.01 },
  max_tokens: { min: 1, step: 1 },
  best_of: { min: 1, max: 64, step: 1 },
  seed: { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 },
};

// { values: fields of a request, system: the message before new conversations }
export function load() {
  let saved = null;
  try {
    saved = JSON.parse(local()?.getItem(KEY));
  } catch {
    // As if nothing was saved.
  }
  const values = {};
  for (const name of Object.keys(FIELDS)) {
    if (Number.isFinite(saved?.values?.[name])) values[name] = saved.values[name];
  }
  return { values, system: typeof saved?.system === 'string' ? saved.system : '' };
}

function save(settings) {
  try {
    local()?.setItem(KEY, JSON.stringify(settings));
  } catch {
    // They hold until the page is closed.
  }
}

// Let the user change them. `defaults`: the model's `sampling`; `system`: of the conversation that
// is open. Resolves to the new settings, null if nothing is to change.
export async function change(settings, defaults, system) {
  const own = { ...defaults, max_tokens: defaults?.max_new_tokens };
  const inputs = {};
  const fields = Object.entries(FIELDS).map(([name, limits]) => {
    const [value, placeholder] = [settings.values[name] ?? '', own[name] ?? ''];
    const attributes = { type: 'number', inputmode: 'decimal', ...limits, value, placeholder };
    const described = { id: `set-${name}`, 'aria-describedby': `set-${name}-more` };
    inputs[name] = el('input', { ...attributes, ...described });
    return el(
      'div',
      { class: 'field' },
      el('label', { for: `set-${name}` }, t(name)),
      inputs[name],
      el('p', { id: `set-${name}-more`, class: 'quiet' }, t(`${name}More`)),
    );
  });
  const area = el('textarea', { id: 'set-system', rows: 2, 'aria-describedby': 'set-system-more' });
  area.value = system;
  const reset = () => {
    for (const input of [...Object.values(inputs), area]) input.value = '';
  };
  return ask({
    title: t('settings'),
    content: [
      el('p', { class: 'quiet' }, t('settingsMore')),
      el('div', { class: 'grid' }, fields),
      el(
        'div',
        { class: 'field' },
        el('label', { for: 'set-system' }, t('systemMessage')),
        area,
        el('p', { id: 'set-system-more', class: 'quiet' }, t('systemMessageMore')),
      ),
    ],
    more: [
      el('button', { type: 'button', onclick: reset }, t('reset')),
      el('span', { class: 'space' }),
    ],
    send: t('save'),
    read() {
      const values = {};
      for (const [name, input] of Object.entries(inputs)) {
        if (input.value !== '') values[name] = input.valueAsNumber;
      }
      const changed = { values, system: area.value.trim() };
      save(changed);
      return changed;
    },
  });
}
