/** A part of a page that shows one response of the API: a note while it is loading, an error with a retry, then the content. */

import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { t } from './i18n.js';

/** `ask()` returns a promise of the response; `draw(answer)` returns its nodes. {node, load(), stop()}: call `load` after each change. */
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

/** A table of the response; on a narrow screen a list in which each value has a label. `widths`: of its columns. */
export function listTable(table, widths, items) {
  table.node.classList.add('list-table');
  table.node.style.setProperty('--columns', widths);
  table.setItems(items);
  return table.node;
}
