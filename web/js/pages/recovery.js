/** Recoveries and their causes: workers that wait for their next start, restarts with their reasons, probed hosts. */

import { get } from '../api.js';
import { emptyBox, errorBox } from '../dialogs.js';
import { fill, h, keyed, setAttr, setText, show } from '../dom.js';
import { Follower, lastEvent } from '../follower.js';
import { compareNames, formatClock, formatDuration, formatMoment } from '../format.js';
import { EventHistory } from '../history.js';
import { t } from '../i18n.js';
import { lastWords } from '../lastwords.js';
import { reasonOf, restOfReason } from '../reasons.js';
import { link, replaceQuery } from '../router.js';
import { exitInWords, nextStartS, stateChip } from '../status.js';
import { timeStrip } from '../strip.js';
import { rangeEnd, rangePick, rangeQuery, rangeStart, readRange, widenButton } from '../timerange.js';
import { RECOVERY_CAUSES, isRecovery, onceEach } from './overview.js';
import { kindName, pageHead, reasonText, transition } from './parts.js';
import { whyPanel } from './why.js';

const SHOWN = 100;
const USUAL = '24h';
/** Causes that are not failures; any other cause leads to a recovery. `failure` in a query stands for all causes of a job's own failure. */
const NO_FAILURE = ['operator', 'finished', 'background', 'state', 'disk'];

export function recoveryPage({ store, id, query, kept }) {
  let chosen = { worker: id, ...readRange(query, USUAL) };
  let limit = kept ? kept.limit : SHOWN;
  let widening = null;
  let incidents = [];
  let gone = false;
  const why = chosen.worker ? whyPanel(chosen.worker) : null;

  const history = new EventHistory(store, () => update());
  const range = rangePick(chosen, (value) => setFilter(value));
  const whose = chosen.worker ? h('a.button', { href: link('recovery', '', rangeQuery(chosen, USUAL)) }, t('recovery.all')) : null;
  const count = h('span.count', { role: 'status' });
  const waiting = h('ul.waiting-list');
  const waitingPanel = h('section.panel', { 'aria-labelledby': 'waiting-title' }, h('h2', { id: 'waiting-title' }, t('recovery.waiting')), waiting);
  const hosts = h('ul.incident-list');
  const hostsTrouble = h('div');
  const hostsPanel = h('section.panel', { 'aria-labelledby': 'incidents-title' }, h('h2', { id: 'incidents-title' }, t('recovery.hosts')), hostsTrouble, hosts);
  const strip = timeStrip();
  const list = h('ol.restart-list');
  const more = h('button.button', { type: 'button', hidden: true, on: { click: showMore } }, t('events.more'));
  const widen = h('p');
  const none = emptyBox('', widen);
  const timeline = h('section.panel.timeline', { 'aria-labelledby': 'timeline-title' }, h('h2', { id: 'timeline-title' }, t('recovery.timeline')), strip, none, list, more);
  const head = pageHead(chosen.worker ? t('recovery.of', { worker: chosen.worker }) : t('nav.recovery'), count, h('span.spring'), whose, range);
  const side = h('div.recovery-side', {}, why, waitingPanel, chosen.worker ? null : hostsPanel);
  const both = h('div.recovery', {}, timeline, side);
  const node = h('div.page', {}, head, history.problem, both);

  function load() {
    history.load({ worker: chosen.worker, cause: RECOVERY_CAUSES.join(','), since: chosen.since, until: chosen.until });
  }

  async function loadIncidents() {
    try {
      incidents = (await get('/api/recoveries')).recoveries;
      fill(hostsTrouble);
    } catch (error) {
      // the badge shows if the manager is down; the data stays
      if (error.status && error.status !== 401) fill(hostsTrouble, errorBox(error, () => silent.load()));
    }
    if (!gone) update();
  }

  const silent = new Follower(loadIncidents, () => `${store.tables.hosts.version} ${lastEvent(store)}`);

  function setFilter(changes) {
    chosen = { ...chosen, ...changes };
    replaceQuery(rangeQuery(chosen, USUAL));
    range.update(chosen);
    limit = SHOWN;
    load();
    update();
  }

  function showMore() {
    const older = list.children.length < limit;
    limit *= 5;
    if (older) history.more();
    update();
  }

  function update() {
    const found = onceEach(history.within(chosen).filter((event) => isRestart(event) && (!chosen.worker || event.worker_id === chosen.worker)));
    strip.update(found, rangeStart(chosen), rangeEnd(chosen), (event) => event.after === 'failed' || /gave_up|failed/.test(event.kind));
    show(strip, found.length > 0);
    keyed(list, found.slice(-limit).reverse(), (event) => event.seq, restartItem);
    show(more, history.loaded && (found.length > limit || !history.complete));
    setText(more, t(found.length > limit ? 'events.more' : 'events.load_older'));
    show(none, history.loaded && found.length === 0);
    setText(none.firstChild, sinceText());
    const now = `${chosen.since} ${chosen.until}`;
    if (widening !== now) {
      widening = now;
      fill(widen, widenButton(chosen, (value) => setFilter(value)));
    }
    setText(count, history.loaded ? t(history.complete ? 'recovery.count' : 'recovery.count_part', { n: found.length }) : t('loading'));
    updateWaiting();
    silent.update();
    keyed(hosts, incidents, (one) => `${one.agent} ${one.opened}`, incidentItem);
    show(hostsPanel, incidents.length > 0 || hostsTrouble.children.length > 0);
    const alone = !why && waitingPanel.hidden && hostsPanel.hidden;
    show(side, !alone);
    setAttr(both, 'class', alone ? 'recovery is-alone' : 'recovery');
    if (why) {
      const worker = store.workers.get(chosen.worker);
      if (worker) why.update(worker, store.hosts.get(worker.agent));
    }
  }

  /** "No restarts since …": the beginning of the range, or of the loaded events. */
  function sinceText() {
    if (!history.complete) return t('recovery.none', { at: formatMoment(history.loadedSince()) });
    return chosen.since ? t('recovery.none', { at: formatMoment(rangeStart(chosen) / 1000) }) : t('recovery.none_on_record');
  }

  function updateWaiting() {
    const here = [...store.workers.values()].filter((worker) => worker.state === 'backoff' && (!chosen.worker || worker.worker_id === chosen.worker));
    here.sort((a, b) => (nextStartS(a) ?? Infinity) - (nextStartS(b) ?? Infinity) || compareNames(a.worker_id, b.worker_id));
    keyed(waiting, here.slice(0, SHOWN), (worker) => worker.worker_id, waitingItem);
    show(waitingPanel, here.length > 0);
  }

  function setQuery(next) {
    setFilter(readRange(next, USUAL));
  }

  function started() {
    load();
    if (!chosen.worker) silent.load();
  }

  function unmount() {
    gone = true;
    if (why) why.destroy();
  }

  return { node, title: t('nav.recovery'), topics: ['workers', 'hosts', 'events'], update, setQuery, started, unmount, keep: () => ({ limit }) };
}

/** Whether an event is a restart, at once or after a delay, or its abandonment; not a consequence such as the end of that delay. */
function isRestart(event) {
  if (event.kind !== 'worker_state') return isRecovery(event);
  return event.cause && !NO_FAILURE.includes(event.cause) && ['starting', 'backoff', 'failed'].includes(event.after);
}

/** One restart or abandonment: time, worker, cause and evidence. */
function restartItem(event) {
  const at = h('time.event-time', { title: formatMoment(event.at) });
  const exit = event.evidence && event.evidence.exit;
  const name = event.worker_id ? h('a.strong', { href: link('worker', event.worker_id) }, event.worker_id) : h('strong', {}, event.host || t('none'));
  const what = transition(event.before, event.after) || (event.after ? t('recovery.restarted') : kindName(event.kind));
  const change = h(`span.text-${event.after || 'none'}`, {}, what);
  const where = event.worker_id && event.host ? h('span.muted', {}, event.host) : null;
  const attempt = event.attempt ? h('span.muted', {}, t('events.attempt', { attempt: String(event.attempt) })) : null;
  const item = h(
    'li',
    {},
    at,
    h(
      'div.restart',
      {},
      h('div.event-line', {}, name, where, attempt, change),
      exit ? h('p.restart-exit', {}, exitInWords(exit)) : null,
      besides(event, exit) ? h('p.event-reason', {}, besides(event, exit)) : null,
      evidenceBox(event, exit),
      exit && event.worker_id ? lastWords(event.worker_id, exit.attempt) : null,
    ),
  );
  item.update = () => setText(at, formatClock(event.at));
  return item;
}

/** The rest of the reason without the end of the attempt, which is already shown if there is an exit record. */
function besides(event, exit) {
  return exit && event.reason_code && exit.reason_code === event.reason_code ? restOfReason(event) : reasonOf(event);
}

/** The manager's further evidence besides the exit record, unchanged. */
function evidenceBox(event, exit) {
  const { evidence } = event;
  if (!evidence) return null;
  const rest = typeof evidence === 'string' ? evidence : restOf(evidence, exit);
  return rest ? h('details.evidence', {}, h('summary', {}, t('recovery.evidence')), h('pre', { tabindex: '0' }, rest)) : null;
}

function restOf(evidence, exit) {
  const others = Object.entries(evidence).filter(([, value]) => value !== exit);
  return others.map(([name, value]) => `${name}: ${typeof value === 'string' ? value : JSON.stringify(value, null, 1)}`).join('\n');
}

function waitingItem() {
  const chip = stateChip();
  const name = h('a.strong');
  const left = h('span.countdown', { role: 'timer' });
  const why = h('span.reason');
  const item = h('li', {}, chip, h('div', {}, h('div.event-line', {}, name, left), why));
  item.update = (worker) => {
    chip.update(worker);
    setText(name, worker.worker_id);
    setAttr(name, 'href', link('worker', worker.worker_id));
    const seconds = nextStartS(worker);
    setText(left, seconds === null ? '' : seconds < 1 ? t('recovery.starts_now') : t('worker.starts_in', { d: formatDuration(seconds) }));
    setText(why, reasonText(worker));
  };
  return item;
}

/** The incident of a silent host, step by step. */
function incidentItem(first) {
  const state = h('span.chip');
  const lasted = h('span.muted');
  const steps = h('ol.steps');
  const item = h('li', {}, h('div.event-line', {}, h('strong', {}, first.host), state, lasted), h('details', { open: !first.ended }, h('summary', {}, t('recovery.steps')), steps));
  item.update = (incident) => {
    setText(state, incident.ended ? incident.outcome : t('recovery.open'));
    setAttr(state, 'class', incident.ended ? 'chip' : 'chip is-backoff');
    const begun = formatMoment(incident.opened);
    setText(lasted, incident.ended ? t('recovery.took', { at: begun, d: formatDuration(incident.duration_s) }) : t('recovery.since', { at: begun }));
    keyed(steps, incident.steps.map((step, place) => ({ ...step, place })), (step) => step.place, stepItem);
  };
  return item;
}

function stepItem() {
  const at = h('time.event-time');
  const text = h('span');
  const item = h('li', {}, at, text);
  item.update = (step) => {
    setText(at, formatClock(step.at));
    setText(text, reasonOf(step, 'text'));
  };
  return item;
}
