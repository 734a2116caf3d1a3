/**
 * Positions of the lines of a log: all of the same height, or wrapped with a height according to their text. Invisible lines are
 * estimated (all characters of the same width, Chinese ones twice as wide); lines that were visible have been measured. Pure.
 *
 * Each has {total: px, top(index): px, at(px): index}; -1 where there is no line.
 */

const TAB_CELLS = 8;
const WIDE = /[\u1100-\u115f\u2e80-\ua4cf\uac00-\ud7a3\uf900-\ufaff\ufe30-\ufe6f\uff00-\uff60\uffe0-\uffe6]/g;
// eslint-disable-next-line no-control-regex
const PLAIN = /^[\x20-\x7e]*$/;
// eslint-disable-next-line no-control-regex
const COLOURS = /\x1b\[[0-9;]*m/g;

export function evenRows(count, height) {
  return { total: count * height, top: (index) => index * height, at: (px) => Math.min(count - 1, Math.max(0, Math.floor(px / height))) };
}

export function wrappedRows(lines, height, columns, mostChars) {
  const tops = new Float64Array(lines.length + 1);
  for (let index = 0; index < lines.length; index += 1) tops[index + 1] = tops[index] + rowsOf(lines[index], columns, mostChars) * height;
  return { total: tops[lines.length], top: (index) => tops[Math.min(index, lines.length)], at: (px) => lastAtOrBefore(tops, lines.length, px) };
}

/** The number of rows of one line, cached in the line until its text or the width changes. */
function rowsOf(line, columns, mostChars) {
  if (line.marker) return line.rows || 1;
  if (line.rowsOf !== line.text || line.rowsIn !== columns) {
    line.rowsOf = line.text;
    line.rowsIn = columns;
    line.rows = Math.max(1, Math.ceil(cells(line.text.slice(0, mostChars)) / columns));
  }
  return line.rows;
}

function cells(text) {
  if (PLAIN.test(text)) return text.length;
  const shown = text.includes('\x1b') ? text.replace(COLOURS, '') : text;
  const wide = shown.match(WIDE);
  return shown.length + (wide ? wide.length : 0) + (TAB_CELLS - 1) * (shown.split('\t').length - 1);
}

function lastAtOrBefore(tops, count, px) {
  let low = 0;
  let high = count - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (tops[middle] <= px) low = middle;
    else high = middle - 1;
  }
  return count ? low : -1;
}
