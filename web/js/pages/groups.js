/** Groups: the number of running members, and for a gang its phase, master address, ranks and last incident. */

import { get } from '../api.js';
import { asked, listTable } from '../asked.js';
import { emptyBox } from '../dialogs.js';
import { debounced, fill, h, setText } from '../dom.js';
import { Follower, lastEvent } from '../follower.js';
import { compareNames, formatMoment, formatSince } from '../format.js';
import { formatNumber, t } from '../i18n.js';
import { reasonOf } from '../reasons.js';
import { link, replaceQuery } from '../router.js';
import { STATES, stateChip } from '../status.js';
import { Table, fixedCell, textCell } from '../table.js';
import { pageHead, workerTabs } from './parts.js';

const SHOWN = 100;
const MEMBERS_SHOWN = 200;

export function groupsPage({ store, query }) {
  let groups = [];
  let words = query.get('q') || '';
  const unfolded = new Set(query.get('group') ? [query.get('group')] : []);
  const count = h('span.count', { role: 'status' });
  const search = h('input.input.search', { type: 'search', 'aria-label': t('groups.filter'), placeholder: t('groups.filter_hint'), value: words, data: { jump: '' } });
  search.addEventListener(
    'input',
    debounced(() => {
      words = search.value.trim();
      replaceQuery({ q: words });
      fill(list.node, draw());
    }, 120),
  );
  const list = asked(
    async () => {
      groups = (await get('/api/groups')).groups;
      return groups;
    },
    () => draw(),
  );
  const live = new Follower(list.load, () => `${store.tables.workers.version} ${lastEvent(store)}`);
  const node = h('div.page', {}, pageHead(t('nav.workers'), workerTabs('groups'), count), h('div.toolbar', {}, search), list.node);

  function draw() {
    const low = words.toLowerCase();
    const found = groups.filter((one) => [one.group, one.phase, one.master].join(' ').toLowerCase().includes(low)).sort((a, b) => troubled(b) - troubled(a) || compareNames(a.group, b.group));
    setText(count, t('groups.count', { some: found.length, all: groups.length }));
    if (!groups.length) return emptyBox(t('groups.none'), h('p', {}, t('groups.none_how')));
    const rest = found.length - SHOWN;
    return [found.slice(0, SHOWN).map((one) => groupPanel(one, unfolded)), rest > 0 ? h('p.muted', {}, t('groups.more', { n: rest })) : null];
  }

  return {
    node,
    title: t('nav.groups'),
    topics: ['workers', 'events'],
    update: () => live.update(),
    started: () => live.load(),
    unmount: list.stop,
  };
}

function troubled(group) {
  return group.phase === 'failed' ? 2 : group.members.some((member) => ['failed', 'unknown', 'backoff'].includes(member.state)) ? 1 : 0;
}

function groupPanel(group, unfolded) {
  const facts = [
    [t('groups.restart'), [group.restart, group.rendezvous].filter((one) => one && one !== 'none').join(' · ')],
    [t('groups.phase'), group.phase ? [t(`gang.${group.phase}`), group.since ? formatSince(group.since) : ''].filter(Boolean).join(' · ') : ''],
    [t('groups.attempts'), group.attempts === null ? '' : t('overview.of', { some: group.attempts, all: group.max_attempts ?? t('none') })],
    [t('groups.master'), group.master || ''],
    [t('groups.reason'), reasonOf(group)],
    [t('groups.incident'), group.incident ? `${group.incident.member}: ${reasonOf(group.incident)} (${formatMoment(group.incident.at)})` : ''],
  ].filter(([, text]) => text);
  const details = h('details', { open: unfolded.has(group.group) }, h('summary', {}, t('groups.members', { n: group.members.length })));
  const unfold = () => {
    if (details.open && details.childElementCount === 1) details.append(memberTable(group));
  };
  details.addEventListener('toggle', () => {
    unfolded[details.open ? 'add' : 'delete'](group.group);
    unfold();
  });
  unfold();
  return h(
    'section.panel.group',
    { 'aria-label': group.group },
    h('div.panel-head', {}, h('h2', {}, h('a', { href: link('workers', '', { group: group.group }) }, group.group)), stateCounts(group.members)),
    h('dl.facts', {}, facts.map(([name, text]) => h('div.fact', {}, h('dt', {}, name), h('dd', {}, text)))),
    details,
  );
}

function stateCounts(members) {
  const counts = STATES.map((state) => ({ state, n: members.filter((one) => one.state === state).length })).filter(({ n }) => n);
  return h(
    'ul.split',
    { 'aria-label': t('overview.by_state') },
    counts.map(({ state, n }) => {
      const chip = stateChip();
      chip.update({ state });
      return h('li', {}, chip, ' ', formatNumber(n));
    }),
  );
}

function memberTable(group) {
  const ranked = [...group.members].sort((a, b) => (a.rank ?? Infinity) - (b.rank ?? Infinity) || compareNames(a.worker_id, b.worker_id));
  const columns = [
    { name: 'rank', label: t('groups.rank'), make: textCell((one) => (one.rank === null ? t('none') : String(one.rank))) },
    { name: 'worker', label: t('groups.worker'), make: (one) => fixedCell(h('a.strong', { href: link('worker', one.worker_id) }, one.worker_id)) },
    { name: 'state', label: t('groups.state'), make: chipCell },
    { name: 'host', label: t('groups.host'), make: textCell((one) => one.host || t('none')) },
    { name: 'attempt', label: t('logs.attempt'), make: textCell((one) => String(one.attempt)) },
    { name: 'reason', label: t('groups.reason'), make: textCell((one) => reasonOf(one) || t('none')) },
  ];
  const table = new Table({ label: t('groups.members_of', { group: group.group }), kind: 'members-table', keyOf: (one) => one.worker_id, columns });
  const rest = ranked.length - MEMBERS_SHOWN;
  return h('div', {}, listTable(table, '56px minmax(120px, 1.4fr) 130px minmax(100px, 1fr) 70px minmax(140px, 2fr)', ranked.slice(0, MEMBERS_SHOWN)), rest > 0 ? h('p.muted', {}, t('groups.more_members', { n: rest })) : null);
}

function chipCell(member) {
  const chip = stateChip();
  chip.update({ state: member.state });
  return fixedCell(h('span', {}, chip));
}
