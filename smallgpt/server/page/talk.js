// A conversation: a tree of messages. To edit a message or to ask for another reply adds a sibling;
// `chosen` says which child of each message is shown, so that one path leads from the top to a leaf.
//
//   { version, id, title, system, changed, updated,
//     nodes: { id: { id, parent, role, content, at, changed, … } },
//     chosen: { parent: child }, removed: [id, …] }
//
// `parent` is '' at the top. A reply that a person has edited has in `generated` what the model had
// said, and in `sent` whether the server was told. `removed` keeps what was deleted from coming back
// out of another tab.

export const VERSION = 1;
const TITLE_LENGTH = 40;

function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(9));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

// A conversation with messages of OpenAI's format; one of the system at the top is its `system`.
export function conversation({ title = '', system = '', messages = [] } = {}) {
  const now = Date.now();
  const talk = { version: VERSION, id: newId(), title, system, changed: now, updated: now };
  Object.assign(talk, { nodes: {}, chosen: {}, removed: [] });
  let parent = '';
  for (const { role, content } of messages) parent = add(talk, parent, role, content).id;
  return talk;
}

// Add a message below another one, and show it.
export function add(talk, parent, role, content, more = {}) {
  const now = Date.now();
  const latest = Math.max(0, ...children(talk, parent).map((node) => node.at));
  const node = { id: newId(), parent, role, content, at: Math.max(now, latest + 1), changed: now };
  talk.nodes[node.id] = Object.assign(node, more);
  talk.chosen[parent] = node.id;
  talk.updated = now;
  return node;
}

// Change a message in place.
export function change(talk, id, values) {
  const node = talk.nodes[id];
  Object.assign(node, values, { changed: Math.max(Date.now(), node.changed + 1) });
}

// What follows a message, oldest first.
export function children(talk, parent) {
  const below = Object.values(talk.nodes).filter((node) => node.parent === parent);
  return below.sort((a, b) => a.at - b.at || (a.id < b.id ? -1 : 1));
}

// The messages that are shown, from the top; or those up to and with one of them.
export function path(talk, until = null) {
  const below = new Map();
  for (const node of Object.values(talk.nodes)) {
    if (!below.has(node.parent)) below.set(node.parent, []);
    below.get(node.parent).push(node);
  }
  const shown = [];
  let parent = '';
  while (parent !== until && below.has(parent)) {
    const choices = below.get(parent);
    const newest = choices.reduce((a, b) => (b.at > a.at ? b : a));
    const node = choices.find((choice) => choice.id === talk.chosen[parent]) ?? newest;
    shown.push(node);
    parent = node.id;
  }
  return shown;
}

// Show the sibling so many places after a message, and return it.
export function turn(talk, node, places) {
  const siblings = children(talk, node.parent);
  const other = siblings[siblings.findIndex(({ id }) => id === node.id) + places] ?? node;
  talk.chosen[node.parent] = other.id;
  return other;
}

// Delete a message and all that follows it.
export function remove(talk, id) {
  const parent = talk.nodes[id]?.parent;
  const doomed = [id];
  while (doomed.length) {
    const next = doomed.pop();
    doomed.push(...children(talk, next).map((node) => node.id));
    delete talk.nodes[next];
    delete talk.chosen[next];
    talk.removed.push(next);
  }
  if (talk.chosen[parent] === id) delete talk.chosen[parent];
  talk.updated = Date.now();
}

// The title that was given, or how the conversation begins.
export function titleOf(talk) {
  if (talk.title) return talk.title;
  const first = path(talk).find((node) => node.content.trim());
  const characters = Array.from(first?.content.trim().replace(/\s+/g, ' ') ?? '');
  const cut = characters.length > TITLE_LENGTH;
  return characters.slice(0, TITLE_LENGTH).join('') + (cut ? '…' : '');
}

// Where a conversation has some words: '' in its title, a piece of a message, or null.
export function find(talk, words) {
  const wanted = words.trim().toLowerCase();
  if (titleOf(talk).toLowerCase().includes(wanted)) return '';
  for (const { content } of Object.values(talk.nodes)) {
    const at = content.toLowerCase().indexOf(wanted);
    if (at >= 0) return (at > 8 ? '…' : '') + content.slice(at > 8 ? at - 8 : 0, at + 40);
  }
  return null;
}

// Take over what another tab has written; of a message or a title that both have, the later one.
export function merge(ours, theirs) {
  ours.removed = [...new Set([...ours.removed, ...theirs.removed])];
  if (theirs.changed > ours.changed) {
    const { title, system, changed } = theirs;
    Object.assign(ours, { title, system, changed });
  }
  ours.updated = Math.max(ours.updated, theirs.updated);
  ours.chosen = { ...theirs.chosen, ...ours.chosen };
  for (const [id, node] of Object.entries(theirs.nodes)) {
    if (!(ours.nodes[id]?.changed >= node.changed)) ours.nodes[id] = node;
  }
  const removed = new Set(ours.removed);
  const gone = ({ id, parent }) => removed.has(id) || (parent !== '' && !ours.nodes[parent]);
  for (let doomed; (doomed = Object.values(ours.nodes).filter(gone)).length; ) {
    for (const { id } of doomed) delete ours.nodes[id];
  }
}
