/**
 * A table of keyed rows with explicit roles (its CSS grid changes shape with the width), for lists of at most some hundreds;
 * grid.js is for thousands. Independent of the content.
 */

import { attrWriter, h, keyed, setAttr, show, textWriter } from './dom.js';

const CONTROLS = 'a, button, input';

export class Table {
  /**
   * `columns`: [{name, label, sortable, head, make(item) -> cell content node with update(item), describe(item) or none}]; `head`: a node instead
   * of the label
   * `onSort(name)` is called when a sortable header is pressed.
   */
  constructor({ label, columns, keyOf, onSort = null, kind }) {
    this.columns = columns;
    this.keyOf = keyOf;
    this.items = [];
    this.headers = new Map();
    const head = h(
      'div.table-head',
      { role: 'rowgroup' },
      h('div.table-row', { role: 'row', 'aria-rowindex': '1' }, columns.map((column) => this.header(column, onSort))),
    );
    this.body = h('div.table-body', { role: 'rowgroup' });
    this.node = h(
      `div.table.${kind}`,
      { role: 'table', 'aria-label': label },
      head,
      this.body,
    );
    this.node.addEventListener('keydown', (event) => this.moveByKey(event));
  }

  header(column, onSort) {
    const content =
      column.head ||
      (column.sortable && onSort
        ? h('button.sort', { type: 'button', on: { click: () => onSort(column.name) } }, column.label)
        : h('span', {}, column.label));
    const cell = h(`div.cell.col-${column.name}`, { role: 'columnheader' }, content);
    this.headers.set(column.name, cell);
    return cell;
  }

  showSort(name, descending) {
    for (const [column, cell] of this.headers) {
      setAttr(cell, 'aria-sort', column === name ? (descending ? 'descending' : 'ascending') : null);
    }
  }

  setItems(items) {
    this.items = items;
    setAttr(this.node, 'aria-rowcount', items.length + 1);
    this.draw();
  }

  draw() {
    show(this.node, this.items.length > 0);
    keyed(this.body, this.items, this.keyOf, (item) => this.makeRow(item));
  }

  makeRow(item) {
    const cells = this.columns.map((column) => {
      const content = column.make(item);
      const cell = h(`div.cell.col-${column.name}`, { role: 'cell', data: { label: column.label } }, content);
      cell.update = (next) => {
        content.update(next);
        if (content.describe) content.describe(next);
      };
      return cell;
    });
    const row = h('div.table-row', { role: 'row' }, cells);
    row.update = (next) => cells.forEach((cell) => cell.update(next));
    return row;
  }

  /** Up and down move between rows, within the same control. */
  moveByKey(event) {
    if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
    const row = document.activeElement.closest('.table-body .table-row');
    if (!row) return;
    const target = event.key === 'ArrowDown' ? row.nextElementSibling : row.previousElementSibling;
    if (!target) return;
    event.preventDefault();
    const own = [...row.querySelectorAll(CONTROLS)].indexOf(document.activeElement);
    const controls = [...target.querySelectorAll(CONTROLS)];
    const next = controls[own] && !controls[own].disabled ? controls[own] : controls[0];
    if (next) next.focus();
  }
}

/** A cell with one text: `read(item)`. A grid uses the node itself as its cell, and calls `describe` once it does not scroll. */
export function textCell(read, { selector = 'span', title = null } = {}) {
  return () => {
    const node = h(selector);
    node.isCell = true;
    const write = textWriter(node);
    node.update = (item) => write(read(item));
    if (title) {
      const writeTitle = attrWriter(node, 'title');
      node.describe = (item) => writeTitle(title(item));
    }
    return node;
  };
}

/** The return value of a column's `make` for constant content. */
export function fixedCell(node) {
  node.update = () => {};
  return node;
}
