/** Components of several pages: page heads, filters, lists of events, the pending launchers. */

import { post } from '../api.js';
import { confirmAction, notify, notifyError } from '../dialogs.js';
import { h, keyed, setAttr, setText, show } from '../dom.js';
import { formatAge, formatClock, formatMoment } from '../format.js';
import { hasText, t } from '../i18n.js';
import { actorName, reasonOf } from '../reasons.js';
import { acts } from '../rights.js';
import { link } from '../router.js';
import { GLYPHS, nextStartS, stateName } from '../status.js';

export function pageHead(title, ...rest) {
  return h('header.page-head', {}, h('h1', { tabindex: '-1' }, title), ...rest);
}

/** The two views of logs of several workers. */
export function logTabs(current) {
  const tab = (page, text) => h('a.tab', { href: link(page), 'aria-current': page === current ? 'page' : null }, text);
  return h('nav.tabs', { 'aria-label': t('logs.ways') }, tab('logs', t('logs.tab_follow')), tab('search', t('logs.tab_search')));
}

/** The two views of workers: individually, and by group. */
export function workerTabs(current) {
  const tab = (page, text) => h('a.tab', { href: link(page), 'aria-current': page === current ? 'page' : null }, text);
  return h('nav.tabs', { 'aria-label': t('workers.ways') }, tab('workers', t('nav.workers')), tab('groups', t('nav.groups')));
}

/** A labelled select whose options follow the data. `onPick(value)`; "": all. */
export function pickList(label, allLabel, onPick) {
  const select = h('select.input', { 'aria-label': label, on: { change: () => onPick(select.value) } });
  select.update = (values, chosen) => {
    const wanted = ['', ...values];
    if (chosen && !wanted.includes(chosen)) wanted.push(chosen);
    const have = [...select.options].map((option) => option.value);
    if (have.join('\n') !== wanted.join('\n')) {
      select.replaceChildren(...wanted.map((value) => h('option', { value }, value || allLabel)));
    }
    if (select.value !== (chosen || '')) select.value = chosen || '';
  };
  return select;
}

/** The reason of a worker's state, the most important one first. */
export function reasonText(worker) {
  if (worker.health && worker.health.status === 'failing') return t('worker.health_failing', { detail: reasonOf(worker.health, 'detail') });
  return reasonOf(worker, 'suspect') || stateReason(worker);
}

/** The reason of its state; its restart is announced with the time that is left, which the state shows too. */
export function stateReason(worker) {
  return reasonOf(worker, 'reason', worker.state === 'backoff' ? nextStartS(worker) : null);
}

export function kindName(kind) {
  return hasText(`event.${kind}`) ? t(`event.${kind}`) : kind;
}

/** "running → backoff" with glyphs, or nothing when no state changed. */
export function transition(before, after) {
  if (!after || before === after) return '';
  return before ? `${changeName(before)} → ${changeName(after)}` : changeName(after);
}

/** The name of a worker's state, an agent's state, or another changed value. */
function changeName(state) {
  if (GLYPHS[state]) return `${GLYPHS[state]} ${stateName(state)}`;
  return hasText(`agent.${state}`) ? t(`agent.${state}`) : state;
}

/** A compact list of events, newest first. `.update(events)`. */
export function eventList({ withWorker = true } = {}) {
  const list = h('ol.event-list');
  list.update = (events) => keyed(list, events, (event) => event.seq, (event) => eventItem(event, withWorker));
  return list;
}

function eventItem(event, withWorker) {
  const age = h('time.event-time', { title: formatMoment(event.at) });
  const what = h('span.event-what', {}, transition(event.before, event.after) || kindName(event.kind));
  if (event.after) what.classList.add(`text-${event.after}`);
  const who = withWorker && event.worker_id ? h('a', { href: link('worker', event.worker_id) }, event.worker_id) : null;
  const where = withWorker && !event.worker_id && event.host ? h('span', {}, event.host) : null;
  const reason = event.reason ? h('span.event-reason', {}, reasonOf(event)) : null;
  // the runner reports each change of state; only other actors are shown
  const actor = event.actor && event.actor !== 'runner' ? h('span.event-actor', {}, t('events.by', { actor: actorName(event.actor) })) : null;
  const item = h('li', {}, age, h('div', {}, h('div.event-line', {}, who, where, what, actor), reason));
  item.update = () => setText(age, formatClock(event.at));
  return item;
}

/**
 * Launchers that were started by hand on another machine and wait for approval; hidden if there are none.
 * `.update()` draws them from the store.
 */
export function pendingLaunchers(store) {
  const list = h('ul.pending-list');
  const title = h('h2', { id: 'pending-title' });
  const box = h('section.panel.pending', { hidden: true, 'aria-labelledby': 'pending-title' }, title, h('p.muted', {}, t('pending.explain')), list);
  box.update = () => {
    const waiting = store.pending();
    setText(title, t('pending.title', { n: waiting.length }));
    keyed(list, waiting, (agent) => `${agent.agent} ${agent.fingerprint}`, pendingItem);
    show(box, waiting.length > 0);
  };
  return box;
}

function pendingItem(agent) {
  const seen = h('span.muted');
  const approve = h('button.button.primary', { type: 'button' }, t('pending.approve'));
  const deny = h('button.button', { type: 'button' }, t('pending.deny'));
  approve.addEventListener('click', () => decide('approve', agent));
  deny.addEventListener('click', () => decide('deny', agent));
  setAttr(approve, 'aria-label', t('pending.approve_on', { id: agent.worker_id }));
  setAttr(deny, 'aria-label', t('pending.deny_on', { id: agent.worker_id }));
  const item = h(
    'li',
    { data: { agent: agent.agent } },
    h(
      'div.pending-facts',
      {},
      h('strong', {}, agent.worker_id),
      h('span', {}, t('pending.from', { host: agent.host || t('none'), address: agent.address || t('none') })),
      agent.command ? h('code', {}, commandText(agent.command)) : null,
      h('span', {}, t('pending.fingerprint'), ' ', h('code.fingerprint', {}, agent.fingerprint)),
      seen,
    ),
    acts(h('div.pending-buttons', {}, approve, deny)),
  );
  item.update = (next) => setText(seen, t('pending.seen', { d: formatAge(next.last_seen) }));
  return item;
}

async function decide(verb, agent) {
  const name = agent.worker_id;
  const sure = await confirmAction({
    title: t(`pending.${verb}_title`, { id: name }),
    detail: [t(`pending.${verb}_detail`, { fingerprint: agent.fingerprint })],
    action: t(`pending.${verb}`),
    danger: verb === 'deny',
  });
  if (!sure) return;
  try {
    // with the fingerprint, so that exactly the shown launcher is approved if another one claims the same name
    // meanwhile
    await post(`/api/agents/${encodeURIComponent(agent.agent)}/${verb}`, { fingerprint: agent.fingerprint });
    notify(t(`pending.${verb}_done`, { id: name }));
  } catch (error) {
    notifyError(error, t('pending.failed', { id: name }), () => decide(verb, agent));
  }
}

export function commandText(command) {
  return Array.isArray(command) ? command.map(quoteWord).join(' ') : command || '';
}

/** Quotes one word for a shell. */
export function quoteWord(word) {
  return /^[\w@%+=:,./-]+$/.test(word) ? word : `'${word.replaceAll("'", `'\\''`)}'`;
}
