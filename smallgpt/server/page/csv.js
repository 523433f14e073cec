// Tables as text: CSV (RFC 4180), or with tabs or semicolons.

// The text of a file: UTF-8, else GB18030 as Excel on a Chinese Windows saves it; UTF-16 where a byte
// order mark says so. Throws a TypeError where it is none of them.
export function decode(bytes) {
  const [first, second] = bytes;
  const utf16 = { '255,254': 'utf-16le', '254,255': 'utf-16be' }[[first, second]];
  const encodings = utf16 ? [utf16] : ['utf-8', 'gb18030'];
  for (const encoding of encodings) {
    try {
      const text = new TextDecoder(encoding, { fatal: true }).decode(bytes);
      if (text.includes('\0')) throw new TypeError('not text'); // GB18030 reads much that is none
      return text;
    } catch (error) {
      if (encoding === encodings.at(-1)) throw error;
    }
  }
}

// What stands between cells: what is most often in the first line, outside quotes.
export function separatorOf(text) {
  const line = text.slice(0, 10_000).replace(/"[^"]*"/g, '').split(/[\r\n]/, 1)[0];
  const count = (separator) => line.split(separator).length;
  return [',', '\t', ';'].reduce((a, b) => (count(b) > count(a) ? b : a));
}

// The rows of a table, each a list of cells. Blank lines are no rows.
export function parse(text, separator = separatorOf(text)) {
  const rows = [];
  let row = [];
  let at = text.startsWith('\ufeff') ? 1 : 0;
  const plain = new RegExp(`[^${separator}\\r\\n]*`, 'y');
  while (at < text.length) {
    let cell;
    const quoted = text[at] === '"';
    if (quoted) [cell, at] = quotedCell(text, at);
    plain.lastIndex = at; // behind a closing quote: what strays there belongs to the cell
    const more = plain.exec(text)[0];
    cell = quoted ? cell + more : more;
    at += more.length;
    row.push(cell);
    if (text[at] === separator) {
      at += 1;
      if (at < text.length) continue;
      row.push('');
    }
    if (row.length > 1 || row[0] !== '' || quoted) rows.push(row);
    row = [];
    at += text.startsWith('\r\n', at) ? 2 : 1;
  }
  return rows;
}

// A quoted cell from its first quote, and where the text goes on behind its last.
function quotedCell(text, start) {
  let end = start + 1;
  for (;;) {
    end = text.indexOf('"', end);
    if (end < 0) return [text.slice(start + 1).replaceAll('""', '"'), text.length];
    if (text[end + 1] !== '"') break;
    end += 2;
  }
  return [text.slice(start + 1, end).replaceAll('""', '"'), end + 1];
}

// Rows -> text, with quotes where they are needed.
export function write(rows, separator = ',', newline = '\r\n') {
  const cell = (value) => {
    const needed = /["\r\n]/.test(value) || value.includes(separator) || value.startsWith('\ufeff');
    return needed ? `"${value.replaceAll('"', '""')}"` : value;
  };
  // A row of one empty cell would be a blank line.
  const line = (row) => (row.length === 1 && row[0] === '' ? '""' : row.map(cell).join(separator));
  return rows.map((row) => line(row) + newline).join('');
}

const TEXT_NAMES = ['review', 'text', '评论', 'content', 'comment', '内容', '文本', 'sentence', '评价'];

// The number of the column that most likely holds the texts: by its name, else the longest cells.
export function textColumn(rows) {
  const [header, ...body] = rows;
  const names = header.map((name) => name.trim().toLowerCase());
  for (const wanted of TEXT_NAMES) if (names.includes(wanted)) return names.indexOf(wanted);
  const near = names.findIndex((name) => TEXT_NAMES.some((wanted) => name.includes(wanted)));
  if (near >= 0) return near;
  const length = (column) => body.slice(0, 100).reduce((n, row) => n + (row[column]?.length ?? 0), 0);
  const lengths = header.map((_, column) => length(column));
  return lengths.indexOf(Math.max(...lengths));
}

// A name that no other column has, numbered as `smallgpt sentiment predict` does: verdict.2.
export function freeName(name, taken) {
  let free = name;
  for (let n = 2; taken.includes(free); n += 1) free = `${name}.${n}`;
  return free;
}
