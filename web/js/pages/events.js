/** Who did what, when, to what, and what came of it. Newest first; the filters live in the address. */

import { emptyBox } from '../dialogs.js';
import { debounced, fill, h, setAttr, setText, show } from '../dom.js';
import { formatClock, formatMoment, serverNowMs } from '../format.js';
import { EventHistory, RANGES, rangePick, rangeStart, widenButton } from '../history.js';
import { t } from '../i18n.js';
import { icon } from '../icons.js';
import { actorName, reasonOf } from '../reasons.js';
import { link, replaceQuery } from '../router.js';
import { timeStrip } from '../strip.js';
import { Table, textCell } from '../table.js';
import { kindName, pageHead, pickList, transition } from './parts.js';

const STEP = 200; // rows drawn at first, and with each "show more"
const BAD_KINDS = ['worker_failed', 'agent_unreachable', 'agent_suspect', 'warning', 'recovery_gave_up', 'task_gave_up', 'no_spare', 'gang_failed', 'circuit_breaker_open', 'stop_all', 'not_durable', 'host_disk_full', 'agent_restart_failed', 'agent_upgrade_failed'];

export function eventsPage({ store, query }) {
  let limit = STEP;
  let chosen = readQuery(query);
  let widening = null; // the range that the button for widening belongs to

  const history = new EventHistory(store, () => update());
  const search = h('input.input.search', { type: 'search', 'aria-label': t('events.filter'), placeholder: t('events.filter_hint'), value: chosen.q, data: { jump: '' } });
  const writeText = debounced(() => setFilter({ q: search.value.trim() }), 120);
  search.addEventListener('input', writeText);
  const kinds = pickList(t('events.kind'), t('events.all_kinds'), (kind) => setFilter({ kind }));
  const hosts = pickList(t('workers.host'), t('workers.all_hosts'), (host) => setFilter({ host }));
  const actors = pickList(t('events.actor'), t('events.all_actors'), (actor) => setFilter({ actor }));
  const range = rangePick(chosen.range, (value) => setFilter({ range: value }));
  const clear = h('button.button.subtle', { type: 'button', on: { click: clearFilters } }, t('workers.clear'));
  const download = h('a.button', { download: 'events.jsonl', title: t('events.export_title') }, icon('down'), t('events.export'));
  const count = h('span.count', { role: 'status' });
  const strip = timeStrip();
  const table = new Table({ label: t('nav.events'), kind: 'events-table', columns: columns(), keyOf: (event) => event.seq });
  const more = h('button.button', { type: 'button', hidden: true, on: { click: showMore } }, t('events.more'));
  const widen = h('p');
  const none = emptyBox(t('events.none'), widen);
  const node = h(
    'div.page',
    {},
    pageHead(t('nav.events'), count, h('span.spring'), download),
    h('div.toolbar', {}, search, range, kinds, hosts, actors, clear),
    history.problem,
    strip,
    none,
    table.node,
    more,
  );

  function load() {
    history.load(apiQuery(chosen));
  }

  function showMore() {
    limit += STEP;
    update();
  }

  function setFilter(changes) {
    chosen = { ...chosen, ...changes };
    replaceQuery({ ...chosen, range: chosen.range === 'all' ? '' : chosen.range });
    range.value = chosen.range;
    limit = STEP;
    load();
    update();
  }

  function clearFilters() {
    writeText.cancel();
    search.value = '';
    setFilter({ q: '', kind: '', host: '', actor: '', range: 'all' });
    search.focus();
  }

  function update() {
    const words = chosen.q.toLowerCase().split(/\s+/).filter(Boolean);
    const all = history.since(chosen.range);
    const found = all.filter((event) => matches(event, chosen, words));
    strip.update(found, rangeStart(chosen.range), serverNowMs(), isBad);
    show(strip, found.length > 0);
    table.setItems(found.slice(-limit).reverse());
    fillPicks(all);
    const filtered = Boolean(words.length || chosen.kind || chosen.host || chosen.actor || chosen.range !== 'all');
    show(clear, filtered);
    show(more, found.length > limit);
    show(none, found.length === 0 && history.loaded);
    setText(none.firstChild, filtered ? t('events.no_match') : t('events.none'));
    if (widening !== chosen.range) {
      widening = chosen.range;
      fill(widen, widenButton(chosen.range, (value) => setFilter({ range: value })));
    }
    setText(count, history.loaded ? t('workers.count', { some: found.length, all: all.length }) : t('loading'));
    setAttr(download, 'href', `/api/events?${new URLSearchParams(Object.entries({ ...apiQuery(chosen), format: 'jsonl' }).filter(([, value]) => value))}`);
  }

  function fillPicks(events) {
    const distinct = (name) => [...new Set(events.map((event) => event[name]).filter(Boolean))].sort();
    kinds.update(distinct('kind'), chosen.kind);
    for (const option of kinds.options) if (option.value) setText(option, kindName(option.value));
    hosts.update(distinct('host'), chosen.host);
    actors.update(distinct('actor'), chosen.actor);
  }

  function setQuery(next) {
    chosen = readQuery(next);
    search.value = chosen.q;
    range.value = chosen.range;
    load();
    update();
  }

  return { node, title: t('nav.events'), topics: ['events'], update, setQuery, started: load };
}

function readQuery(query) {
  const read = (name) => query.get(name) || '';
  return { q: read('q'), kind: read('kind'), host: read('host'), actor: read('actor'), range: RANGES.includes(read('range')) ? read('range') : 'all' };
}

/** What the manager is asked for; words are looked for here, in the language of the page. */
function apiQuery({ kind, host, actor, range }) {
  return { kind, host, actor, since: range === 'all' ? '' : range };
}

function matches(event, { kind, host, actor }, words) {
  if (kind && event.kind !== kind) return false;
  if (host && event.host !== host) return false;
  if (actor && event.actor !== actor) return false;
  if (!words.length) return true;
  const text = [event.worker_id, event.host, reasonOf(event), actorName(event.actor), event.kind, kindName(event.kind), event.cause].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}

function isBad(event) {
  return BAD_KINDS.includes(event.kind) || ['failed', 'backoff', 'unknown'].includes(event.after);
}

function columns() {
  return [
    { name: 'time', label: t('events.time'), make: textCell((event) => formatClock(event.at), { selector: 'time', title: (event) => formatMoment(event.at) }) },
    { name: 'kind', label: t('events.kind'), make: textCell((event) => kindName(event.kind)) },
    { name: 'subject', label: t('events.subject'), make: subjectCell },
    { name: 'change', label: t('events.change'), make: changeCell },
    { name: 'why', label: t('workers.reason'), make: textCell((event) => reasonOf(event)) },
    { name: 'actor', label: t('events.actor'), make: textCell((event) => actorName(event.actor)) },
  ];
}

function subjectCell(event) {
  const host = event.host ? h('span.muted', {}, event.host) : null;
  const attempt = event.attempt ? h('span.muted', {}, t('events.attempt', { attempt: String(event.attempt) })) : null;
  const cell = event.worker_id
    ? h('span.subject', {}, h('a.strong', { href: link('worker', event.worker_id) }, event.worker_id), ' ', host, ' ', attempt)
    : h('span.subject', {}, event.host ? h('strong', {}, event.host) : t('none'));
  cell.update = () => {};
  return cell;
}

function changeCell(event) {
  const cell = h(`span.text-${event.after || 'none'}`, {}, transition(event.before, event.after));
  cell.update = () => {};
  return cell;
}
