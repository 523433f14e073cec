// A drawing of the loss in training, with words and a table for who cannot see it.

import { el, svg } from './dom.js';
import { number, t } from './words.js';

const [WIDTH, HEIGHT] = [640, 250];
const [LEFT, RIGHT, TOP, BOTTOM] = [48, 28, 12, 32];
let count = 0;

// `training` and `validation`: lists of [step, loss].
export function lossCurve({ training, validation }) {
  const points = [...training, ...validation];
  if (points.length < 2) return el('p', { class: 'quiet' }, t('noCurve'));
  const id = `curve-${(count += 1)}`;
  const steps = ticks(0, Math.max(...points.map(([step]) => step)), 6);
  const losses = ticks(...range(points.map(([, loss]) => loss)), 5);
  const x = scale(steps[0], Math.max(steps.at(-1), points.at(-1)[0]), LEFT, WIDTH - RIGHT);
  const y = scale(losses[0], losses.at(-1), HEIGHT - BOTTOM, TOP);
  const said = summary(training, validation);
  const line = (kind, curve) =>
    svg('polyline', { class: kind, points: curve.map(([s, l]) => `${x(s)},${y(l)}`).join(' ') });
  const drawing = svg(
    'svg',
    { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: 'img', class: 'curve', 'aria-labelledby': `${id}-t ${id}-d` },
    svg('title', { id: `${id}-t` }, t('curve')),
    svg('desc', { id: `${id}-d` }, said),
    losses.map((loss) => [
      svg('line', { class: 'grid', x1: LEFT, x2: WIDTH - RIGHT, y1: y(loss), y2: y(loss) }),
      svg('text', { x: LEFT - 8, y: y(loss) + 4, 'text-anchor': 'end' }, number(loss, 2)),
    ]),
    steps.map((step) =>
      svg('text', { x: x(step), y: HEIGHT - BOTTOM + 22, 'text-anchor': 'middle' }, number(step)),
    ),
    line('training', training),
    line('validation', validation),
    validation.map(([s, l]) => svg('circle', { class: 'validation', cx: x(s), cy: y(l), r: 3 })),
  );
  return el(
    'figure',
    {},
    el('figcaption', {}, el('h3', {}, t('curve')), keys(training, validation)),
    drawing,
    el('p', { class: 'quiet' }, said),
    table(validation.length ? validation : training, validation.length ? 'validation' : 'training'),
  );
}

function keys(training, validation) {
  const kinds = [training.length && 'training', validation.length && 'validation'].filter(Boolean);
  const sample = (kind) =>
    svg('svg', { viewBox: '0 0 28 8', class: 'curve key', 'aria-hidden': 'true' }, [
      svg('polyline', { class: kind, points: '1,4 27,4' }),
      kind === 'validation' && svg('circle', { class: kind, cx: 14, cy: 4, r: 3 }),
    ]);
  return el(
    'ul',
    { class: 'keys' },
    kinds.map((kind) => el('li', {}, sample(kind), t(kind))),
  );
}

function summary(training, validation) {
  const last = Math.max(training.at(-1)?.[0] ?? 0, validation.at(-1)?.[0] ?? 0);
  const loss = (curve) => (curve.length ? number(curve.at(-1)[1], 3) : null);
  return t('curveMore', number(last), loss(training), loss(validation));
}

function table(curve, kind) {
  const rows = curve.map(([step, loss]) =>
    el('tr', {}, el('td', {}, number(step)), el('td', {}, number(loss, 3))),
  );
  const names = el('tr', {}, el('th', {}, t('steps')), el('th', {}, `${t('loss')} (${t(kind)})`));
  return el(
    'details',
    {},
    el('summary', {}, t('curveTable')),
    el('table', {}, el('thead', {}, names), el('tbody', {}, rows)),
  );
}

const range = (values) => [Math.min(...values), Math.max(...values)];

function scale(from, to, start, end) {
  const factor = (end - start) / (to - from || 1);
  return (value) => Number((start + (value - from) * factor).toFixed(1));
}

// Round numbers that hold a range.
function ticks(from, to, wanted) {
  const rough = (to - from || 1) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.floor(from / step);
  const last = Math.max(Math.ceil(to / step), first + 1);
  return Array.from({ length: last - first + 1 }, (_, i) => (first + i) * step);
}
