// Whether the server is there: asked again and again, and said in the banner.

import { byId } from './dom.js';
import { t } from './words.js';

const CALM = 10_000; // milliseconds between two questions
const WORRIED = 1000;
const SHOWN = 4000;
const LIMIT = 5000;

export class Health {
  // `onanswer(answer)` is told of every change, with what GET /health says.
  constructor(onanswer) {
    this.onanswer = onanswer;
    this.status = null;
    this.answer = null;
    this.timer = null;
    this.asking = false;
    document.addEventListener('visibilitychange', () => document.hidden || this.check());
  }

  // Ask now.
  async check() {
    if (this.asking) return;
    this.asking = true;
    clearTimeout(this.timer);
    const answer = await ask();
    this.asking = false;
    const before = this.status;
    this.status = answer.status;
    this.answer = answer;
    if (before !== this.status) {
      this.render(before !== null);
      this.onanswer(answer);
    }
    this.timer = setTimeout(() => this.check(), this.status === 'ok' ? CALM : WORRIED);
  }

  render(changed = false) {
    const banner = byId('banner');
    clearTimeout(this.hiding);
    const fine = this.status === 'ok';
    banner.className = fine ? 'fine' : 'trouble';
    if (!fine && this.status) banner.textContent = t(this.status);
    else if (changed) banner.textContent = t('back');
    banner.hidden = this.status === null || (fine && !changed);
    if (fine) this.hiding = setTimeout(() => (banner.hidden = true), SHOWN);
  }
}

async function ask() {
  try {
    const options = { signal: AbortSignal.timeout(LIMIT), cache: 'no-store', credentials: 'omit' };
    const response = await fetch('health', options);
    const answer = await response.json();
    const known = ['ok', 'loading', 'draining', 'failed'].includes(answer.status);
    return known ? answer : { status: 'gone' };
  } catch {
    return { status: 'gone' };
  }
}
