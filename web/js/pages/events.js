/** The event history: actor, action, time, object and result. Newest first; an operation is one row; the address contains the filters. */

import { emptyBox } from '../dialogs.js';
import { debounced, fill, h, setAttr, setText, show } from '../dom.js';
import { formatClock, formatMoment, serverNowMs } from '../format.js';
import { operationRows } from '../eventrows.js';
import { EventHistory } from '../history.js';
import { hasText, t } from '../i18n.js';
import { icon } from '../icons.js';
import { countsText, meant, operationTitle, shownStatus } from '../operations.js';
import { actorName, codesOf, reasonOf } from '../reasons.js';
import { link, replaceQuery } from '../router.js';
import { timeStrip } from '../strip.js';
import { Table, textCell } from '../table.js';
import { rangeEnd, rangePick, rangeQuery, rangeStart, readRange, widenButton } from '../timerange.js';
import { kindName, pageHead, pickList, transition } from './parts.js';

const STEP = 200; // rows drawn initially, and with each "show more"
const OF_OPERATION = 100; // events of one operation that its expanded row shows
const BAD_KINDS = ['worker_failed', 'agent_unreachable', 'agent_suspect', 'warning', 'recovery_gave_up', 'task_gave_up', 'no_spare', 'gang_failed', 'circuit_breaker_open', 'stop_all', 'not_durable', 'archive_failing', 'host_disk_full', 'alert_rule', 'gpu_failed', 'gpu_fault', 'agent_restart_failed', 'agent_upgrade_failed'];
const FIELDS = { kind: 'kind', host: 'host', actor: 'actor', worker: 'worker_id' };
const NO_FILTER = { q: '', kind: '', reason_code: '', host: '', actor: '', worker: '', operation: '', since: '', until: '' };

export function eventsPage({ store, query, kept }) {
  let limit = kept ? kept.limit : STEP;
  let chosen = readQuery(query);
  let widening = null; // the range of the button that widens it
  const open = new Set(kept ? kept.open : []); // expanded operations

  const history = new EventHistory(store, () => update());
  const search = h('input.input.search', { type: 'search', 'aria-label': t('events.filter'), placeholder: t('events.filter_hint'), value: chosen.q, data: { jump: '' } });
  const writeText = debounced(() => setFilter({ q: search.value.trim() }), 250);
  search.addEventListener('input', writeText);
  const kinds = pickList(t('events.kind'), t('events.all_kinds'), (kind) => setFilter({ kind }));
  const reasons = pickList(t('events.reason_code'), t('events.all_reasons'), (code) => setFilter({ reason_code: code }));
  const hosts = pickList(t('workers.host'), t('workers.all_hosts'), (host) => setFilter({ host }));
  const actors = pickList(t('events.actor'), t('events.all_actors'), (actor) => setFilter({ actor }));
  const range = rangePick(chosen, (next) => setFilter(next));
  const clear = h('button.button.subtle', { type: 'button', on: { click: clearFilters } }, t('workers.clear'));
  const download = h('a.button', { download: 'events.jsonl', title: t('events.export_title') }, icon('down'), t('events.export'));
  const count = h('span.count', { role: 'status' });
  const only = h('ul.chosen', { 'aria-label': t('facet.chosen') });
  const strip = timeStrip();
  const table = new Table({ label: t('nav.events'), kind: 'events-table', columns: columns({ store, open, onToggle: toggle }), keyOf: (row) => row.key });
  const more = h('button.button', { type: 'button', hidden: true, on: { click: showMore } });
  const end = h('p.muted.events-end', { hidden: true });
  const widen = h('p');
  const none = emptyBox(t('events.none'), widen);
  const node = h(
    'div.page',
    {},
    pageHead(t('nav.events'), count, h('span.spring'), download),
    h('div.toolbar', {}, search, range, kinds, reasons, hosts, actors, clear),
    only,
    history.problem,
    strip,
    none,
    table.node,
    more,
    end,
  );

  function load() {
    return history.load(apiQuery(chosen), chosen.q);
  }

  /** Shows loaded events first, then stored ones. */
  function showMore() {
    if (table.items.length >= limit || history.complete) limit += STEP;
    else {
      limit += STEP;
      history.more();
    }
    update();
  }

  function toggle(operation) {
    if (!open.delete(operation)) open.add(operation);
    update();
  }

  function setFilter(changes) {
    chosen = { ...chosen, ...changes };
    replaceQuery({ ...chosen, ...rangeQuery(chosen) });
    range.update(chosen);
    limit = STEP;
    load();
    update();
  }

  function clearFilters() {
    writeText.cancel();
    search.value = '';
    setFilter(NO_FILTER);
    search.focus();
  }

  function update() {
    const words = chosen.q.toLowerCase().split(/\s+/).filter(Boolean);
    const all = history.within(chosen, (event) => fits(event, chosen));
    const found = words.length ? all.filter((event) => hasWords(event, words)) : all;
    strip.update(found, rangeStart(chosen), rangeEnd(chosen), isBad);
    show(strip, found.length > 0);
    const rows = chosen.operation ? found.map((event) => ({ key: event.seq, event })).reverse() : operationRows(found, open, OF_OPERATION);
    table.setItems(rows.slice(0, limit));
    fillPicks(all);
    const filtered = Object.keys(NO_FILTER).some((name) => chosen[name]);
    show(clear, filtered);
    showEnds(rows, found, filtered);
    drawOnly();
    setText(count, countText(found, all));
    setAttr(download, 'href', `/api/events?${new URLSearchParams(Object.entries({ ...apiQuery(chosen), q: chosen.q, format: 'jsonl' }).filter(([, value]) => value))}`);
  }

  /** Shows whether there are more stored events, this is all, or there are none; not only of the loaded ones. */
  function showEnds(rows, found, filtered) {
    const { loaded, complete } = history;
    show(more, loaded && (rows.length > limit || !complete));
    setText(more, t(rows.length > limit ? 'events.more' : 'events.load_older'));
    show(end, loaded && complete && found.length > 0 && rows.length <= limit);
    setText(end, t('events.end'));
    show(none, loaded && found.length === 0);
    const since = history.loadedSince();
    setText(none.firstChild, complete ? t(filtered ? 'events.no_match' : 'events.none') : t('events.none_loaded', { at: formatMoment(since) }));
    const now = `${chosen.since} ${chosen.until}`;
    if (widening !== now) {
      widening = now;
      fill(widen, widenButton(chosen, (value) => setFilter(value)));
    }
  }

  function countText(found, all) {
    if (!history.loaded) return t('loading');
    const values = { some: found.length, all: all.length, n: all.length };
    if (history.complete) return found.length === all.length ? t('events.count', values) : t('workers.count', values);
    return t(found.length === all.length ? 'events.count_newest' : 'events.count_part', { ...values, at: formatClock(history.loadedSince()) });
  }

  /** A filter for one worker or one operation, which is set by a link and not offered in a list. */
  function drawOnly() {
    const now = `${chosen.worker} ${chosen.operation}`;
    if (only.drawn === now) return;
    only.drawn = now;
    const chip = (name) => {
      const words = t(`events.only_${name}`, { [name]: chosen[name] });
      const drop = h('button.icon-button', { type: 'button', 'aria-label': t('facet.drop', { what: words }), on: { click: () => setFilter({ [name]: '' }) } }, icon('close'));
      return h('li.chosen-in', {}, h('span.chosen-words', {}, words), drop);
    };
    fill(only, ['worker', 'operation'].filter((name) => chosen[name]).map(chip));
    show(only, Boolean(chosen.worker || chosen.operation));
  }

  function fillPicks(events) {
    const distinct = (name) => [...new Set(events.map((event) => event[name]).filter(Boolean))].sort();
    kinds.update(distinct('kind'), chosen.kind);
    for (const option of kinds.options) if (option.value) setText(option, kindName(option.value));
    reasons.update([...new Set(events.flatMap(codesOf))].sort(), chosen.reason_code);
    hosts.update([...new Set(store.agents().map((agent) => agent.host))].sort(), chosen.host);
    actors.update(distinct('actor'), chosen.actor);
  }

  function setQuery(next) {
    chosen = readQuery(next);
    search.value = chosen.q;
    range.update(chosen);
    load();
    update();
  }

  return { node, title: t('nav.events'), topics: ['events'], update, setQuery, started: load, keep: () => ({ limit, open: [...open] }) };
}

function readQuery(query) {
  const read = (name) => query.get(name) || '';
  return { ...Object.fromEntries(['q', 'kind', 'reason_code', 'host', 'actor', 'worker', 'operation'].map((name) => [name, read(name)])), ...readRange(query) };
}

/** The query to the manager; words are searched here in the language of the page, and by the manager in all stored events. */
function apiQuery({ kind, reason_code, host, actor, worker, operation, since, until }) {
  return { kind, reason_code, host, actor, worker, operation, since, until };
}

function fits(event, chosen) {
  if (Object.entries(FIELDS).some(([name, field]) => chosen[name] && event[field] !== chosen[name])) return false;
  if (chosen.reason_code && !codesOf(event).some((code) => `${code}.`.startsWith(`${chosen.reason_code}.`))) return false;
  return !chosen.operation || Boolean(event.evidence && event.evidence.operation_id === chosen.operation);
}

function hasWords(event, words) {
  const text = [event.worker_id, event.host, event.reason, reasonOf(event), event.actor, actorName(event.actor), event.kind, kindName(event.kind), event.cause, event.before, event.after].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}

function isBad(event) {
  return BAD_KINDS.includes(event.kind) || ['failed', 'backoff', 'unknown'].includes(event.after);
}

function columns({ store, open, onToggle }) {
  const ofEvent = (make, ofOperation) => (row) => (row.operation && !row.event ? ofOperation(row) : make(row));
  const text = (read, readOperation, more = {}) => ofEvent(textCell((row) => read(row.event), more), textCell((row) => readOperation(row, store.operations.get(row.operation)), more));
  const time = { selector: 'time', title: (row) => formatMoment((row.event || row.last).at) };
  return [
    { name: 'time', label: t('events.time'), make: text((event) => formatClock(event.at), (row) => formatClock(row.last.at), time) },
    { name: 'kind', label: t('events.kind'), make: ofEvent(textCell((row) => kindName(row.event.kind)), (row) => foldButton(row, open, onToggle)) },
    { name: 'subject', label: t('events.subject'), make: ofEvent(subjectCell, (row) => operationCell(row, store)) },
    { name: 'change', label: t('events.change'), make: ofEvent(changeCell, textCell((row) => operationResult(row, store.operations.get(row.operation)))) },
    { name: 'why', label: t('workers.reason'), make: text((event) => reasonOf(event), (row, known) => (known ? known.reason : '')) },
    { name: 'actor', label: t('events.actor'), make: text((event) => actorName(event.actor), (row) => actorName(row.actor)) },
  ];
}

/** "181 events ▸": a button that expands the operation's events. */
function foldButton(row, open, onToggle) {
  const button = h('button.fold', { type: 'button', on: { click: () => onToggle(row.operation) } });
  button.update = (next) => {
    const unfolded = open.has(next.operation);
    setAttr(button, 'aria-expanded', unfolded ? 'true' : 'false');
    setText(button, t(unfolded ? 'events.fold' : 'events.unfold', { n: next.count }));
  };
  return button;
}

function operationCell(row, store) {
  const name = h('a.strong', { href: link('operation', row.operation) });
  const which = h('span.muted');
  const all = h('a', { href: link('events', '', { operation: row.operation }) }, t('events.all_of_operation'));
  const cell = h('span.subject', {}, name, ' ', which, ' ', all);
  cell.update = (next) => {
    const known = store.operations.get(next.operation);
    setText(name, known ? operationTitle(known) : next.operation);
    setText(which, known ? meant(known) : '');
  };
  return cell;
}

function operationResult(row, known) {
  if (!known) return '';
  const status = shownStatus(known);
  return t('exit.with_hint', { text: hasText(`opstatus.${status}`) ? t(`opstatus.${status}`) : status, hint: countsText(known) });
}

function subjectCell({ event }) {
  const host = event.host ? h('span.muted', {}, event.host) : null;
  const attempt = event.attempt ? h('span.muted', {}, t('events.attempt', { attempt: String(event.attempt) })) : null;
  const operation = event.evidence && event.evidence.operation_id;
  const other = operation ? h('a', { href: link('operation', operation) }, operation) : event.host ? h('strong', {}, event.host) : t('none');
  const cell = event.worker_id
    ? h('span.subject', {}, h('a.strong', { href: link('worker', event.worker_id) }, event.worker_id), ' ', host, ' ', attempt)
    : h('span.subject', {}, other);
  cell.update = () => {};
  return cell;
}

function changeCell({ event }) {
  const cell = h(`span.text-${event.after || 'none'}`, {}, transition(event.before, event.after));
  cell.update = () => {};
  return cell;
}
