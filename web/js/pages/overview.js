/** The overview: counts per state, problems, the fleet's load, the latest recoveries. */

import { Acknowledgements, KIND as ACKNOWLEDGED, attentionButtons, muteFor, seenLine } from '../acknowledge.js';
import { actionButtons, allowed } from '../actions.js';
import { get } from '../api.js';
import { byCause } from '../attention.js';
import { batch } from '../batch.js';
import { commands } from '../commands.js';
import { commandBox, emptyBox } from '../dialogs.js';
import { h, keyed, setAttr, setClass, setText, show } from '../dom.js';
import { compareNames, formatBytes, formatPercent, formatSince } from '../format.js';
import { EventHistory, eventsPath } from '../history.js';
import { formatNumber, t } from '../i18n.js';
import { icon } from '../icons.js';
import { isLive, operationTitle } from '../operations.js';
import { reasonOf } from '../reasons.js';
import { isOld, loadReleases } from '../releases.js';
import { acts } from '../rights.js';
import { link } from '../router.js';
import { GLYPHS, agentChip, isProblem, stateChip, stateName } from '../status.js';
import { ALWAYS } from '../timerange.js';
import { metricsText, progressText } from '../workercolumns.js';
import { newestFirst, progressCell } from './operations.js';
import { eventList, pageHead, pendingLaunchers, reasonText } from './parts.js';

const MAX_PROBLEMS = 50;
const MEMBERS_SHOWN = 3; // displayed members of a group, until it is expanded
const MEMBERS_MOST = 100;
const MAX_RECOVERIES = 8;
const MAX_PROGRESS = 6;
const RECOVERIES_ASKED = 200;
const TILE_ORDER = ['running', 'starting', 'backoff', 'failed', 'unknown', 'stopping', 'exited', 'stopped'];
const LOOPBACK = /^(localhost|127\.[\d.]+|\[::1\])$/;
const SILENT = ['unreachable', 'suspect'];

export function overviewPage({ store, session }) {
  const tiles = TILE_ORDER.map(stateTile);
  const figures = fleetFigures();
  const running = runningOperations();
  const progress = workersProgress();
  const pending = pendingLaunchers(store);
  const problems = h('ul.problem-list');
  const seen = new Acknowledgements(store, () => update());
  const muted = h('a.muted-note', { href: link('admin', 'notifications'), hidden: true });
  const firing = h('a.muted-note', { href: link('admin', 'notifications'), hidden: true });
  const unfolded = new Set(); // expanded groups
  const updateAll = () => update();
  const problemsMore = h('a.more', { href: link('workers', '', { state: 'failed,unknown,backoff' }), hidden: true });
  const calm = h('p.calm', {}, h('span.glyph', { 'aria-hidden': 'true' }, '●'), ' ', t('overview.no_problems'));
  const history = new EventHistory(store, () => update(), { page: RECOVERIES_ASKED });
  const recoveries = eventList();
  const noRecoveries = h('p.muted', {}, t('overview.no_recoveries'));
  const empty = emptyFleet(session.urls);
  const loading = h('p.muted', {}, t('loading'));
  const full = h(
    'div.overview',
    {},
    h('nav.tiles', { 'aria-label': t('overview.by_state') }, tiles),
    figures,
    pending,
    running,
    progress,
    h(
      'div.columns',
      {},
      h('section.panel', { 'aria-labelledby': 'problems-title' }, h('div.panel-head', {}, h('h2', { id: 'problems-title' }, t('overview.problems')), firing, muted), seen.history.problem, calm, problems, problemsMore),
      h('section.panel', { 'aria-labelledby': 'recoveries-title' }, h('h2', { id: 'recoveries-title' }, t('overview.recoveries')), history.problem, noRecoveries, recoveries, h('a.more', { href: link('recovery') }, t('recovery.to'))),
    ),
  );
  const node = h('div.page', {}, pageHead(t('nav.overview')), loading, empty, full);

  function update() {
    const hosts = store.agents();
    const fleet = summed(store.workers.values());
    loadReleases(hosts, update);
    pending.update();
    running.update(newestFirst(store).filter(isLive));
    const loaded = store.loaded.has('workers') && store.loaded.has('hosts');
    const isEmpty = loaded && store.workers.size === 0 && hosts.length === 0;
    show(loading, !loaded);
    show(empty, isEmpty && pending.hidden);
    show(full, loaded && !(isEmpty && pending.hidden));
    for (const tile of tiles) tile.update(fleet.counts);
    figures.update(hosts, store.workers.size, fleet.memory);
    progress.update(fleet.measured);
    updateProblems(fleet.problems, hosts);
    const latest = onceEach(history.within(ALWAYS).filter(isRecovery)).slice(-MAX_RECOVERIES).reverse();
    recoveries.update(latest);
    show(noRecoveries, latest.length === 0);
    setText(noRecoveries, t(!history.loaded ? 'loading' : history.complete ? 'overview.no_recoveries' : 'overview.no_recoveries_loaded'));
  }

  function updateProblems(workers, hosts) {
    const silent = hosts.filter((host) => SILENT.includes(host.agent_state));
    const unreachable = new Set(silent.map((host) => host.agent)); // their unknown workers are shown once, with the host
    const of = (worker) => worker.state === 'unknown' && unreachable.has(worker.agent);
    const lost = new Map();
    for (const worker of workers) if (of(worker)) lost.set(worker.agent, (lost.get(worker.agent) || 0) + 1);
    const groups = byCause(workers.filter((worker) => !of(worker)));
    const isHang = ({ rank }) => rank < 0;
    const single = (group) => (group.workers.length === 1 ? { worker: group.workers[0] } : { group });
    const found = [
      ...groups.filter(isHang).map(single),
      ...silent.sort((a, b) => compareNames(a.host, b.host)).map((host) => ({ host, lost: lost.get(host.agent) || 0 })),
      ...groups.filter((group) => !isHang(group)).map(single),
    ];
    const known = ({ group, worker }) => (group ? group.workers : worker ? [worker] : []).every((one) => seen.of(one)) && Boolean(group || worker);
    const ordered = [...found.filter((item) => !known(item)), ...found.filter(known)]; // acknowledged problems are last
    keyed(problems, ordered.slice(0, MAX_PROBLEMS), problemKey, (item) => (item.host ? hostProblem() : item.group ? groupProblem(unfolded, seen, updateAll) : workerProblem(seen)));
    show(calm, found.length === 0);
    show(problemsMore, found.length > MAX_PROBLEMS);
    setText(problemsMore, t('overview.more', { n: found.length - MAX_PROBLEMS }));
  }

  function started() {
    history.load({ cause: RECOVERY_CAUSES.join(',') });
    seen.load();
    countMutes();
    countFiring();
  }

  async function countFiring() {
    try {
      const { total } = await get('/api/alerts?limit=1');
      setText(firing, t('overview.firing', { n: total }));
      show(firing, total > 0);
    } catch {
      show(firing, false); // errors are shown on the page of notifications
    }
  }

  async function countMutes() {
    try {
      const active = (await get('/api/mutes')).mutes.filter((mute) => mute.active).length;
      setText(muted, t('overview.mutes', { n: active }));
      show(muted, active > 0);
    } catch {
      show(muted, false); // errors are shown on the page of mutes
    }
  }

  return { node, title: t('nav.overview'), topics: ['workers', 'hosts', 'operations', 'events'], update, started };
}

/** The first requests of the page, for a browser without recorded ones. */
export function overviewPaths() {
  return [eventsPath({ cause: RECOVERY_CAUSES.join(',') }, RECOVERIES_ASKED), eventsPath({ kind: ACKNOWLEDGED }), '/api/mutes', '/api/alerts?limit=1', '/api/releases'];
}

/** One pass over the fleet: counts by state, problems, memory in total, workers with known progress. */
function summed(workers) {
  const counts = {};
  const problems = [];
  const measured = [];
  let memory = 0;
  for (const worker of workers) {
    counts[worker.state] = (counts[worker.state] || 0) + 1;
    if (worker.usage) memory += worker.usage.rss_bytes || 0;
    if (isProblem(worker)) problems.push(worker);
    if (worker.state === 'running' && typeof worker.progress_percent === 'number') measured.push(worker);
  }
  return { counts, problems, memory, measured };
}

/** Batch operations in progress; hidden if there are none. */
function runningOperations() {
  const list = h('ul.running-operations');
  const box = h('section.panel', { hidden: true, 'aria-labelledby': 'running-title' }, h('h2', { id: 'running-title' }, t('operations.running')), list);
  box.update = (operations) => {
    keyed(list, operations, (one) => one.operation_id, runningOperation);
    show(box, operations.length > 0);
  };
  return box;
}

function runningOperation(operation) {
  const progress = progressCell();
  const item = h('li', {}, h('a.strong', { href: link('operation', operation.operation_id) }, operationTitle(operation)), progress);
  item.update = (next) => progress.update(next);
  return item;
}

/** The progress of running jobs, the next to finish first; hidden if none is known. */
function workersProgress() {
  const list = h('ul.worker-progress');
  const more = h('a.more', { href: link('workers', '', { state: 'running' }), hidden: true });
  const box = h('section.panel', { hidden: true, 'aria-labelledby': 'progress-title' }, h('h2', { id: 'progress-title' }, t('overview.progress')), list, more);
  box.update = (workers) => {
    const left = (worker) => worker.eta_s ?? Infinity;
    const soonest = workers.sort((a, b) => left(a) - left(b) || b.progress_percent - a.progress_percent || compareNames(a.worker_id, b.worker_id)).slice(0, MAX_PROGRESS);
    keyed(list, soonest, (worker) => worker.worker_id, workerProgress);
    show(more, workers.length > MAX_PROGRESS);
    setText(more, t('overview.more', { n: workers.length - MAX_PROGRESS }));
    show(box, workers.length > 0);
  };
  return box;
}

function workerProgress(worker) {
  const bar = meter();
  const text = h('span');
  const values = h('span.muted');
  const item = h('li', {}, h('a.strong', { href: link('worker', worker.worker_id) }, worker.worker_id), bar, text, values);
  item.update = (next) => {
    bar.update(next.progress_percent / 100);
    setText(text, progressText(next));
    setText(values, metricsText(next));
    setAttr(values, 'title', metricsText(next));
  };
  return item;
}

function problemKey(item) {
  if (item.group) return `group ${item.group.key}`;
  return item.host ? `host ${item.host.agent}` : `worker ${item.worker.worker_id}`;
}

/** The manager's causes of recoveries. */
export const RECOVERY_CAUSES = ['exit_code', 'signal', 'oom', 'health', 'start_timeout', 'not_started', 'lost', 'stop_all', 'fence', 'gang', 'agent_lost', 'reassigned', 'circuit_breaker', 'suspicion', 'failure'];
const RECOVERY_KINDS = ['recovery', 'agent_addresses', 'recovery_gave_up', 'takeover', 'reassigned', 'no_spare', 'task_waiting', 'task_gave_up', 'stop_all', 'circuit_breaker_open', 'circuit_breaker_closed', 'worker_failed'];

/** Whether an event is an automatic recovery, or an abandoned one, rather than an operator's command. */
export function isRecovery(event) {
  if (RECOVERY_KINDS.includes(event.kind)) return true;
  return ['backoff', 'failed'].includes(event.after) || (event.before === 'backoff' && event.after === 'starting');
}

/** Removes duplicates: a failure is recorded as a change of state and as a failure. */
export function onceEach(events) {
  const reported = new Set(events.filter((event) => event.after === 'failed').map((event) => `${event.worker_id} ${event.attempt}`));
  return events.filter((event) => event.kind !== 'worker_failed' || !reported.has(`${event.worker_id} ${event.attempt}`));
}

function stateTile(state) {
  const count = h('span.tile-count');
  const tile = h(
    `a.tile.is-${state}`,
    { href: link('workers', '', { state }) },
    count,
    h('span.tile-word', {}, h('span.glyph', { 'aria-hidden': 'true' }, GLYPHS[state]), ' ', stateName(state)),
  );
  tile.update = (counts) => {
    const n = counts[state] || 0;
    setText(count, formatNumber(n));
    setClass(tile, `tile is-${state}${n ? '' : ' is-zero'}`);
  };
  return tile;
}

function fleetFigures() {
  const names = ['hosts', 'workers', 'cpu', 'memory', 'worker_memory', 'gpu', 'gpu_memory'];
  const values = Object.fromEntries(names.map((name) => [name, h('dd')]));
  const meters = Object.fromEntries(['cpu', 'memory', 'gpu', 'gpu_memory'].map((name) => [name, meter()]));
  const oldLink = h('a', { href: link('hosts', '', { old: '1' }), hidden: true });
  const gpuLink = h('a', { href: link('gpus', '', { state: 'free' }) }, t('overview.free_gpus'));
  const boxes = Object.fromEntries(names.map((name) => [name, h('div', {}, h('dt', {}, t(`overview.${name}`), name === 'gpu' ? [' · ', gpuLink] : name === 'hosts' ? [' ', oldLink] : null), values[name], meters[name] || null)]));
  const list = h('dl.figures', {}, names.map((name) => boxes[name]));

  /** `part` of `whole` as text and as a bar; nothing if unknown. */
  function fillIn(name, text, part, whole) {
    setText(values[name], text);
    meters[name].update(whole ? part / whole : null);
  }

  list.update = (hosts, workers, workerMemory) => {
    const machines = distinctHosts(hosts);
    const connected = machines.filter((host) => host.agent_state === 'connected');
    const measured = connected.filter((host) => host.usage);
    const cpus = sum(measured, (host) => host.cpus || 0);
    const busy = sum(measured, (host) => (host.usage.cpu_percent || 0) * (host.cpus || 1));
    const units = cpus || measured.length;
    setText(values.hosts, t('overview.of', { some: connected.length, all: machines.length }));
    const outdated = hosts.filter(isOld).length;
    show(oldLink, outdated > 0);
    setText(oldLink, t('overview.old_agents', { n: outdated }));
    setText(values.workers, formatNumber(workers));
    fillIn('cpu', units ? (cpus ? t('overview.cpu_of', { percent: formatPercent(busy / units), cpus }) : formatPercent(busy / units)) : t('none'), busy, units * 100);
    const used = sum(measured, (host) => host.usage.memory_used_bytes || 0);
    const memory = sum(measured, (host) => host.memory_bytes || 0);
    fillIn('memory', measured.length ? ofAll(used, memory) : t('none'), used, memory);
    setText(values.worker_memory, formatBytes(workerMemory));
    const gpus = measured.filter((host) => host.gpus > 0);
    const count = sum(gpus, (host) => host.gpus);
    const gpuBusy = sum(gpus, (host) => (host.usage.gpu_percent || 0) * host.gpus);
    const gpuUsed = sum(gpus, (host) => host.usage.gpu_memory_used_bytes || 0);
    const gpuMemory = sum(gpus, (host) => host.usage.gpu_memory_total_bytes || 0);
    for (const name of ['gpu', 'gpu_memory']) show(boxes[name], count > 0);
    fillIn('gpu', count ? t('overview.gpu_of', { percent: formatPercent(gpuBusy / count), some: sum(gpus, (host) => host.usage.gpus_used || 0), all: count }) : '', gpuBusy, count * 100);
    fillIn('gpu_memory', ofAll(gpuUsed, gpuMemory), gpuUsed, gpuMemory);
  };
  return list;
}

function ofAll(used, all) {
  return all ? t('overview.of', { some: formatBytes(used), all: formatBytes(all) }) : formatBytes(used);
}

/** A thin bar under a figure; decoration only, because the figure contains the value. */
function meter() {
  const level = h('span.meter-level');
  const bar = h('span.meter', { 'aria-hidden': 'true' }, level);
  bar.update = (share) => {
    show(bar, share !== null);
    const width = `${Math.round(Math.min(1, share || 0) * 100)}%`;
    if (level.style.width !== width) level.style.width = width;
    level.classList.toggle('is-high', share >= 0.9);
  };
  return bar;
}

/** One entry per machine, because a deployed agent and launchers started by hand may share it, and each reports the whole machine. */
function distinctHosts(agents) {
  const machines = new Map();
  for (const agent of agents) {
    const known = machines.get(agent.host);
    if (!known || known.agent_state !== 'connected') machines.set(agent.host, agent);
  }
  return [...machines.values()];
}

function sum(items, read) {
  return items.reduce((total, item) => total + read(item), 0);
}

function workerProblem(seen) {
  const chip = stateChip();
  const name = h('a.strong');
  const where = h('span.muted');
  const reason = h('span.reason');
  const buttons = actionButtons();
  const more = attentionButtons();
  const seenBy = seenLine();
  const item = h('li', {}, chip, h('div.problem-what', {}, h('div', {}, name, ' ', where), reason, seenBy), h('div.problem-buttons', {}, buttons, more));
  item.update = ({ worker }) => {
    chip.update(worker);
    setText(name, worker.worker_id);
    setAttr(name, 'href', link('worker', worker.worker_id));
    setText(where, t('overview.on_since', { host: worker.host || t('none'), d: formatSince(worker.since) }));
    setText(reason, reasonText(worker));
    buttons.update(worker);
    buttons.describe(worker);
    const event = seen.of(worker);
    seenBy.update(event);
    more.update([worker], event);
  };
  return item;
}

/** Workers with one cause: its text, their number, one button for all, and their names. */
function groupProblem(unfolded, seen, onChange) {
  let now = null;
  const chip = stateChip();
  const title = h('strong.problem-title');
  const count = h('span.muted');
  const restart = acts(h('button.button.small', { type: 'button', on: { click: () => restartAll(now) } }, icon('restart'), h('span')));
  const attention = attentionButtons({ labelled: true });
  const members = h('ul.problem-members');
  const more = h('button.button.subtle.small', { type: 'button' });
  more.addEventListener('click', () => {
    if (!unfolded.delete(now.key)) unfolded.add(now.key);
    onChange();
  });
  const rest = h('a.more');
  const item = h('li.problem-group', {}, h('div.problem-head', {}, chip, h('div.problem-what', {}, title, count), h('div.problem-buttons', {}, restart, attention)), members, h('div', {}, more, ' ', rest));
  item.update = ({ group }) => {
    now = group;
    const n = group.workers.length;
    const open = unfolded.has(group.key);
    const shown = open ? Math.min(n, MEMBERS_MOST) : MEMBERS_SHOWN;
    chip.update(group.workers[0]);
    setText(title, group.title);
    setText(count, t('overview.group_count', { n, hosts: new Set(group.workers.map((worker) => worker.host)).size }));
    const able = group.workers.filter((worker) => allowed('restart', worker)).length;
    setText(restart.lastChild, t('overview.restart_these', { n: able }));
    show(restart, able > 0);
    const unseen = group.workers.filter((worker) => !seen.of(worker));
    attention.update(unseen.length ? unseen : group.workers, unseen.length === 0);
    keyed(members, group.workers.slice(0, shown).map((worker) => ({ worker })), problemKey, () => workerProblem(seen));
    show(more, n > MEMBERS_SHOWN);
    setText(more, open ? t('overview.fewer') : t('overview.show_all', { n: Math.min(n, MEMBERS_MOST) }));
    setAttr(more, 'aria-expanded', open ? 'true' : 'false');
    show(rest, open && n > MEMBERS_MOST);
    setText(rest, t('overview.more', { n: n - MEMBERS_MOST }));
    setAttr(rest, 'href', link('workers', '', { state: group.workers[0].state }));
  };
  return item;
}

function restartAll({ workers }) {
  const able = workers.filter((worker) => allowed('restart', worker)).map((worker) => worker.worker_id);
  batch({ verb: 'restart', selector: able.join('|'), q: '', visible: Math.min(able.length, MEMBERS_SHOWN), onBegun: () => {} });
}

function hostProblem() {
  const chip = agentChip();
  const name = h('a.strong');
  const where = h('span.muted');
  const reason = h('span.reason');
  const lost = h('a.lost-workers');
  let now = null;
  const mute = acts(h('button.icon-button', { type: 'button', title: t('ack.mute'), on: { click: () => muteFor([`host=${now.host}`]) } }, icon('mute')));
  const item = h('li', {}, chip, h('div.problem-what', {}, h('div', {}, name, ' ', where), reason), h('div.problem-buttons', {}, lost, mute));
  item.update = ({ host, lost: n }) => {
    now = host;
    setAttr(mute, 'aria-label', t('ack.on', { action: t('ack.mute'), worker: host.host }));
    chip.update(host.agent_state);
    setText(name, host.host);
    setAttr(name, 'href', link('host', host.agent));
    setText(where, t('overview.host_silent', { d: formatSince(host.last_seen) }));
    setText(reason, reasonOf(host));
    setText(lost, t('overview.lost_workers', { glyph: GLYPHS.unknown, n }));
    setAttr(lost, 'href', link('workers', '', { state: 'unknown', host: host.host }));
    show(lost, n > 0);
  };
  return item;
}

/** The first commands, and an address that works from other machines. `urls`: the addresses of the manager. */
function emptyFleet(urls) {
  const outside = [location.origin, ...urls].find((url) => !LOOPBACK.test(new URL(url).hostname));
  const origin = outside || location.origin;
  const reach = outside
    ? h('p.hint', {}, t('overview.empty_address'), ' ', h('code', {}, outside))
    : h('p.hint', {}, t('overview.empty_here_only'), ' ', h('code', {}, 'web.host: 0.0.0.0'));
  return emptyBox(
    t('overview.empty'),
    h('p', {}, t('overview.empty_init')),
    commandBox('invoke init ml@gpu01 ml@gpu02'),
    h('p', {}, t('overview.empty_deploy')),
    commandBox('invoke trust --hosts inventory.yaml'),
    commandBox('invoke deploy --hosts inventory.yaml'),
    h('p', {}, t('overview.empty_launcher')),
    commandBox(`./start_worker.sh --worker-id worker1 --manager-url ${origin} --command "python train.py"`),
    reach,
    h('p.hint', {}, t('overview.empty_token'), ' ', h('code', {}, commands('invoke token.create --name laptop'))),
    h('p.hint', {}, t('overview.empty_next')),
  );
}
