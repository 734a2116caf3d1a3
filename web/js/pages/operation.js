/** One batch operation: progress, failures by cause, each worker's result; cancel it, retry failed workers. */

import { FOR_THOUSANDS, get, post } from '../api.js';
import { confirmAction, emptyBox, errorBox, notify, notifyError } from '../dialogs.js';
import { fill, h, setAttr, setText, show } from '../dom.js';
import { formatClock, formatMoment } from '../format.js';
import { formatNumber, t } from '../i18n.js';
import { RESULTS, badCount, causeList, causeText, countsText, endedCount, isLive, meant, operationTitle, progressBar, resultChip, resultGlyph, statusChip } from '../operations.js';
import { actorName, reasonOf } from '../reasons.js';
import { acts } from '../rights.js';
import { go, link, replaceQuery } from '../router.js';
import { Table, textCell } from '../table.js';
import { lasted } from './operations.js';
import { pageHead } from './parts.js';

const PAGE_ITEMS = 200;
const REFRESH_MS = 1000; // while it runs, and only after changes

export function operationPage({ store, id, query }) {
  let chosen = readResult(query);
  let limit = PAGE_ITEMS;
  let shownAs = null; // the filter and the counts for which the items on the page were loaded
  let loading = false;
  let timer = null;
  let left = false; // whether the page was left during a request

  const title = h('span');
  const chip = statusChip();
  const cancel = h('button.button', { type: 'button', on: { click: () => cancelIt() } }, t('operations.cancel'));
  const retry = h('button.button.primary', { type: 'button', on: { click: () => retryIt(false) } });
  const rest = h('button.button', { type: 'button', on: { click: () => retryIt(true) } }, t('operations.retry_rest'));
  const bar = progressBar();
  const done = h('p.operation-done', { role: 'status' });
  const counts = h('p.muted');
  const facts = new Map(['selector', 'actor', 'reason', 'begun', 'lasted', 'pace', 'retry_of', 'note'].map((name) => [name, fact(name)]));
  const causes = causeList();
  const causesPanel = h('section.panel', { 'aria-labelledby': 'causes-title' }, h('h2', { id: 'causes-title' }, t('operations.causes')), causes);
  const facets = RESULTS.map((result) => resultFacet(result, toggle));
  const table = new Table({ label: t('operations.items'), kind: 'items-table', columns: columns(), keyOf: (item) => item.worker_id });
  const more = h('button.button', { type: 'button', hidden: true, on: { click: () => showMore() } }, t('events.more'));
  const trouble = h('div');
  const missing = emptyBox(t('operations.missing'), h('p', {}, h('a', { href: link('operations') }, t('operations.to_list'))));
  const full = h(
    'div.operation',
    {},
    h('section.panel.operation-progress', { 'aria-label': t('operations.result') }, done, bar, counts),
    h('div.columns', {}, causesPanel, h('section.panel', { 'aria-labelledby': 'facts-title' }, h('h2', { id: 'facts-title' }, t('operations.facts')), h('dl.facts', {}, [...facts.values()]))),
    h('div.facets', { role: 'group', 'aria-label': t('operations.filter') }, facets),
    trouble,
    table.node,
    more,
  );
  const head = pageHead(title, chip, h('span.spring'), acts(h('span.head-buttons', {}, cancel, retry, rest)));
  head.prepend(h('a.back', { href: link('operations') }, t('operations.to_list')));
  const node = h('div.page', {}, head, missing, full);

  function update() {
    const operation = store.operations.get(id);
    show(missing, store.loaded.has('operations') && !operation);
    show(full, Boolean(operation));
    for (const one of [chip, cancel, retry, rest]) show(one, Boolean(operation));
    if (!operation) return;
    const bad = badCount(operation);
    const live = isLive(operation);
    setText(title, operationTitle(operation));
    chip.update(operation);
    show(cancel, live);
    cancel.disabled = operation.status !== 'running';
    show(retry, !live && bad > 0);
    setText(retry, t('operations.retry', { n: bad }));
    show(rest, !live && (operation.counts.cancelled || 0) > 0);
    bar.update(operation);
    setText(done, t('operations.progress', { some: endedCount(operation), all: operation.total }));
    setText(counts, countsText(operation));
    updateFacts(operation);
    causes.update(operation.causes);
    show(causesPanel, operation.causes.length > 0);
    for (const facet of facets) facet.update(operation.counts[facet.dataset.result] || 0, chosen.includes(facet.dataset.result));
    const wanted = question();
    if (wanted !== shownAs && !loading && timer === null) load(wanted);
  }

  function updateFacts(operation) {
    const note = [reasonOf(operation, 'note'), operation.joined ? t('operations.joined', { n: operation.joined }) : '', operation.left ? t('operations.left', { n: operation.left }) : ''];
    const values = {
      selector: meant(operation),
      actor: actorName(operation.actor),
      reason: operation.reason,
      begun: formatMoment(operation.created_at),
      lasted: lasted(operation),
      pace: operation.max_failures ? t('operations.pace_limited', { n: operation.concurrency, limit: operation.max_failures }) : t('operations.pace', { n: operation.concurrency }),
      retry_of: operation.retry_of || '',
      note: note.filter(Boolean).join('; '),
    };
    for (const [name, row] of facts) row.update(values[name]);
  }

  const filter = () => JSON.stringify([chosen, limit]);
  const question = () => `${filter()} ${JSON.stringify(store.operations.get(id).counts)}`;

  /** Loads the items; again once the live counts differ, and at once if the filter changed meanwhile. */
  async function load(asked) {
    const askedFilter = filter();
    loading = true;
    try {
      const parameters = new URLSearchParams({ limit: String(limit), result: chosen.join(',') });
      const answer = await get(`/api/operations/${encodeURIComponent(id)}?${parameters}`);
      if (filter() === askedFilter) {
        table.setItems(answer.items);
        show(more, answer.items_total > answer.items.length);
      }
      fill(trouble);
    } catch (error) {
      fill(trouble, errorBox(error, () => reload()));
    } finally {
      shownAs = asked;
      loading = false;
    }
    if (left) return;
    if (filter() === askedFilter) timer = setTimeout(nextTurn, REFRESH_MS);
    else update();
  }

  function nextTurn() {
    timer = null;
    update();
  }

  function reload() {
    clearTimeout(timer);
    timer = null;
    shownAs = null;
    update();
  }

  function toggle(result) {
    chosen = chosen.includes(result) ? chosen.filter((one) => one !== result) : [...chosen, result];
    limit = PAGE_ITEMS;
    replaceQuery({ result: chosen.join(',') });
    reload();
  }

  function showMore() {
    limit *= 5;
    reload();
  }

  function setQuery(next) {
    chosen = readResult(next);
    reload();
  }

  async function cancelIt() {
    const waiting = store.operations.get(id).counts.waiting || 0;
    const sure = await confirmAction({ title: t('operations.cancel_title'), detail: [t('operations.cancel_detail', { n: waiting })], action: t('operations.cancel'), danger: true });
    if (!sure) return;
    try {
      await post(`/api/operations/${encodeURIComponent(id)}/cancel`, {}, FOR_THOUSANDS);
      notify(t('operations.cancel_done'));
    } catch (error) {
      notifyError(error, t('operations.cancel_failed'));
    }
  }

  async function retryIt(withRest) {
    const operation = store.operations.get(id);
    const n = badCount(operation) + (withRest ? operation.counts.cancelled || 0 : 0);
    const action = t(`action.${operation.command}`);
    const sure = await confirmAction({
      title: t('batch.title', { action, n }),
      detail: [t(`batch.means_${operation.command}`)],
      action: t('batch.go', { action, n }),
      danger: ['stop', 'kill'].includes(operation.command),
    });
    if (!sure) return;
    try {
      const begun = await post(`/api/operations/${encodeURIComponent(id)}/retry`, { rest: withRest }, FOR_THOUSANDS);
      go('operation', begun.operation_id);
    } catch (error) {
      notifyError(error, t('batch.failed', { action }));
    }
  }

  function unmount() {
    left = true;
    clearTimeout(timer);
  }

  return { node, title: t('nav.operations'), topics: ['operations'], update, setQuery, unmount };
}

const readResult = (query) => (query.get('result') || '').split(',').filter((one) => RESULTS.includes(one));

function fact(name) {
  const value = h('dd');
  const row = h(`div.fact.fact-${name}`, {}, h('dt', {}, t(`opfact.${name}`)), value);
  row.update = (text) => {
    show(row, Boolean(text));
    if (name === 'retry_of' && value.textContent !== text) fill(value, h('a', { href: link('operation', text) }, text));
    else setText(value, text);
  };
  return row;
}

function resultFacet(result, onToggle) {
  const count = h('span.facet-count');
  const facet = h(
    `button.facet.result-${result}`,
    { type: 'button', 'aria-pressed': 'false', data: { result }, on: { click: () => onToggle(result) } },
    h('span.glyph', { 'aria-hidden': 'true' }, resultGlyph(result)),
    t(`result.${result}`),
    count,
  );
  facet.update = (n, pressed) => {
    setText(count, formatNumber(n));
    setAttr(facet, 'aria-pressed', pressed ? 'true' : 'false');
    show(facet, n > 0 || pressed);
  };
  return facet;
}

function columns() {
  return [
    { name: 'result', label: t('operations.result'), make: resultChip },
    { name: 'worker', label: t('workers.worker'), make: workerCell },
    { name: 'why', label: t('workers.reason'), make: textCell((item) => (item.message ? causeText(item) : '')) },
    { name: 'ended', label: t('operations.ended'), make: textCell((item) => (item.ended_at ? formatClock(item.ended_at) : ''), { title: (item) => formatMoment(item.ended_at) }) },
  ];
}

function workerCell() {
  const name = h('a.strong');
  const cell = h('span', {}, name);
  cell.update = (item) => {
    setText(name, item.worker_id);
    setAttr(name, 'href', link('worker', item.worker_id));
  };
  return cell;
}
