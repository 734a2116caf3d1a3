/** The declaration of a worker: values that differ from the defaults, and the rest collapsed. Only names of its environment. */

import { get, workerPath } from '../api.js';
import { errorBox } from '../dialogs.js';
import { fill, h } from '../dom.js';
import { t } from '../i18n.js';
import { mayAct } from '../rights.js';
import { inventoryLines } from './inventorylines.js';
import { commandText } from './parts.js';

const FIRST = 'first';

/** `.load(state)`: requests the specification again if it may have changed, except while the user edits. */
export function specificationPanel(id) {
  const body = h('div');
  const node = h('div', {}, body);
  let asked = null;

  async function load() {
    try {
      const said = await get(`${workerPath(id)}/spec`);
      const rows = [...Object.entries(said.declared), ...(said.env_names.length ? [['env', said.env_names.map((name) => `${name}=…`).join('\n')]] : [])];
      fill(
        body,
        pendingList(said.pending),
        mayAct() ? inventoryLines(id, said) : null,
        h(
          'section.specification',
          { 'aria-labelledby': 'spec-title' },
          h('h2', { id: 'spec-title' }, t('spec.title')),
          said.inventory ? h('p.muted', {}, t('spec.inventory', { inventory: said.inventory }), said.source && !mayAct() ? [' · ', h('code', {}, `${said.source.file}:${said.source.line}`)] : null) : null,
          h('dl.facts', {}, rows.map(fact)),
          h('details', {}, h('summary', {}, t('spec.defaults', { n: Object.keys(said.defaults).length })), h('dl.facts', {}, Object.entries(said.defaults).map(fact))),
        ),
      );
    } catch (error) {
      asked = null;
      if (error.status !== 401 && error.status !== 404) fill(body, errorBox(error, load));
    }
  }

  return {
    node,
    load(state, again = false) {
      const key = state ? [state.generation, state.attempt, state.restart_pending].join(' ') : FIRST;
      if (asked === FIRST && state) asked = key; // requested before the rest of the worker was loaded
      if ((asked === key && !again) || body.contains(document.activeElement)) return;
      asked = key;
      load();
    },
  };
}

/** The changes that a restart would apply to the running process. */
function pendingList(pending) {
  if (!pending.length) return null;
  return h('section.change', { 'aria-labelledby': 'pending-change' }, h('h2', { id: 'pending-change' }, t('spec.pending')), h('ul.pending-lines', {}, pending.map((line) => h('li', {}, h('code', {}, line)))));
}

function fact([name, value]) {
  return h('div.fact', {}, h('dt', {}, h('code', {}, name)), h('dd', {}, h('code', {}, valueText(name, value))));
}

/** A value in a form similar to that of an inventory. */
function valueText(name, value) {
  if (name === 'command') return commandText(value);
  if (typeof value === 'string') return value || "''";
  if (value === null || typeof value !== 'object') return String(value);
  return lines(value, '').join('\n') || (Array.isArray(value) ? '[]' : '{}');
}

function lines(value, indent) {
  return Object.entries(value).flatMap(([name, one]) => {
    const key = Array.isArray(value) ? '-' : `${name}:`;
    if (one && typeof one === 'object' && Object.keys(one).length) return [`${indent}${key}`, ...lines(one, `${indent}  `)];
    return [`${indent}${key} ${one !== null && typeof one === 'object' ? (Array.isArray(one) ? '[]' : '{}') : String(one)}`];
  });
}
