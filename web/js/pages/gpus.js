/** Every GPU of the fleet: free GPUs, the owners of the others, and their measurements. Requested again when the live feed reports changes of hosts. */

import { getAgain } from '../api.js';
import { gpuCharts } from '../chartpanel.js';
import { emptyBox, errorBox } from '../dialogs.js';
import { debounced, fill, h, keyed, setAttr, setText, show } from '../dom.js';
import { Follower } from '../follower.js';
import { compareNames, formatAge, formatBytes, formatPercent } from '../format.js';
import { Grid } from '../grid.js';
import { formatNumber, t } from '../i18n.js';
import { actorName, reasonOf } from '../reasons.js';
import { go, link, replaceQuery } from '../router.js';
import { textCell } from '../table.js';
import { pageHead } from './parts.js';

/** In the order of interest: available GPUs first, then faulty ones. */
const STATES = ['free', 'failed', 'hung', 'idle', 'nobody', 'other', 'lost', 'busy'];
const GLYPHS = { free: '○', failed: '✖', busy: '●', idle: '◐', hung: '!', other: '◆', nobody: '?', lost: '–' };

const free = (gpu) => (gpu.memory_total_bytes || 0) - (gpu.memory_used_bytes || 0);
const SORTS = {
  state: (gpu) => STATES.indexOf(gpu.state),
  host: null,
  busy: (gpu) => gpu.utilization_percent ?? -1,
  free,
  heat: (gpu) => gpu.temperature_c ?? -1,
  power: (gpu) => gpu.power_w ?? -1,
};

export function gpusPage({ store, query }) {
  let chosen = readQuery(query);
  let answer = null; // the manager's last response
  let gpus = null; // of that response
  let history = null; // the charts of one GPU, while open

  const search = h('input.input.search', { type: 'search', 'aria-label': t('gpus.filter'), placeholder: t('gpus.filter_hint'), value: chosen.q, data: { jump: '' } });
  const writeText = debounced(() => setFilter({ q: search.value.trim() }), 120);
  search.addEventListener('input', writeText);
  const facets = STATES.map((state) => facet(state, () => setFilter({ state: chosen.state === state ? '' : state })));
  const count = h('span.count', { role: 'status' });
  const problem = h('div');
  const grid = new Grid({
    label: t('nav.gpus'),
    kind: 'gpus-table',
    columns: columns((gpu) => (history = showHistory(gpu, () => (history = null)))),
    keyOf: (gpu) => `${gpu.agent}/${gpu.index}`,
    yielding: ['whose'],
    onSort: (name) => setFilter({ sort: chosen.sort === name ? `-${name}` : name }),
    onOpen: (gpu) => go('host', gpu.agent),
  });
  const none = emptyBox(t('gpus.none'));
  const nothing = h('p.empty-title');
  const clear = () => {
    writeText.cancel();
    search.value = '';
    setFilter({ q: '', state: '' });
    search.focus();
  };
  const noMatch = h('div.empty', { hidden: true }, nothing, h('button.button', { type: 'button', on: { click: clear } }, t('workers.clear')));
  const toolbar = h('div.toolbar', {}, search, h('div.facets', { role: 'group', 'aria-label': t('gpus.states') }, facets));
  const node = h('div.page.fills', {}, pageHead(t('nav.gpus'), count), toolbar, problem, noMatch, none, grid.node);

  async function ask() {
    try {
      answer = await getAgain('/api/gpus', answer);
      ({ gpus } = answer.body);
      if (history) history.add(gpus);
      fill(problem);
    } catch (error) {
      if (error.status && error.status !== 401) fill(problem, errorBox(error, () => live.load())); // the badge shows if the manager is down
    }
    draw();
  }

  const live = new Follower(ask, () => `${store.tables.hosts.version} ${store.tables.hosts.measured}`);

  function setFilter(changes) {
    chosen = { ...chosen, ...changes };
    replaceQuery({ ...chosen, sort: chosen.sort === 'state' ? '' : chosen.sort });
    draw();
  }

  function draw() {
    const all = gpus || [];
    const words = chosen.q.toLowerCase().split(/\s+/).filter(Boolean);
    const found = all.filter((gpu) => matches(gpu, words));
    const shown = sorted(found.filter((gpu) => !chosen.state || gpu.state === chosen.state), chosen.sort);
    for (const one of facets) one.update(found.filter((gpu) => gpu.state === one.dataset.state).length, chosen.state === one.dataset.state);
    grid.showSort(chosen.sort.replace(/^-/, ''), chosen.sort.startsWith('-'));
    grid.setItems(shown);
    show(toolbar, all.length > 0);
    show(none, gpus !== null && all.length === 0);
    show(noMatch, all.length > 0 && shown.length === 0);
    setText(nothing, t('gpus.no_match', { n: all.length }));
    setText(count, gpus === null ? t('loading') : t('gpus.count', { n: all.length, free: all.filter((gpu) => gpu.state === 'free').length }));
  }

  function setQuery(next) {
    chosen = readQuery(next);
    search.value = chosen.q;
    draw();
  }

  function unmount() {
    if (history) history.close();
    grid.destroy();
  }

  return { node, title: t('nav.gpus'), topics: ['hosts'], update: () => live.update(), setQuery, started: () => live.load(), unmount };
}

function readQuery(query) {
  const sort = query.get('sort') || '';
  const state = query.get('state') || '';
  return { q: query.get('q') || '', state: STATES.includes(state) ? state : '', sort: Object.hasOwn(SORTS, sort.replace(/^-/, '')) ? sort : 'state' };
}

function matches(gpu, words) {
  const text = [gpu.host, gpu.agent, gpu.name, ...gpu.workers, ...gpu.others, ...faultWords(gpu), t(`gpu.${gpu.state}`)].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}

function sorted(gpus, sort) {
  const of = SORTS[sort.replace(/^-/, '')];
  const sign = sort.startsWith('-') ? -1 : 1;
  const byName = (a, b) => compareNames(a.host, b.host) || a.index - b.index;
  return gpus.sort((a, b) => (of ? sign * (of(a) - of(b)) || free(b) - free(a) || byName(a, b) : sign * byName(a, b)));
}

function facet(state, onToggle) {
  const n = h('span.facet-count');
  const node = h(`button.facet.gpu-${state}`, { type: 'button', 'aria-pressed': 'false', data: { state }, title: t(`gpu.${state}_means`), on: { click: onToggle } }, h('span.glyph', { 'aria-hidden': 'true' }, GLYPHS[state]), t(`gpu.${state}`), n);
  node.update = (some, pressed) => {
    setText(n, formatNumber(some));
    setAttr(node, 'aria-pressed', pressed ? 'true' : 'false');
    node.classList.toggle('is-zero', some === 0 && !pressed);
  };
  return node;
}

/** `onHistory(gpu)`: opens its charts. */
function columns(onHistory) {
  const percent = (gpu) => formatPercent(gpu.utilization_percent);
  const power = (gpu) => (gpu.power_w === null ? t('none') : `${formatNumber(gpu.power_w)} W`);
  const heat = (gpu) => (gpu.temperature_c === null ? t('none') : `${formatNumber(gpu.temperature_c)} °C`);
  const memory = (gpu) => (gpu.memory_total_bytes === null ? t('none') : t('overview.of', { some: formatBytes(free(gpu)), all: formatBytes(gpu.memory_total_bytes) }));
  return [
    { name: 'state', label: t('workers.state'), width: '132px', narrow: '112px', sortable: true, make: stateCell },
    { name: 'host', label: t('workers.host'), width: 'minmax(110px, 1fr)', narrow: 'minmax(80px, .8fr)', fit: { text: (gpu) => gpu.host, weight: 600 }, sortable: true, make: hostCell },
    { name: 'gpu', label: t('gpus.gpu'), width: 'minmax(150px, 1.4fr)', narrow: 'minmax(100px, 1.2fr)', make: textCell((gpu) => t('host.gpu_name', { i: gpu.index, name: gpu.name || '' }), { title: (gpu) => gpu.name || null }) },
    { name: 'busy', label: t('gpus.busy'), width: '70px', narrow: '56px', sortable: true, make: textCell(percent) },
    { name: 'free', label: t('gpus.free_memory'), width: '150px', narrow: '128px', sortable: true, make: textCell(memory, { title: memory }) },
    { name: 'heat', label: t('gpus.heat'), width: '92px', sortable: true, make: textCell(heat) },
    { name: 'power', label: t('gpus.power'), width: '70px', sortable: true, make: textCell(power) },
    { name: 'whose', label: t('gpus.whose'), width: 'minmax(140px, 1.6fr)', narrow: '', fit: { text: (gpu) => gpu.workers.join('   ') }, make: whoseCell },
    { name: 'history', label: t('gpus.history'), width: '104px', narrow: '104px', make: () => historyCell(onHistory) },
  ];
}

function stateCell() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span.word');
  const chip = h('span.chip', {}, glyph, word);
  const cell = h('span', {}, chip);
  cell.update = ({ state }) => {
    setAttr(chip, 'class', `chip gpu-${state}`);
    setText(glyph, GLYPHS[state] || '?');
    setText(word, t(`gpu.${state}`));
    setAttr(chip, 'title', t(`gpu.${state}_means`));
  };
  return cell;
}

function historyCell(onHistory) {
  let shown = null;
  const button = h('button.button.small', { type: 'button', tabindex: '-1', on: { click: () => onHistory(shown) } }, t('gpus.history'));
  const cell = h('span', {}, button);
  cell.update = (gpu) => {
    shown = gpu;
    setAttr(button, 'aria-label', t('gpus.history_of', { i: gpu.index, host: gpu.host }));
  };
  return cell;
}

/** A dialog with the charts of a GPU. {add(gpus): current measurements of all GPUs, close()} */
function showHistory(gpu, onClose) {
  const charts = gpuCharts(gpu.agent, gpu.index);
  const close = h('button.button', { type: 'button' }, t('close'));
  const title = h('h2', { id: 'gpu-history' }, t('gpus.history_of', { i: gpu.index, host: gpu.host }), ' ', h('span.muted', {}, gpu.name));
  const dialog = h('dialog.dialog.wide', { 'aria-labelledby': 'gpu-history' }, title, charts.node, h('div.dialog-buttons', {}, close));
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => {
    charts.destroy();
    dialog.remove();
    onClose();
  });
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
  charts.start();
  return {
    add: (gpus) => charts.add({ gpus: gpus.filter((one) => one.agent === gpu.agent) }),
    close: () => dialog.close(),
  };
}

function hostCell() {
  const name = h('a.strong');
  const cell = h('span', {}, name);
  cell.update = (gpu) => {
    setText(name, gpu.host);
    setAttr(name, 'href', link('host', gpu.agent));
    setAttr(name, 'title', gpu.host);
  };
  return cell;
}

/** The workers that use the GPU, as links; other processes by their names; the reason if it cannot be read. */
function whoseCell() {
  const workers = h('span.gpu-workers');
  const rest = h('span.muted');
  const cell = h('span', {}, workers, rest);
  cell.update = (gpu) => {
    keyed(workers, gpu.workers, (id) => id, workerLink);
    const text = [...faultWords(gpu), gpu.trouble || gpu.others.join(', ')].filter(Boolean).join(t('worker.joint'));
    setText(rest, text);
    setAttr(cell, 'title', [...gpu.workers, text].filter(Boolean).join(', '));
  };
  return cell;
}

function faultWords(gpu) {
  const words = gpu.faults.map((fault) => (fault.at ? `${reasonOf(fault)} (${formatAge(fault.at)})` : reasonOf(fault)));
  if (gpu.cordoned) words.unshift(t('gpu.cordoned', { actor: actorName(gpu.cordoned.actor) }));
  if (gpu.throttled.length) words.push(t('gpu.throttled', { why: gpu.throttled.join(', ') }));
  return words;
}

function workerLink(id) {
  const item = h('a', { href: link('worker', id), tabindex: '-1' }, id);
  item.update = () => {};
  return item;
}
