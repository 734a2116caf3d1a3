/**
 * How the columns of a grid share its width. Names and numbers are shown in full: a column that declares `fit` is as wide as
 * its longest text. Where the width is not enough, the columns of `yielding` make room, first to last: one with a place in the
 * second line of a row moves there, another one is hidden. Decides only; the grid applies the result.
 */

const MOST_PX = 300; // of a column that follows its texts
const SPARE_PX = 4; // the longest text by letters is not always the widest

/**
 * Notes the longest text of each column that declares `fit` in `longest`, by the column's name. It only grows, so that columns
 * do not jump. Returns whether it has grown.
 */
export function noteTexts(columns, items, longest) {
  let grown = false;
  for (const { name, fit } of columns) {
    if (!fit) continue;
    let most = longest.get(name) || '';
    if (fit.pattern && items.length && !most) most = fit.pattern();
    else if (fit.text) {
      for (const item of items) {
        const text = fit.text(item, most.length);
        if (text.length > most.length) most = text;
      }
    }
    if (most.length > (longest.get(name) || '').length) {
      longest.set(name, most);
      grown = true;
    }
  }
  return grown;
}

/**
 * `widthPx`: of the grid's content; `gapPx`: between two columns; `textPx(text, weight)`: the width of a text; `narrow`: whether
 * the screen is small, where rows have two lines in any case. Returns {tracks, narrowTracks: CSS widths, stacked: whether
 * rows have two lines on a large screen, without: names of hidden columns}.
 */
export function shareWidth(columns, { longest, widthPx, gapPx, textPx, narrow, yielding }) {
  const least = (column, width) => {
    const text = column.fit && longest.get(column.name);
    const px = text ? Math.min(MOST_PX, Math.ceil(textPx(text, column.fit.weight)) + SPARE_PX) : 0;
    return Math.max(leastPx(width), px);
  };
  const below = (column) => column.narrow === '';
  const needed = (shown, narrowly) => {
    const tracks = shown.map((column) => least(column, narrowly ? column.narrow : column.width));
    return tracks.reduce((sum, px) => sum + px, 0) + gapPx * Math.max(0, tracks.length - 1);
  };
  let shown = narrow ? columns.filter((column) => column.narrow) : columns;
  let stacked = false;
  const without = [];
  for (const name of yielding) {
    if (needed(shown, narrow) <= widthPx) break;
    const column = shown.find((one) => one.name === name);
    if (!column) continue;
    shown = shown.filter((one) => one !== column);
    if (below(column)) stacked = true;
    else without.push(name);
  }
  const kept = columns.filter((column) => !without.includes(column.name));
  const track = (column, width) => width.replace(/\d+px/, `${least(column, width)}px`);
  return {
    tracks: kept.filter((column) => !(stacked && below(column))).map((column) => track(column, column.width)),
    narrowTracks: kept.filter((column) => column.narrow).map((column) => track(column, column.narrow)),
    stacked,
    without,
  };
}

/** "minmax(104px, 1fr)" -> 104 */
function leastPx(width) {
  const [, px] = /(\d+)px/.exec(width) || [];
  return Number(px) || 0;
}
