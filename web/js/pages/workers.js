/** All workers: filters, columns, order, selection, and the actions of each row. The address contains filters, order and columns. */

import { VERBS } from '../actions.js';
import { batch, batchBar } from '../batch.js';
import { completed } from '../completion.js';
import { emptyBox, notify } from '../dialogs.js';
import { attrWriter, debounced, h, setAttr, setText, show } from '../dom.js';
import { chosenChips, facetMenu } from '../facets.js';
import { FIELD_NAMES, filterQuery, filterRequest, isFiltered, readFilters, sideOf, withValue } from '../filters.js';
import { FleetList, readSort } from '../fleetlist.js';
import { Grid } from '../grid.js';
import { formatNumber, t } from '../i18n.js';
import { icon } from '../icons.js';
import { popover } from '../popover.js';
import { purgeButton } from '../purge.js';
import { go, link, replaceQuery } from '../router.js';
import { MAX_COMPARED, MAX_WORKERS, Selection } from '../selection.js';
import { completions, impossible } from '../selector.js';
import { GLYPHS, STATES, stateName } from '../status.js';
import { anyNumbers, choiceNames, columnLabel, gridColumns, isUsual, readColumns, rememberColumns, yieldingColumns } from '../workercolumns.js';
import { pageHead, workerTabs } from './parts.js';

const MENUS = ['host', 'group', 'label'];

const LOOK_MS = 1000;

export function workersPage({ store, query }) {
  let filters = readFilters(query);
  let sort = readSort(query.get('sort'));
  let columns = readColumns(query.get('cols'));
  let numbers = false; // whether any worker has numbers from its log
  let lookedMs = -LOOK_MS;
  let shownIds = [];
  const list = new FleetList(store.tables.workers);
  const selection = new Selection(() => drawSelection(true));

  const search = h('input.input.search', { type: 'search', 'aria-label': t('workers.filter'), placeholder: t('workers.filter_hint'), value: filters.text, data: { jump: '' } });
  const writeText = debounced(() => setFilter({ text: search.value.trim() }), 120);
  search.addEventListener('input', writeText);
  const completion = completed(search, t('workers.filter_suggestions'), (text) => completions(text, () => store.workers.values(), (n) => t('workers.suggested', { n })));
  const wrong = h('p.bad', { role: 'status', hidden: true });
  const facets = STATES.map((state) => stateFacet(state, (side) => setFilter({ facets: withValue(filters.facets, 'state', state, side) })));
  const menus = MENUS.map((field) =>
    facetMenu(field, {
      workers: () => store.workers.values(),
      filters: () => filters,
      onChoose: (value, side) => setFilter({ facets: withValue(filters.facets, field, value, side) }),
    }),
  );
  const chosen = chosenChips((field, value) => setFilter({ facets: withValue(filters.facets, field, value, '') }), MENUS);
  const clear = h('button.button.subtle', { type: 'button', on: { click: clearFilters } }, t('workers.clear'));
  const compareThese = h('button.button', { type: 'button', hidden: true, title: t('compare.these'), on: { click: () => compareIds(shownIds) } }, icon('chart'), t('compare.title'));
  const count = h('span.count', { role: 'status' });
  const everything = h('input.pick', { type: 'checkbox', 'aria-label': t('batch.pick_all'), title: t('batch.pick_all'), on: { change: () => (everything.checked ? selection.pickAll() : selection.clear()) } });
  const bar = batchBar({ verbs: VERBS, icon, onAct: act, onAll: () => selection.pickAll(), onClear: () => selection.clear(), onLogs: readLogs, onCompare: compare });
  const purge = purgeButton(store);
  const chooser = columnChooser(() => columns, setColumns);
  const grid = new Grid({
    label: t('nav.workers'),
    kind: 'workers-table',
    columns: gridColumns(columns, { everything, pickCell }),
    keyOf: (worker) => worker.worker_id,
    yielding: yieldingColumns(columns),
    onSort: (name) => setSort(sort === name ? `-${name}` : name),
    onOpen: (worker) => go('worker', worker.worker_id),
    onPick: (worker, range, from) => {
      if (from) selection.extend(worker.worker_id, from.worker_id, shownIds);
      else selection.pick(worker.worker_id, range || !selection.has(worker.worker_id), range, shownIds);
    },
    onAll: () => selection.pickAll(),
    onNone: () => {
      if (selection.count(shownIds) === 0) return false;
      selection.clear();
      return true;
    },
    isPicked: (worker) => selection.has(worker.worker_id),
  });
  const nothing = h('p.empty-title');
  const noMatch = h('div.empty', { hidden: true }, nothing, h('button.button', { type: 'button', on: { click: clearFilters } }, t('workers.clear')));
  const none = emptyBox(t('workers.none'), h('p', {}, h('a', { href: link('overview') }, t('workers.none_how'))));
  const node = h(
    'div.page.fills',
    {},
    pageHead(t('nav.workers'), workerTabs('workers'), count, h('span.spring'), purge),
    h('div.toolbar', {}, completion.node, menus.map((menu) => menu.node), chooser.node, compareThese, clear),
    h('div.facets', { role: 'group', 'aria-label': t('workers.states') }, facets),
    chosen,
    wrong,
    bar,
    noMatch,
    none,
    grid.node,
  );

  function address() {
    return { ...filterQuery(filters), sort: sort === 'worker' ? '' : sort, cols: isUsual(columns) ? '' : columns.join(',') };
  }

  function setFilter(changes) {
    replaceQuery({ ...address(), ...filterQuery({ ...filters, ...changes }) });
    if (selection.all) selection.clear(); // "all that match" referred to other filters
    filters = readFilters(new URLSearchParams(filterQuery({ ...filters, ...changes })));
    update();
  }

  function clearFilters() {
    writeText.cancel();
    search.value = '';
    const empty = Object.fromEntries(FIELD_NAMES.map((name) => [name, { in: [], out: [] }]));
    setFilter({ text: '', facets: empty });
    search.focus();
  }

  function setSort(next) {
    sort = next;
    replaceQuery(address());
    update();
  }

  function setColumns(next) {
    columns = next;
    rememberColumns(columns);
    replaceQuery(address());
    grid.setColumns(gridColumns(columns, { everything, pickCell, numbers }), yieldingColumns(columns));
    update();
  }

  /** Adds the columns of numbers with the first numbers, unless the user has selected columns. */
  function lookForNumbers() {
    if (numbers || performance.now() - lookedMs < LOOK_MS) return;
    lookedMs = performance.now();
    numbers = anyNumbers(store.workers.values());
    if (numbers && isUsual(columns)) grid.setColumns(gridColumns(columns, { everything, pickCell, numbers }));
  }

  function update() {
    lookForNumbers();
    if (list.update(filters, sort)) {
      shownIds = list.shown.map((worker) => worker.worker_id);
      grid.showSort(sort.replace(/^-/, ''), sort.startsWith('-'));
      grid.setItems(list.shown);
      drawFilters();
      drawSelection(false);
    } else {
      grid.refresh();
    }
    purge.update();
  }

  function drawFilters() {
    const loaded = store.loaded.has('workers');
    for (const facet of facets) facet.update(list.counts[facet.dataset.state] || 0, sideOf(filters.facets.state, facet.dataset.state));
    for (const menu of menus) menu.update();
    chosen.update(filters.facets);
    show(clear, isFiltered(filters));
    const bad = impossible(filters.conditions);
    show(wrong, Boolean(bad));
    setText(wrong, bad ? t('workers.no_such', bad) : '');
    show(noMatch, list.all > 0 && list.shown.length === 0);
    show(none, loaded && list.all === 0);
    setText(nothing, t('workers.no_match', { n: list.all }));
    setText(count, loaded ? t('workers.count', { some: list.shown.length, all: list.all }) : t('loading'));
  }

  function drawSelection(rows) {
    const picked = selection.count(shownIds);
    bar.update(picked, selection.all && selection.left.size === 0, shownIds.length);
    show(compareThese, picked === 0 && isFiltered(filters) && shownIds.length > 1 && shownIds.length <= MAX_COMPARED);
    everything.checked = selection.all && selection.left.size === 0;
    everything.indeterminate = picked > 0 && !everything.checked;
    if (rows) grid.refresh();
  }

  function act(verb) {
    const visible = Math.min(grid.visibleCount(), selection.count(shownIds));
    batch({ verb, ...selection.request(filterRequest(filters)), visible, onBegun: () => selection.clear() });
  }

  /** Opens the merged logs of the selected workers. */
  function readLogs() {
    const picked = shownIds.filter((id) => selection.has(id));
    if (picked.length > MAX_WORKERS) notify(t('logs.too_many', { n: MAX_WORKERS }));
    go('logs', '', { w: picked.slice(0, MAX_WORKERS).join(',') });
  }

  /** Opens the measurements of the selected workers in one chart. */
  function compare() {
    compareIds(shownIds.filter((id) => selection.has(id)));
  }

  function compareIds(ids) {
    if (ids.length > MAX_COMPARED) notify(t('compare.count', { n: ids.length, most: MAX_COMPARED }));
    go('compare', '', { w: ids.slice(0, MAX_COMPARED).join(',') });
  }

  /** The checkbox that selects a worker; with Shift, all from the last selected one to this one. */
  function pickCell() {
    const box = h('input.pick', { type: 'checkbox' });
    let id = '';
    box.addEventListener('click', (event) => selection.pick(id, box.checked, event.shiftKey, shownIds));
    const cell = h('label.pick-area', {}, box);
    cell.update = (worker) => {
      id = worker.worker_id;
      if (box.checked !== selection.has(id)) box.checked = selection.has(id);
    };
    const writeLabel = attrWriter(box, 'aria-label');
    cell.describe = (worker) => writeLabel(t('batch.pick_one', { worker: worker.worker_id }));
    return cell;
  }

  node.addEventListener('keydown', (event) => {
    if (event.defaultPrevented || event.target.closest('input:not([type=checkbox]), select, textarea, .popover-holder') || !shownIds.length) return;
    if (event.key === 'a' && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      selection.pickAll();
    } else if (event.key === 'Escape' && selection.count(shownIds) > 0) {
      selection.clear();
    }
  });

  function setQuery(next) {
    filters = readFilters(next);
    sort = readSort(next.get('sort'));
    if (selection.all) selection.clear();
    search.value = filters.text;
    update();
  }

  return { node, title: t('nav.workers'), topics: ['workers'], update, setQuery, unmount: () => grid.destroy() };
}

/** One state with its count: the first click includes it, the second excludes it, the third removes the filter. */
function stateFacet(state, onChoose) {
  const count = h('span.facet-count');
  const not = h('span.facet-not', { hidden: true, 'aria-hidden': 'true' }, '≠');
  const hint = h('span.hidden-text');
  let side = '';
  const facet = h(
    `button.facet.is-${state}`,
    { type: 'button', 'aria-pressed': 'false', data: { state }, on: { click: () => onChoose({ '': 'in', in: 'out', out: '' }[side]) } },
    not,
    h('span.glyph', { 'aria-hidden': 'true' }, GLYPHS[state]),
    h('span.facet-word', {}, stateName(state)),
    count,
    hint,
  );
  facet.update = (n, now) => {
    side = now;
    setText(count, formatNumber(n));
    setAttr(facet, 'aria-pressed', side === '' ? 'false' : side === 'in' ? 'true' : 'mixed');
    setText(hint, side === 'out' ? t('facet.excluded') : '');
    setAttr(facet, 'title', t(side === 'in' ? 'facet.then_out' : side === 'out' ? 'facet.then_off' : 'facet.then_in', { value: stateName(state) }));
    show(not, side === 'out');
    facet.classList.toggle('is-out', side === 'out');
    facet.classList.toggle('is-zero', n === 0 && side === '');
  };
  return facet;
}

function columnChooser(chosen, onChoose) {
  const boxes = choiceNames().map((name) => {
    const box = h('input', { type: 'checkbox', value: name });
    box.addEventListener('change', () => {
      const next = choiceNames().filter((one) => (one === name ? box.checked : chosen().includes(one)));
      if (next.length) onChoose(next);
      else box.checked = true; // at least one column must be shown
    });
    return box;
  });
  return popover({
    label: t('workers.columns'),
    kind: 'column-chooser',
    content: h('div.column-list', {}, boxes.map((box) => h('label', {}, box, ' ', columnLabel(box.value)))),
    onOpen: () => {
      for (const box of boxes) box.checked = chosen().includes(box.value);
      boxes[0].focus();
    },
  });
}
