/** One worker: its settings, its state and usage, its last end and the reason of its restart, and its log. */

import { Acknowledgements, attentionButtons } from '../acknowledge.js';
import { emptyBox } from '../dialogs.js';
import { h, setAttr, setText, show } from '../dom.js';
import { formatAge, formatBytes, formatDuration, formatMoment, formatPercent, formatSince } from '../format.js';
import { metricsOf } from '../chartkinds.js';
import { workerCharts } from '../chartpanel.js';
import { EventHistory } from '../history.js';
import { t } from '../i18n.js';
import { LogView, logQuery, readChosen } from '../logview.js';
import { link, readRoute, replaceQuery } from '../router.js';
import { exitInWords, isProblem, nextStartS, stateChip, stateName } from '../status.js';
import { actionButtons } from '../actions.js';
import { reasonOf } from '../reasons.js';
import { tabbed } from '../tabs.js';
import { ALWAYS } from '../timerange.js';
import { attemptsPanel } from './attempts.js';
import { commandText, eventList, pageHead, stateReason } from './parts.js';
import { specificationPanel } from './specification.js';
import { whyPanel } from './why.js';
import { askMove } from '../move.js';
import { acts, mayAct } from '../rights.js';
import { marksText, metricsText, progressText } from '../workercolumns.js';

const EVENTS_SHOWN = 50;

const FACTS = [
  ['reason', stateReason],
  ['host', null],
  ['moving', (w) => w.moving_to || ''],
  ['since', (w) => formatSince(w.since), (w) => formatMoment(w.since)],
  ['attempt', (w) => (w.attempt ? t('worker.attempt_restarts', { attempt: String(w.attempt), restarts: w.restarts || 0, all: w.restarts_total || 0 }) : '')],
  ['next_start', (w) => (w.state === 'backoff' && nextStartS(w) !== null ? t('worker.starts_in', { d: formatDuration(nextStartS(w)) }) : '')],
  ['progress', (w) => (typeof w.progress_percent === 'number' ? progressText(w) : '')],
  ['metrics', (w) => (w.metrics && w.metrics.length ? metricsText(w) : '')],
  ['usage', usageText],
  ['io', ioText],
  ['gpus', gpuText],
  ['health', (w) => (w.health ? t(`worker.health_${w.health.status}`, { detail: reasonOf(w.health, 'detail') }) : '')],
  ['suspect', (w) => reasonOf(w, 'suspect')],
  ['last_exit', (w) => exitInWords(w.last_exit), (w) => (w.last_exit && w.last_exit.at ? formatMoment(w.last_exit.at) : null)],
  ['gang', gangText, (w) => (w.gang ? reasonOf(w.gang) : null)],
  ['labels', (w) => Object.entries(w.labels || {}).map(([name, value]) => `${name}=${value}`).join(' ')],
  ['pid', (w) => (w.pid ? String(w.pid) : '')],
  ['agent', (w) => w.agent],
  ['seen', (w) => formatAge(w.last_seen), (w) => formatMoment(w.last_seen)],
]; // prettier-ignore

/** The phase of its gang, and its rank. */
function gangText({ gang }) {
  if (!gang) return '';
  const phase = t(`gang.${gang.phase}`);
  return gang.rank === null ? phase : t('worker.gang', { phase, rank: String(gang.rank), epoch: String(gang.epoch) });
}

export function workerPage({ store, live, id, query, kept }) {
  let mounted = false;
  let view = null; // the manager's complete view; the list's row until it is loaded
  const chip = stateChip();
  const marks = h('span.marks');
  const buttons = actionButtons({ labelled: true });
  const move = acts(h('button.button.small', { type: 'button', on: { click: () => askMove(store, view) } }, t('move.button')));
  const attention = attentionButtons({ labelled: true });
  const seen = new Acknowledgements(store, () => update());
  const summary = factList(move);
  const why = whyPanel(id);
  const events = eventList({ withWorker: false });
  const noEvents = h('p.muted', {}, t('worker.no_events'));
  const history = new EventHistory(store, () => update(), { page: EVENTS_SHOWN });
  const log = new LogView({ live, workers: [id], chosen: readChosen(query), kept, onChoose: (chosen) => replaceQuery({ tab: readRoute().query.get('tab'), ...logQuery(chosen) }) });
  const charts = workerCharts(id, [h('a.button.small', { href: link('compare', '', { w: id }) }, t('compare.with'))]);
  const attempts = attemptsPanel(id, store);
  const spec = specificationPanel(id);
  const config = configuration(spec.node);
  const tabs = tabbed({
    label: t('worker.tabs'),
    tabs: [
      { name: 'log', label: t('worker.tab_log'), panel: log.node },
      { name: 'attempts', label: t('attempts.title'), panel: attempts.node },
      { name: 'charts', label: t('worker.tab_charts'), panel: charts.node },
      { name: 'config', label: t('worker.tab_config'), panel: config },
    ],
    onShow: (name) => {
      if (name === 'log') readLog();
      if (name === 'charts') charts.start();
      if (name === 'attempts') attempts.start();
      if (name === 'config') spec.load(view, true);
    },
  });
  const missing = emptyBox(t('worker.missing', { worker: id }), h('p', {}, h('a', { href: link('workers') }, t('worker.to_list'))));
  missing.hidden = true;
  const content = h(
    'div.worker-columns',
    { hidden: true },
    h(
      'div.worker-side',
      {},
      why,
      attention,
      h('section.panel', { 'aria-label': t('worker.summary') }, summary),
      h('section.panel', { 'aria-labelledby': 'worker-events' }, h('h2', { id: 'worker-events' }, t('worker.events')), history.problem, noEvents, events, h('p.more', {}, h('a', { href: link('events', '', { worker: id }) }, t('worker.all_events')), ' · ', h('a', { href: link('recovery', id) }, t('recovery.to')))),
    ),
    tabs.node,
  );
  tabs.open(query.get('tab') || '');
  const loading = h('p.muted', {}, t('loading'));
  const back = h('a.back', { href: link('workers') }, t('nav.workers'));
  const node = h('div.page.fills.worker-page', {}, pageHead(id, chip, marks, h('span.spring'), buttons), loading, missing, content);
  node.firstChild.prepend(back);

  const unsubscribe = live.subscribe(`worker:${id}`, (frame) => {
    const [item] = frame.t === 'snap' ? frame.items : frame.set || [];
    if (item) view = { ...item, receivedMs: Date.now() };
    update();
  });

  function update() {
    const row = store.workers.get(id);
    const worker = row && (view || row);
    const loaded = store.loaded.has('workers');
    show(loading, !worker && !loaded);
    show(missing, !worker && loaded);
    show(content, Boolean(worker));
    show(chip, Boolean(worker));
    show(buttons, Boolean(worker));
    if (worker) {
      chip.update(worker);
      setText(marks, marksText(worker));
      buttons.update(worker);
      // An unchanged worker is not sent again; each heartbeat of its agent still counts.
      const agent = store.hosts.get(worker.agent);
      summary.update({ ...worker, last_seen: (agent && agent.last_seen) || worker.last_seen });
      log.update([worker]);
      charts.add(worker.usage, metricsOf(worker));
      config.update(view);
      attempts.update(worker);
      if (view && tabs.current() === 'config') spec.load(view);
      why.update(worker, agent);
      show(move, Boolean(view) && Boolean(agent) && agent.kind !== 'launcher' && !worker.moving_to);
      show(attention, isProblem(worker));
      attention.update([worker], seen.of(worker));
    }
    const own = history.within(ALWAYS, (event) => event.worker_id === id).slice(-EVENTS_SHOWN).reverse();
    events.update(own);
    show(noEvents, own.length === 0);
    setText(noEvents, t(history.loaded ? 'worker.no_events' : 'loading'));
  }

  /** Loads the log once its tab is open. */
  function readLog() {
    if (mounted && !log.started) log.start();
  }

  function started() {
    mounted = true;
    seen.load(id);
    if (tabs.current() === 'log') readLog();
    history.load({ worker: id });
  }

  function unmount() {
    unsubscribe();
    log.destroy();
    charts.destroy();
    why.destroy();
  }

  function setQuery(next) {
    tabs.open(next.get('tab') || '');
    log.setChosen(readChosen(next));
  }

  return { node, title: id, topics: ['workers', 'hosts', 'events'], update, started, unmount, setQuery, keep: () => log.keep() };
}

function usageText(worker) {
  const { usage } = worker;
  if (!usage) return worker.state === 'running' ? t('worker.no_usage') : '';
  const words = [t('worker.usage_text', { cpu: formatPercent(usage.cpu_percent), rss: formatBytes(usage.rss_bytes), n: usage.processes || 1 })];
  if (usage.pss_bytes != null) words.push(t('worker.pss_text', { pss: formatBytes(usage.pss_bytes) }));
  words.push(t('worker.threads_text', { n: usage.threads || 1 }));
  return words.join(t('worker.joint'));
}

function ioText({ usage }) {
  if (!usage || usage.read_bytes_per_s == null) return '';
  return t('worker.io_text', { read: formatBytes(usage.read_bytes_per_s), written: formatBytes(usage.written_bytes_per_s), fds: usage.fds ?? t('none') });
}

/** Its GPUs, their utilization, and the memory that it uses there. */
function gpuText({ usage }) {
  if (!usage || !usage.gpus || usage.gpus.length === 0) return '';
  return t('worker.gpu_text', { gpus: usage.gpus.join(', '), busy: formatPercent(usage.gpu_percent), memory: formatBytes(usage.gpu_memory_bytes) });
}

const CONFIG = [
  ['command', (w) => commandText(w.command)],
  ['desired', (w) => t(`desired.${w.desired}`)],
  ['declaration', (w) => t(w.undeclared ? 'config.undeclared' : w.restart_pending ? 'config.restart_pending' : 'config.declared')],
  ['host', (w) => w.host],
  ['home', (w) => (w.home ? t('config.lives_elsewhere', { home: w.home, n: w.moves || 0 }) : '')],
  ['agent', (w) => w.agent],
  ['epoch', (w) => String(w.epoch)],
  ['generation', (w) => String(w.generation)],
  ['attempt', (w) => String(w.attempt)],
]; // prettier-ignore

/** Its declared settings, as far as the manager shows them. */
function configuration(spec) {
  const rows = CONFIG.map(([name, read]) => {
    const value = h(name === 'command' ? 'code' : 'span');
    const row = h(`div.fact.config-${name}`, {}, h('dt', {}, t(`config.${name}`)), h('dd', {}, value));
    row.update = (worker) => {
      const text = read(worker) || '';
      setText(value, text);
      show(row, text !== '');
    };
    return row;
  });
  const panel = h('section.panel.configuration', { 'aria-label': t('worker.tab_config') }, h('dl.facts', {}, rows), spec, mayAct() ? null : h('p.muted.config-how', {}, t('config.how')));
  panel.update = (worker) => {
    if (worker) for (const row of rows) row.update(worker);
  };
  return panel;
}

/** Facts as a definition list, which uses no space if empty. */
/** `move`: a button beside the host. */
function factList(move) {
  const rows = FACTS.map(([name, read, title]) => {
    const value = name === 'host' ? h('a') : h(name === 'command' ? 'code' : 'span');
    const row = h(`div.fact.fact-${name}`, {}, h('dt', {}, t(`fact.${name}`)), h('dd', {}, value, name === 'host' ? [' ', move] : null));
    row.update = (worker) => {
      const text = name === 'host' ? worker.host || '' : read(worker) || '';
      setText(value, text);
      if (name === 'host') setAttr(value, 'href', link('host', worker.agent));
      if (title) setAttr(value, 'title', title(worker));
      show(row, text !== '');
    };
    return row;
  });
  const list = h('dl.facts', {}, rows);
  const unknown = h('p.unknown-note', { hidden: true });
  const box = h('div', {}, unknown, list);
  box.update = (worker) => {
    show(unknown, worker.state === 'unknown');
    if (worker.state === 'unknown') {
      setText(unknown, t('worker.unknown_note', { state: stateName(worker.last_known_state || 'unknown'), d: formatSince(worker.last_seen) }));
    }
    for (const row of rows) row.update(worker);
  };
  return box;
}
