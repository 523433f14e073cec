// A CSV file -> the same with a verdict for each row.

import * as api from './api.js';
import * as csv from './csv.js';
import { byId, download, el, languageOf } from './dom.js';
import { bar } from './sentiment.js';
import { number, percent, t } from './words.js';

const AT_ONCE = 64; // texts a request
const LONGEST_TEXT = 32_768; // characters that the server takes
const MOST_CHARACTERS = 200_000; // a request
const PREVIEW = 3; // rows
const LONGEST = 60; // characters of a cell in the preview

export class Scoring {
  constructor() {
    this.model = null; // the card of the classifier
    this.table = null; // { name, rows, separator, newline, header, column }
    this.run = null; // { controller, done, all, verdicts, start, waiting }
    const drop = byId('drop');
    byId('choose').addEventListener('click', () => byId('file').click());
    byId('file').addEventListener('change', ({ target }) => {
      if (target.files[0]) this.#read(target.files[0]);
      target.value = '';
    });
    // Anywhere in the view: what misses the frame would be opened by the browser instead.
    const view = byId('sentiment');
    view.addEventListener('dragover', (event) => {
      event.preventDefault();
      drop.classList.add('over');
    });
    view.addEventListener('dragleave', (event) => {
      if (!view.contains(event.relatedTarget)) drop.classList.remove('over');
    });
    view.addEventListener('drop', (event) => {
      event.preventDefault();
      drop.classList.remove('over');
      if (event.dataTransfer.files[0]) this.#read(event.dataTransfer.files[0]);
    });
  }

  get #isRunning() {
    return this.run?.controller != null;
  }

  async #read(file) {
    if (this.#isRunning) return;
    this.#trouble('');
    this.table = this.run = null;
    try {
      const text = csv.decode(new Uint8Array(await file.arrayBuffer()));
      const separator = csv.separatorOf(text);
      const rows = csv.parse(text, separator);
      const newline = text.includes('\r\n') || !text.includes('\n') ? '\r\n' : '\n';
      if (rows.length) {
        const column = csv.textColumn(rows);
        this.table = { name: file.name, rows, separator, newline, header: rows.length > 1, column };
      } else this.#trouble(t('tableEmpty', file.name));
    } catch (error) {
      if (!(error instanceof TypeError)) throw error;
      this.#trouble(t('importUndecodable', file.name));
    }
    this.render();
    byId('column')?.focus();
  }

  #trouble(text) {
    byId('table-trouble').replaceChildren(...(text ? [el('p', { class: 'error' }, text)] : []));
  }

  get #body() {
    return this.table.rows.slice(this.table.header ? 1 : 0);
  }

  get #names() {
    const { rows, header } = this.table;
    return rows[0].map((name, i) => (header && name.trim() ? name : t('columnNumber', i + 1)));
  }

  render() {
    if (!this.table) {
      byId('table-body').replaceChildren();
      return;
    }
    const focused = document.activeElement?.id;
    byId('table-body').replaceChildren(
      el(
        'p',
        {},
        el('strong', {}, this.table.name),
        ` · ${t('rows', number(this.#body.length))}`,
      ),
      this.#choices(),
      this.#preview(),
      this.#actions(),
      el('div', { id: 'scored' }),
    );
    this.#renderProgress();
    if (focused) byId(focused)?.focus();
  }

  #choices() {
    const select = el('select', { id: 'column', disabled: this.#isRunning });
    this.#names.forEach((name, i) => {
      select.append(el('option', { value: i, selected: i === this.table.column }, name));
    });
    select.addEventListener('change', () => this.#set({ column: Number(select.value) }));
    const header = el('input', {
      id: 'header-row',
      type: 'checkbox',
      checked: this.table.header,
      disabled: this.#isRunning,
    });
    header.addEventListener('change', () => this.#set({ header: header.checked }));
    return el(
      'div',
      { class: 'row' },
      el('label', { class: 'field' }, t('column'), select),
      el('label', { class: 'check' }, header, el('span', {}, t('headerRow'))),
    );
  }

  #set(values) {
    Object.assign(this.table, values);
    this.run = null;
    this.render();
  }

  #preview() {
    const cut = (text = '') => text.slice(0, LONGEST) + (text.length > LONGEST ? '…' : '');
    const chosen = (i) => (i === this.table.column ? 'chosen' : null);
    const line = (cells, tag) =>
      el('tr', {}, cells.map((cell, i) => el(tag, { class: chosen(i), lang: languageOf(cell) }, cut(cell))));
    return el(
      'div',
      { class: 'scroll-x', tabindex: 0, role: 'region', 'aria-label': t('firstRows') },
      el(
        'table',
        {},
        el('thead', {}, line(this.#names, 'th')),
        el('tbody', {}, this.#body.slice(0, PREVIEW).map((row) => line(row, 'td'))),
      ),
    );
  }

  #actions() {
    const button = (id, word, action, more = {}) =>
      el('button', { id, type: 'button', onclick: action, ...more }, t(word));
    const [primary, secondary] = [{ class: 'primary' }, {}];
    return el(
      'div',
      { class: 'row end' },
      this.#isRunning && button('stop-table', 'stop', () => this.run.controller.abort()),
      !this.#isRunning && button('score', 'score', () => this.#score(), this.run ? secondary : primary),
      this.run?.done > 0 &&
        !this.#isRunning &&
        button('download-scored', 'downloadScored', () => this.#download(), primary),
    );
  }

  async #score() {
    if (!this.model || this.#isRunning) return;
    const body = this.#body;
    const cells = body.map((row) => row[this.table.column] ?? '');
    const texts = cells.map((cell) => cell.slice(0, LONGEST_TEXT));
    const wanted = texts.map((_, i) => i).filter((i) => texts[i].trim());
    const [controller, start] = [new AbortController(), performance.now()];
    const run = { controller, start, done: 0, all: wanted.length, verdicts: [], labels: [] };
    run.blank = body.length - wanted.length;
    run.cut = cells.filter((cell) => cell.length > LONGEST_TEXT).length;
    this.run = run;
    this.#trouble('');
    this.render();
    byId('stop-table').focus();
    try {
      while (run.done < run.all) await this.#next(run, texts, wanted);
    } catch (error) {
      if (error instanceof api.Failure) this.#trouble(error.message);
      else if (error.name !== 'AbortError') throw error;
    } finally {
      run.controller = null;
      this.render();
      byId('download-scored')?.focus();
    }
  }

  async #next(run, texts, wanted) {
    const rows = [];
    for (let size = 0; rows.length < AT_ONCE && run.done + rows.length < run.all; ) {
      const row = wanted[run.done + rows.length];
      size += texts[row].length;
      if (rows.length && size > MOST_CHARACTERS) break;
      rows.push(row);
    }
    const body = { model: this.model.id, input: rows.map((i) => texts[i]) };
    try {
      const { data, labels } = await api.classify(body, run.controller.signal);
      data.forEach((verdict, i) => (run.verdicts[rows[i]] = verdict));
      run.labels = labels;
      run.done += rows.length;
      run.waiting = false;
    } catch (error) {
      if (!error.passes) throw error;
      run.waiting = true;
      this.#renderProgress();
      await api.pause(error.retryAfter ?? 1, run.controller.signal);
    }
    this.#renderProgress();
  }

  #renderProgress() {
    const { run } = this;
    if (!run) return;
    const rate = (1000 * run.done) / Math.max(performance.now() - run.start, 1);
    const counts = [number(run.done), number(run.all)];
    const parts = [];
    if (run.controller) {
      const words = t('scored', ...counts, run.done ? number(rate) : null);
      parts.push(
        el('progress', { max: run.all, value: run.done, 'aria-label': t('progress') }),
        el('p', { class: 'quiet' }, run.waiting ? t('waiting') : words),
      );
    } else {
      const complete = run.done === run.all;
      const words = complete ? t('scoringDone', counts[0]) : t('scoringStopped', ...counts);
      const also = [run.blank && t('blank', run.blank), run.cut && t('cut', run.cut)];
      parts.push(el('p', { role: 'status' }, [words, ...also.filter(Boolean)].join(' ')));
      if (run.done) parts.push(summary(run));
    }
    byId('scored').replaceChildren(...parts);
  }

  #download() {
    const { rows, separator, newline, header, name } = this.table;
    const { labels, verdicts } = this.run;
    const width = Math.max(...rows.map((row) => row.length));
    const full = (row) => [...row, ...Array(width - row.length).fill('')];
    const names = full(this.#names.map((one, i) => (header ? rows[0][i] : one)));
    for (const wanted of ['verdict', 'probability', ...labels.map((label) => `p(${label})`)]) {
      names.push(csv.freeName(wanted, names));
    }
    const scored = this.#body.map((row, i) => [...full(row), ...addedCells(verdicts[i], labels)]);
    // With the mark, Excel reads UTF-8.
    const text = `\ufeff${csv.write([names, ...scored], separator, newline)}`;
    download(name.replace(/(\.\w+)?$/, '.scored$1') || 'scored.csv', text, 'text/csv');
  }
}

// What a verdict adds to a row; empty cells without one.
function addedCells(verdict, labels) {
  if (!verdict) return Array(labels.length + 2).fill('');
  const probs = verdict.probs.map((p) => p.toFixed(4));
  return [verdict.label, Math.max(...verdict.probs).toFixed(4), ...probs];
}

// How many rows have each label.
function summary({ labels, verdicts, done }) {
  const lines = labels.map((label) => {
    const count = verdicts.filter((verdict) => verdict?.label === label).length;
    return bar(label, count / done, `${number(count)} · ${percent(count / done)}`);
  });
  return el('ul', { class: 'bars' }, lines);
}
