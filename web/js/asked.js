/** A piece of a page that shows one answer of the API: a note while it is awaited, an error with a retry, then what it says. */

import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { t } from './i18n.js';

/** `ask()` promises what `draw(answer)` makes nodes of. {node, load(), stop()}: `load` again after each change. */
export function asked(ask, draw) {
  const node = h('div.asked', {}, h('p.muted', {}, t('loading')));
  let turn = 0;

  async function load() {
    const mine = (turn += 1);
    try {
      const answer = await ask();
      if (mine === turn) fill(node, draw(answer));
    } catch (error) {
      if (mine === turn && error.status !== 401) fill(node, errorBox(error, load));
    }
  }

  return { node, load, stop: () => (turn += 1) };
}

/** A table of what was answered; on a narrow screen a list in which each value has its name. `widths`: of its columns. */
export function listTable(table, widths, items) {
  table.node.classList.add('list-table');
  table.node.style.setProperty('--columns', widths);
  table.setItems(items);
  return table.node;
}
