/** Hosts: the state of the agent, SSH access of the manager, and the load of the machine. */

import { commandBox, emptyBox } from '../dialogs.js';
import { debounced, h, setAttr, setClass, setText, show } from '../dom.js';
import { fieldsOf, labelOf } from '../fields.js';
import { compareNames, formatAge, formatBytes, formatMoment, formatPercent } from '../format.js';
import { Grid } from '../grid.js';
import { reasonOf } from '../reasons.js';
import { formatNumber, t } from '../i18n.js';
import { isOld, loadReleases } from '../releases.js';
import { go, link, replaceQuery } from '../router.js';
import { AGENT_GLYPHS, agentChip } from '../status.js';
import { textCell } from '../table.js';
import { releaseGroups } from '../upgrade.js';
import { pageHead, pendingLaunchers } from './parts.js';

const ORDER = ['unreachable', 'suspect', 'never', 'ended', 'connected'];
const usage = (host, name) => (host.usage ? host.usage[name] : null);

const SORTS = {
  agent: { of: (host) => ORDER.indexOf(host.agent_state) },
  host: { of: null },
  seen: { of: (host) => -(host.last_seen ?? 0), measured: true },
  workers: { of: (host) => host.workers },
  load: { of: (host) => usage(host, 'load1') ?? -1, measured: true },
  cpu: { of: (host) => usage(host, 'cpu_percent') ?? -1, measured: true },
  memory: { of: (host) => usage(host, 'memory_used_bytes') ?? -1, measured: true },
  gpus: { of: (host) => usage(host, 'gpu_percent') ?? -1, measured: true },
  disk: { of: (host) => usage(host, 'disk_free_bytes') ?? Infinity, measured: true },
};

export function hostsPage({ store, query }) {
  let chosen = readQuery(query);
  let known = '';
  let upgradable = []; // agents that can be upgraded from this page
  let releasesSeen = 0; // number of responses with the manager's releases
  const pending = pendingLaunchers(store);
  const search = h('input.input.search', { type: 'search', 'aria-label': t('hosts.filter'), placeholder: t('hosts.filter_hint'), value: chosen.q, data: { jump: '' } });
  const writeText = debounced(() => setFilter({ q: search.value.trim() }), 120);
  search.addEventListener('input', writeText);
  const facets = ORDER.map((state) => agentFacet(state, () => setFilter({ agent: chosen.agent === state ? '' : state })));
  const old = h('button.facet.agent-suspect', { type: 'button', hidden: true, title: t('hosts.old_means'), on: { click: () => setFilter({ old: chosen.old ? '' : '1' }) } }, h('span.glyph', { 'aria-hidden': 'true' }, '↑'), h('span'));
  const upgrade = releaseGroups(store);
  const how = h('details.batch-command', { hidden: true }, h('summary', {}, t('hosts.old_how')), commandBox('invoke upgrade --hosts inventory/prod.yaml'));
  const clear = h('button.button.subtle', { type: 'button', on: { click: clearFilters } }, t('workers.clear'));
  const grid = new Grid({
    label: t('nav.hosts'),
    kind: 'hosts-table',
    columns: columns(),
    keyOf: (host) => host.agent,
    yielding: ['ssh', 'reason'],
    onSort: (name) => setFilter({ sort: chosen.sort === name ? `-${name}` : name }),
    onOpen: (host) => go('host', host.agent),
  });
  const count = h('span.count', { role: 'status' });
  const none = emptyBox(t('hosts.none'), h('p', {}, t('overview.empty_deploy')), commandBox('invoke deploy --hosts inventory/prod.yaml'));
  const nothing = h('p.empty-title');
  const noMatch = h('div.empty', { hidden: true }, nothing, h('button.button', { type: 'button', on: { click: clearFilters } }, t('workers.clear')));
  const toolbar = h('div.toolbar', {}, search, h('div.facets', { role: 'group', 'aria-label': t('hosts.agent') }, facets, old), clear);
  const node = h('div.page.fills', {}, pageHead(t('nav.hosts'), count), pending, toolbar, upgrade, how, noMatch, none, grid.node);

  function setFilter(changes) {
    chosen = { ...chosen, ...changes };
    replaceQuery({ ...chosen, sort: chosen.sort === 'agent' ? '' : chosen.sort });
    update();
  }

  function clearFilters() {
    writeText.cancel();
    search.value = '';
    setFilter({ q: '', agent: '', old: '' });
    search.focus();
  }

  function update() {
    pending.update();
    loadReleases(store.agents(), () => {
      releasesSeen += 1;
      update();
    });
    const table = store.tables.hosts;
    const order = SORTS[chosen.sort.replace(/^-/, '')];
    const now = JSON.stringify([table.version, order.measured ? table.measured : 0, chosen, releasesSeen]);
    if (now === known) {
      if (chosen.old) upgrade.update(upgradable);
      grid.refresh();
      return;
    }
    known = now;
    const hosts = store.agents();
    const words = chosen.q.toLowerCase().split(/\s+/).filter(Boolean);
    const named = hosts.filter((host) => matches(host, words));
    const outdated = named.filter(isOld);
    const found = chosen.old ? outdated : named;
    setText(old.lastChild, t('hosts.old', { n: outdated.length }));
    setAttr(old, 'aria-pressed', chosen.old ? 'true' : 'false');
    show(old, outdated.length > 0 || Boolean(chosen.old));
    show(how, Boolean(chosen.old) && outdated.length > 0);
    upgradable = chosen.old ? outdated : [];
    upgrade.update(upgradable);
    const shown = sorted(found.filter((host) => !chosen.agent || host.agent_state === chosen.agent), chosen.sort);
    grid.showSort(chosen.sort.replace(/^-/, ''), chosen.sort.startsWith('-'));
    grid.setItems(shown);
    for (const facet of facets) facet.update(found.filter((host) => host.agent_state === facet.dataset.state).length, chosen.agent === facet.dataset.state);
    const loaded = store.loaded.has('hosts');
    show(clear, Boolean(chosen.q || chosen.agent || chosen.old));
    show(toolbar, hosts.length > 0);
    show(none, loaded && hosts.length === 0);
    show(noMatch, hosts.length > 0 && shown.length === 0);
    setText(nothing, t('hosts.no_match', { n: hosts.length }));
    const connected = hosts.filter((host) => host.agent_state === 'connected').length;
    setText(count, loaded ? t('hosts.count', { some: connected, all: hosts.length }) : t('loading'));
  }

  function setQuery(next) {
    chosen = readQuery(next);
    search.value = chosen.q;
    update();
  }

  return { node, title: t('nav.hosts'), topics: ['hosts'], update, setQuery, unmount: () => grid.destroy() };
}

function readQuery(query) {
  const sort = query.get('sort') || '';
  const agent = query.get('agent') || '';
  return { q: query.get('q') || '', agent: ORDER.includes(agent) ? agent : '', old: query.get('old') === '1' ? '1' : '', sort: SORTS[sort.replace(/^-/, '')] ? sort : 'agent' };
}

function matches(host, words) {
  if (!words.length) return true;
  const labels = Object.entries(host.labels || {}).map(([name, value]) => `${name}=${value}`);
  const text = [host.agent, host.host, host.address, reasonOf(host), ...labels].join('\n').toLowerCase();
  return words.every((word) => text.includes(word));
}

function sorted(hosts, sort) {
  const { of } = SORTS[sort.replace(/^-/, '')];
  const sign = sort.startsWith('-') ? -1 : 1;
  const byName = (a, b) => (a.sortKey < b.sortKey ? -1 : a.sortKey > b.sortKey ? 1 : compareNames(a.agent, b.agent));
  return hosts.sort((a, b) => (of ? sign * (of(a) - of(b)) || byName(a, b) : sign * byName(a, b)));
}

function agentFacet(state, onToggle) {
  const count = h('span.facet-count');
  const facet = h(`button.facet.agent-${state}`, { type: 'button', 'aria-pressed': 'false', data: { state }, on: { click: onToggle } }, h('span.glyph', { 'aria-hidden': 'true' }, AGENT_GLYPHS[state]), t(`agent.${state}`), count);
  facet.update = (n, pressed) => {
    setText(count, formatNumber(n));
    setAttr(facet, 'aria-pressed', pressed ? 'true' : 'false');
    facet.classList.toggle('is-zero', n === 0 && !pressed);
    show(facet, n > 0 || pressed || state === 'connected' || state === 'unreachable');
  };
  return facet;
}

/** The cells of the columns, in the order of the columns. */
const CELLS = {
  agent: stateCell,
  host: nameCell,
  seen: textCell((host) => formatAge(host.last_seen, 1), { title: (host) => formatMoment(host.last_seen) }),
  workers: workersCell,
  load: textCell(loadText, { title: (host) => (host.cpus ? t('hosts.cpus', { n: host.cpus }) : null) }),
  cpu: textCell((host) => formatPercent(usage(host, 'cpu_percent'))),
  memory: textCell(memoryText, { title: memoryText }),
  gpus: textCell(gpuText, { title: gpuTitle }),
  disk: textCell((host) => formatBytes(usage(host, 'disk_free_bytes'))),
  ssh: sshCell,
  reason: textCell(reasonText, { title: reasonText }),
};

function columns() {
  return Object.entries(CELLS).map(([name, make]) => {
    const field = fieldsOf('hosts').columns.get(name);
    const { width, narrow } = field.column;
    return { name, label: labelOf(field), width, narrow: narrow === null ? undefined : narrow, fit: FITS[name], sortable: Boolean(SORTS[name]), make };
  });
}

/** The texts that a column must hold in full. */
const FITS = {
  host: { text: (host) => shownName(host), weight: 600 },
  memory: { pattern: () => t('overview.of', { some: '888 MiB', all: '888 GiB' }) },
  gpus: { text: (host) => (host.gpus ? gpusAndLoad(t('hosts.gpus_short', { some: host.gpus, all: host.gpus }), 100) : '') },
};

function shownName(host) {
  return host.kind === 'launcher' ? host.agent : host.host;
}

function loadText(host) {
  return host.usage && host.usage.load1 !== null ? formatNumber(host.usage.load1, 2, 2) : t('none');
}

function memoryText(host) {
  if (!host.usage) return t('none');
  const used = formatBytes(host.usage.memory_used_bytes);
  return host.memory_bytes ? t('overview.of', { some: used, all: formatBytes(host.memory_bytes) }) : used;
}

/** "3/8 · 71 %": the number of GPUs in use, and their average utilization. */
function gpuText(host) {
  if (!host.gpus) return host.gpu_trouble ? t('hosts.gpu_unreadable') : t('none');
  const used = t('hosts.gpus_short', { some: usage(host, 'gpus_used') || 0, all: host.gpus });
  const busy = usage(host, 'gpu_percent');
  return busy === null ? used : gpusAndLoad(used, busy);
}

function gpusAndLoad(used, percent) {
  return `${used} · ${formatPercent(percent)}`;
}

function gpuTitle(host) {
  if (!host.gpus) return host.gpu_trouble || null;
  const used = t('hosts.gpus_used', { some: usage(host, 'gpus_used') || 0, all: host.gpus });
  const memory = t('overview.of', { some: formatBytes(usage(host, 'gpu_memory_used_bytes')), all: formatBytes(usage(host, 'gpu_memory_total_bytes')) });
  return `${used}, ${memory}`;
}

/** The reason of the agent's state, then the role of the host. */
function reasonText(host) {
  return [reasonOf(host), diskText(host), host.cordoned ? t('hosts.cordoned', { reason: reasonOf(host.cordoned) }) : '', roleText(host)].filter(Boolean).join(' · ');
}

/** A text if its disk refuses writes; '' if it accepts them. */
export function diskText(host) {
  return host.disk_trouble ? t(`hosts.disk_${host.disk_trouble}`) : '';
}

/** The use of the host for workers of other hosts, and the reasons against it. */
export function roleText(host) {
  const labels = Object.entries(host.labels || {}).map(([name, value]) => `${name}=${value}`).join(', ');
  const words = [];
  if (host.tunnel) words.push(t(`hosts.tunnel_${host.tunnel.state}`, { reason: reasonOf(host.tunnel) }));
  if (host.spare) words.push(host.spare === true ? t('hosts.spare') : t('hosts.spare_n', { n: host.spare }));
  if (labels) words.push(t('hosts.labels', { labels }));
  if (host.failures) words.push(t('hosts.failures', { n: host.failures }));
  return words.join(' · ');
}

function stateCell() {
  const chip = agentChip();
  const cell = h('span', {}, chip);
  cell.update = (host) => chip.update(host.agent_state);
  return cell;
}

function nameCell() {
  const name = h('a.strong');
  const address = h('span.muted');
  const cell = h('span.name-beside', {}, name, address);
  cell.update = (host) => {
    setText(name, shownName(host));
    setAttr(name, 'href', link('host', host.agent));
    setText(address, host.address && host.address !== host.host ? host.address : '');
    setAttr(cell, 'title', [host.host, host.address].filter(Boolean).join(' '));
  };
  return cell;
}

function workersCell() {
  const cell = h('a', { data: { label: t('nav.workers') } });
  cell.update = (host) => {
    setText(cell, formatNumber(host.workers || 0));
    setAttr(cell, 'href', link('workers', '', { host: host.host }));
    setAttr(cell, 'aria-label', t('hosts.workers_of', { n: host.workers || 0, host: host.host }));
  };
  return cell;
}

/** "yes", "no", "not checked yet"; the reason is in the title and on the host's page. */
function sshCell() {
  const cell = h('span');
  cell.update = (host) => {
    const { word, kind, why } = sshState(host);
    setText(cell, word);
    setClass(cell, kind);
    setAttr(cell, 'title', why || word);
  };
  return cell;
}

/** Whether the manager can log in over SSH: {word, kind, why}. */
export function sshState(host) {
  if (host.kind === 'launcher') return { word: t('hosts.launcher'), kind: 'muted', why: '' }; // nothing was deployed there, so the manager has no access
  const ssh = host.recovery_ssh || { ok: null };
  if (ssh.ok === true) return { word: t('hosts.ssh_yes'), kind: 'good', why: ssh.checked_at ? t('hosts.checked', { d: formatAge(ssh.checked_at) }) : '' };
  if (ssh.ok === false) return { word: t('hosts.ssh_no'), kind: 'bad', why: reasonOf(ssh) };
  return { word: t('hosts.ssh_unknown'), kind: 'muted', why: '' };
}
