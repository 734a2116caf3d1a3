/** Batch operations, newest first: command, selection, progress and result. */

import { emptyBox } from '../dialogs.js';
import { h, setAttr, setText, show } from '../dom.js';
import { ageS, formatAge, formatDuration, formatMoment, toMs } from '../format.js';
import { t } from '../i18n.js';
import { countsText, isLive, meant, operationTitle, progressBar, statusChip } from '../operations.js';
import { actorName } from '../reasons.js';
import { link } from '../router.js';
import { Table, textCell } from '../table.js';
import { pageHead } from './parts.js';

export function operationsPage({ store }) {
  const count = h('span.count', { role: 'status' });
  const none = emptyBox(t('operations.none'), h('p', {}, h('a', { href: link('workers') }, t('operations.none_how'))));
  const table = new Table({ label: t('nav.operations'), kind: 'operations-table', columns: columns(), keyOf: (one) => one.operation_id });
  const node = h('div.page', {}, pageHead(t('nav.operations'), count), none, table.node);

  function update() {
    const all = newestFirst(store);
    table.setItems(all);
    show(none, store.loaded.has('operations') && all.length === 0);
    const running = all.filter(isLive).length;
    setText(count, store.loaded.has('operations') ? t('operations.count', { n: running, all: all.length }) : t('loading'));
  }

  return { node, title: t('nav.operations'), topics: ['operations'], update };
}

export function newestFirst(store) {
  return [...store.operations.values()].sort((a, b) => (toMs(b.created_at) ?? 0) - (toMs(a.created_at) ?? 0));
}

/** "12 s": the duration of an operation, so far or in total. */
export function lasted(operation) {
  const begun = ageS(operation.created_at) ?? 0;
  return formatDuration(operation.ended_at ? begun - (ageS(operation.ended_at) ?? 0) : begun);
}

function columns() {
  return [
    { name: 'status', label: t('operations.status'), make: statusChip },
    { name: 'what', label: t('operations.what'), make: whatCell },
    { name: 'progress', label: t('operations.result'), make: progressCell },
    { name: 'when', label: t('operations.when'), make: textCell((one) => formatAge(one.created_at), { title: (one) => formatMoment(one.created_at) }) },
    { name: 'actor', label: t('events.actor'), make: textCell((one) => actorName(one.actor)) },
    { name: 'reason', label: t('operations.reason'), make: textCell((one) => one.reason, { title: (one) => one.reason }) },
  ];
}

function whatCell() {
  const name = h('a.strong');
  const which = h('code.operation-selector');
  const cell = h('span.stacked', {}, name, which);
  cell.update = (operation) => {
    setText(name, operationTitle(operation));
    setAttr(name, 'href', link('operation', operation.operation_id));
    setText(which, meant(operation));
    setAttr(which, 'title', meant(operation));
  };
  return cell;
}

export function progressCell() {
  const bar = progressBar();
  const counts = h('span.operation-counts');
  const cell = h('span.stacked', {}, bar, counts);
  cell.update = (operation) => {
    bar.update(operation);
    setText(counts, countsText(operation));
  };
  return cell;
}
