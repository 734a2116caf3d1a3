/**
 * A grid of thousands of rows, of which only the visible ones exist; they are moved and refilled during scrolling. No row is created
 * or removed while the user scrolls; the order in the document, titles and accessible names follow once scrolling pauses. The grid is one tab stop; inside,
 * up and down move between rows, left and right between the controls of a row. The focus belongs to an item and
 * follows its row when the order changes. Independent of the content.
 */

import { noteTexts, shareWidth } from './columnfit.js';
import { attrWriter, debounced, framed, h, setAttr, show } from './dom.js';

const OVERSCAN_ROWS = 2;
const SPARE_ROWS = 2; // hidden rows that are kept
const ORDER_AFTER_MS = 120; // time without scrolling after which the document's order is that on the screen
const CONTROLS = ['a', 'button', 'input', 'summary'].join();
const HEAD_HEIGHT = 34;
const PADDING = 12; // left and right of a row

export class Grid {
  /**
   * `columns`: [{name, label, width, narrow, fit, sortable, head, make(item) -> content node with update(item), describe(item) or none, itself the cell where it `isCell`}];
   * `describe`: writes titles and accessible names, for which nobody waits while the list scrolls; `width` as CSS writes it; `narrow`: on a small screen, '' for a second line; `fit`: {text(item, length), weight} where the column is
   * as wide as its texts, of which those of up to `length` letters do not matter, or {pattern()} as wide as one text;
   * `yielding`: names of columns that make room for the others (columnfit.js), first to last;
   * `head`: a node instead of the label. `onSort(name)`; `onOpen(item)`: Enter; `onPick(item, range)`: Space, with Shift a range;
   * `onAll()`: Ctrl-A; `onNone()`: Escape, returns whether it had an effect; `isPicked(item)`.
   */
  constructor({ label, kind, columns, keyOf, yielding = [], onSort = null, onOpen = null, onPick = null, onAll = null, onNone = null, isPicked = null }) {
    Object.assign(this, { keyOf, yielding, onSort, onOpen, onPick, onAll, onNone, isPicked });
    this.items = [];
    this.nodes = new Map(); // key -> row
    this.rows = []; // rows in use, in the order on the screen
    this.spare = [];
    this.top = -1; // scroll position that the rows were filled for
    this.moving = false; // whether the user is scrolling
    this.changed = false; // whether the content of rows may have changed since they were filled
    this.height = 0;
    this.width = 0;
    this.longest = new Map(); // column -> its longest text so far
    this.sort = ['', false]; // column, whether descending
    this.activeKey = null;
    this.activeControl = -1; // which of the row's controls has the focus; -1: the row itself
    this.rowHeight = 38;
    this.headRow = h('div.table-row', { role: 'row', 'aria-rowindex': '1' });
    this.head = h('div.table-head', { role: 'rowgroup' }, this.headRow);
    this.body = h('div.table-body', { role: 'rowgroup' });
    this.ruler = h('span.ruler', { 'aria-hidden': 'true' });
    this.textWidths = new Map(); // weight and text -> px
    this.node = h(`div.table.is-virtual.${kind}`, { role: 'grid', 'aria-label': label, 'aria-multiselectable': onPick ? 'true' : null }, this.head, this.body, this.ruler);
    this.redraw = framed(() => this.draw());
    this.setColumns(columns);
    this.orderLater = debounced(() => this.settle(), ORDER_AFTER_MS);
    this.node.addEventListener('scroll', () => this.scrolled(), { passive: true });
    this.node.addEventListener('keydown', (event) => this.key(event));
    this.body.addEventListener('focusin', (event) => this.focused(event.target));
    this.resized = new ResizeObserver(() => this.measure());
    this.resized.observe(this.node);
  }

  destroy() {
    this.resized.disconnect();
    this.orderLater.cancel();
  }

  /** Shows these columns; the rows are recreated. */
  setColumns(columns, yielding = this.yielding) {
    Object.assign(this, { columns, yielding });
    this.headers = new Map();
    this.headRow.replaceChildren(...columns.map((column) => this.header(column)));
    this.showSort(...this.sort);
    noteTexts(columns, this.items, this.longest);
    this.measure();
    setAttr(this.node, 'aria-colcount', columns.length);
    for (const row of [...this.nodes.values(), ...this.spare]) row.remove();
    this.nodes.clear();
    this.rows = [];
    this.spare = [];
  }

  /** Distributes the width over the columns. */
  layOut() {
    const style = getComputedStyle(this.node);
    const shared = shareWidth(this.columns, {
      longest: this.longest,
      widthPx: this.width ? this.width - 2 * PADDING : Infinity,
      gapPx: parseFloat(style.getPropertyValue('--gap-px')) || 0,
      textPx: (text, weight) => this.textPx(text, weight),
      narrow: style.getPropertyValue('--narrow').trim() === '1',
      yielding: this.yielding,
    });
    this.node.style.setProperty('--columns', shared.tracks.join(' '));
    this.node.style.setProperty('--columns-narrow', shared.narrowTracks.join(' '));
    setAttr(this.node, 'data-without', shared.without.join(' ') || null);
    this.node.classList.toggle('is-stacked', shared.stacked);
  }

  textPx(text, weight = 400) {
    const key = `${weight} ${text}`;
    const known = this.textWidths.get(key);
    if (known) return known;
    this.ruler.style.fontWeight = weight;
    this.ruler.textContent = text;
    const { width } = this.ruler.getBoundingClientRect();
    this.ruler.textContent = '';
    if (width) this.textWidths.set(key, width); // otherwise the grid is hidden
    return width;
  }

  header(column) {
    const content =
      column.head ||
      (column.sortable && this.onSort
        ? h('button.sort', { type: 'button', on: { click: () => this.onSort(column.name) } }, column.label)
        : h('span', {}, column.label));
    const cell = h(`div.cell.col-${column.name}${column.narrow === undefined ? '.is-wide' : ''}`, { role: 'columnheader' }, content);
    this.headers.set(column.name, cell);
    return cell;
  }

  showSort(name, descending) {
    this.sort = [name, descending];
    for (const [column, cell] of this.headers) {
      setAttr(cell, 'aria-sort', column === name ? (descending ? 'descending' : 'ascending') : null);
    }
  }

  setItems(items) {
    const row = this.activeKey === null ? null : this.nodes.get(this.activeKey);
    const hadFocus = Boolean(row && row.contains(document.activeElement));
    const place = row ? row.index : 0;
    this.items = items;
    const grown = noteTexts(this.columns, items, this.longest);
    setAttr(this.node, 'aria-rowcount', items.length + 1);
    show(this.node, items.length > 0);
    if (grown) this.measure();
    if (!items.length) {
      this.activeKey = null;
    } else if (this.activeKey === null || this.indexOf(this.activeKey) < 0) {
      this.activeKey = this.keyOf(items[Math.min(place, items.length - 1)]); // its item was removed: the item that took its place
      if (hadFocus) {
        this.draw();
        this.focusRow();
        return;
      }
    }
    this.draw();
  }

  /** The content of rows changed, not their set. While the user scrolls, the next step shows it. */
  refresh() {
    this.changed = true;
    if (!this.moving) this.draw();
  }

  measure() {
    this.width = this.node.clientWidth;
    this.layOut();
    const height = parseFloat(getComputedStyle(this.node).getPropertyValue('--row-h'));
    if (height) this.rowHeight = height;
    this.headHeight = this.head.offsetHeight;
    this.height = this.node.clientHeight;
    this.redraw();
  }

  /** The index of an item, stored in its row unless the order has just changed. */
  indexOf(key) {
    const { items, keyOf } = this;
    const row = this.nodes.get(key);
    if (row && row.index < items.length && keyOf(items[row.index]) === key) return row.index;
    for (let index = 0; index < items.length; index += 1) if (keyOf(items[index]) === key) return index;
    return -1;
  }

  pageRows() {
    return Math.max(1, Math.floor((this.node.clientHeight - (this.headHeight || HEAD_HEIGHT)) / this.rowHeight));
  }

  /** The number of visible rows. */
  visibleCount() {
    return Math.min(this.items.length, this.pageRows());
  }

  // ------------------------------------------------------------------------------------------------ drawing

  /** Fills the visible rows, and corrects the document's order unless the grid is scrolling. */
  draw() {
    this.changed = true;
    this.fill();
    if (!this.moving) this.order();
  }

  settle() {
    this.moving = false;
    this.draw();
  }

  scrolled() {
    if (this.node.scrollTop === this.top) return; // already drawn
    this.moving = true;
    this.fill();
    this.orderLater();
  }

  /** Fills a row for each visible item, and for the focused item even if it is not visible. */
  fill() {
    const { items, rowHeight } = this;
    const count = Math.ceil((this.height || 600) / rowHeight) + 2 * OVERSCAN_ROWS;
    const lowest = items.length * rowHeight + (this.headHeight || HEAD_HEIGHT) - this.height;
    this.top = this.node.scrollTop;
    const above = Math.floor(Math.min(this.top, lowest) / rowHeight) - OVERSCAN_ROWS;
    const first = Math.max(0, Math.min(above, items.length - count)); // as many rows at the end as anywhere
    const last = Math.min(items.length, first + count);
    const wanted = [];
    for (let index = first; index < last; index += 1) wanted.push(index);
    const active = this.activeKey === null ? -1 : this.indexOf(this.activeKey);
    if (active >= 0 && active < first) wanted.unshift(active);
    if (active >= last) wanted.push(active);
    const keys = wanted.map((index) => this.keyOf(items[index]));
    this.release(keys);
    this.rows = wanted.map((index, at) => {
      const known = this.nodes.get(keys[at]);
      const row = known || this.take(keys[at], items[index]);
      if (!known || this.changed) row.bind(items[index], index);
      return row;
    });
    this.changed = false;
    while (this.spare.length > SPARE_ROWS) this.spare.pop().remove();
    for (const row of this.spare) show(row, false);
    const height = `${items.length * rowHeight}px`;
    if (this.body.style.height !== height) this.body.style.height = height;
  }

  /** Puts the rows in the order on the screen, for screen readers and copying. */
  order() {
    let after = null;
    for (const row of this.rows) {
      let place = after ? after.nextSibling : this.body.firstChild;
      if (place && row === place.nextSibling) {
        this.put(place, null); // move the removed row rather than all following ones
        place = row;
      }
      if (row !== place) this.put(row, place);
      after = row;
    }
  }

  /** Releases rows for reuse, in their order: if all items change, each row stays in its place. */
  release(keys) {
    const wanted = new Set(keys);
    for (const row of this.rows) {
      if (wanted.has(row.key)) continue;
      this.nodes.delete(row.key);
      this.spare.push(row);
    }
  }

  take(key, item) {
    const row = this.spare.shift() || this.body.appendChild(this.makeRow(item));
    row.key = key;
    this.nodes.set(key, row);
    show(row, true);
    return row;
  }

  /** Moves a row and restores its focus, which moving removes. */
  put(row, place) {
    const focus = row.contains(document.activeElement) ? document.activeElement : null;
    this.body.insertBefore(row, place);
    if (focus) focus.focus({ preventScroll: true });
  }

  makeRow(item) {
    const cells = this.columns.map((column, at) => {
      const content = column.make(item);
      const cell = content.isCell ? content : h('div', {}, content);
      cell.className = `cell col-${column.name}${column.narrow === undefined ? ' is-wide' : ''}`;
      setAttr(cell, 'role', 'gridcell');
      setAttr(cell, 'aria-colindex', at + 1);
      cell.update = content.update;
      cell.describe = content.describe;
      return cell;
    });
    const described = cells.filter((cell) => cell.describe);
    const row = h('div.table-row', { role: 'row', tabindex: '-1' }, cells);
    const writeKey = attrWriter(row, 'data-key');
    const writePicked = attrWriter(row, 'aria-selected');
    row.bind = (next, index) => {
      row.item = next;
      const key = this.keyOf(next);
      writeKey(key);
      if (row.index !== index) {
        row.index = index;
        row.style.transform = `translateY(${index * this.rowHeight}px)`;
        row.setAttribute('aria-rowindex', index + 2);
      } else if (row.height !== this.rowHeight) {
        row.style.transform = `translateY(${index * this.rowHeight}px)`;
      }
      row.height = this.rowHeight;
      for (const cell of cells) cell.update(next);
      if (!this.moving) for (const cell of described) cell.describe(next);
      if (this.isPicked) writePicked(this.isPicked(next) ? 'true' : 'false');
      const tabIndex = this.activeKey === key ? 0 : -1;
      if (row.tabIndex !== tabIndex) row.tabIndex = tabIndex;
    };
    for (const control of row.querySelectorAll(CONTROLS)) control.tabIndex = -1;
    return row;
  }

  // ------------------------------------------------------------------------------------------------ the keyboard

  focused(target) {
    const row = target.closest('.table-row');
    if (!row || !row.item) return;
    this.activeControl = controlsOf(row).indexOf(target);
    const key = this.keyOf(row.item);
    if (key === this.activeKey) return;
    const before = this.nodes.get(this.activeKey);
    if (before) setAttr(before, 'tabindex', '-1');
    this.activeKey = key;
    setAttr(row, 'tabindex', '0');
  }

  /** Focuses the row of the active item, in the same control as in the previous row. */
  focusRow() {
    const row = this.nodes.get(this.activeKey);
    if (!row) return;
    const controls = controlsOf(row);
    const wanted = this.activeControl < 0 ? null : controls[Math.min(this.activeControl, controls.length - 1)];
    const control = this.activeControl;
    (wanted && !wanted.disabled ? wanted : row).focus({ preventScroll: true });
    this.activeControl = control; // even if it is disabled in this row
  }

  moveTo(index) {
    const bounded = Math.max(0, Math.min(this.items.length - 1, index));
    this.activeKey = this.keyOf(this.items[bounded]);
    const top = bounded * this.rowHeight;
    const room = this.node.clientHeight - (this.headHeight || HEAD_HEIGHT);
    if (top < this.node.scrollTop) this.node.scrollTop = top;
    else if (top + this.rowHeight > this.node.scrollTop + room) this.node.scrollTop = top + this.rowHeight - room;
    this.draw();
    this.focusRow();
    return this.items[bounded];
  }

  key(event) {
    if (event.target.closest('.table-head') || !this.items.length) return;
    const row = event.target.closest('.table-body .table-row');
    const index = row && row.item ? this.indexOf(this.keyOf(row.item)) : -1;
    if (index >= 0 && this.keyInRow(event, row, index)) event.preventDefault();
  }

  /** Returns whether the key was handled. */
  keyInRow(event, row, index) {
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: this.pageRows(), PageUp: -this.pageRows(), Home: -Infinity, End: Infinity };
    const step = steps[event.key];
    if (step !== undefined && !event.altKey) {
      const item = this.moveTo(index + step);
      if (event.shiftKey && this.onPick) this.onPick(item, true, row.item);
      return true;
    }
    if (event.key === 'ArrowRight' || event.key === 'ArrowLeft') return this.moveInRow(row, event.key === 'ArrowRight' ? 1 : -1);
    if (event.key === 'Enter' && event.target === row && this.onOpen) {
      this.onOpen(row.item);
      return true;
    }
    if (event.key === ' ' && this.onPick && !['A', 'BUTTON', 'SUMMARY'].includes(event.target.tagName)) {
      this.onPick(row.item, event.shiftKey);
      return true;
    }
    if (event.key.toLowerCase() === 'a' && (event.ctrlKey || event.metaKey) && this.onAll) {
      this.onAll();
      return true;
    }
    if (event.key === 'Escape' && this.onNone) return this.onNone();
    return false;
  }

  moveInRow(row, step) {
    const stops = [row, ...controlsOf(row).filter((control) => !control.disabled)];
    const at = stops.indexOf(document.activeElement) + step;
    if (at < 0 || at >= stops.length) return false;
    stops[at].focus({ preventScroll: true });
    return true;
  }
}

function controlsOf(row) {
  return [...row.querySelectorAll(CONTROLS)].filter((control) => control.offsetParent !== null || control.disabled);
}
