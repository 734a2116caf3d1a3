/** One host: its agent and SSH access, the load of the machine, its GPUs and their workers, its workers. */

import { agentLogPanel, agentPanel } from '../agentmaintenance.js';
import { post } from '../api.js';
import { hostCharts } from '../chartpanel.js';
import { confirmAction, emptyBox, notify, notifyError } from '../dialogs.js';
import { h, keyed, setAttr, setText, show } from '../dom.js';
import { compareNames, formatAge, formatBytes, formatMoment, formatPercent, formatSince } from '../format.js';
import { actorName, reasonOf } from '../reasons.js';
import { EventHistory } from '../history.js';
import { formatNumber, t } from '../i18n.js';
import { acts } from '../rights.js';
import { link } from '../router.js';
import { ALWAYS } from '../timerange.js';
import { STATES, agentChip, stateChip } from '../status.js';
import { diskText, roleText, sshState } from './hosts.js';
import { eventList, pageHead, reasonText } from './parts.js';

const EVENTS_SHOWN = 30;
const WORKERS_SHOWN = 60;

const FACTS = [
  ['reason', (host) => [reasonOf(host), diskText(host)].filter(Boolean).join(' · ')],
  ['seen', (host) => formatAge(host.last_seen), (host) => formatMoment(host.last_seen)],
  ['address', (host) => host.address],
  ['role', roleText],
  ['cordoned', (host) => (host.cordoned ? [reasonOf(host.cordoned), actorName(host.cordoned.actor)].filter(Boolean).join(' · ') : '')],
  ['load', (host) => (host.usage ? t('host.load_text', { load: formatNumber(host.usage.load1 || 0, 2, 2), cpu: formatPercent(host.usage.cpu_percent), n: (host.facts && host.facts.cpus) || 0 }) : '')],
  ['memory', (host) => (host.usage ? memoryText(host) : '')],
  ['disk', (host) => (host.usage ? t('overview.of', { some: formatBytes(host.usage.disk_free_bytes), all: formatBytes(host.usage.disk_total_bytes) }) : '')],
  ['network', networkText],
  ['system', (host) => (host.facts ? [host.facts.os, host.facts.python && t('host.python', { version: host.facts.python }), host.facts.user].filter(Boolean).join(' · ') : '')],
  ['release', (host) => (host.release ? host.release.slice(0, 12) : ''), (host) => host.release],
  ['agent_since', (host) => (host.agent_started ? t('host.agent_process', { pid: String(host.agent_pid ?? '?'), d: formatSince(host.agent_started) }) : '')],
  ['channel', (host) => [host.channel, host.channel_trouble].filter(Boolean).join(' · ')],
  ['failure', (host) => (host.last_failure ? `${host.last_failure.what} (${formatMoment(host.last_failure.at)})` : '')],
]; // prettier-ignore

function memoryText(host) {
  const used = formatBytes(host.usage.memory_used_bytes);
  const all = host.facts && host.facts.memory_bytes ? t('overview.of', { some: used, all: formatBytes(host.facts.memory_bytes) }) : used;
  return host.usage.swap_used_bytes ? t('host.with_swap', { memory: all, swap: formatBytes(host.usage.swap_used_bytes) }) : all;
}

function networkText({ usage }) {
  if (!usage || usage.network_received_bytes_per_s == null) return '';
  return t('hosts.network_rates', { in: formatBytes(usage.network_received_bytes_per_s), out: formatBytes(usage.network_sent_bytes_per_s) });
}

export function hostPage({ store, live, id }) {
  let view = null; // the manager's complete view; the list's row until it is loaded
  const chip = agentChip();
  const cordon = acts(h('button.button', { type: 'button', on: { click: () => toggleCordon(view || store.hosts.get(id)) } }));
  const facts = factList();
  const ssh = sshPanel();
  const agent = agentPanel(store);
  const agentLog = agentLogPanel();
  const gpus = gpuPanel();
  const charts = hostCharts(id);
  const workers = workersPanel(id);
  const events = eventList();
  const noEvents = h('p.muted');
  const allEvents = h('a.more', {}, t('worker.all_events'));
  const history = new EventHistory(store, () => update(), { page: EVENTS_SHOWN });
  const missing = emptyBox(t('host.missing', { host: id }), h('p', {}, h('a', { href: link('hosts') }, t('host.to_list'))));
  const loading = h('p.muted', {}, t('loading'));
  const content = h(
    'div.host-columns',
    { hidden: true },
    h('div.host-side', {}, h('section.panel', { 'aria-label': t('worker.summary') }, facts), agent, ssh),
    h(
      'div.host-main',
      {},
      gpus,
      charts.node,
      workers,
      h('section.panel', { 'aria-labelledby': 'host-events' }, h('h2', { id: 'host-events' }, t('worker.events')), history.problem, noEvents, events, allEvents),
      agentLog,
    ),
  );
  const node = h('div.page.host-page', {}, pageHead(id, chip, h('span.spring'), cordon), loading, missing, content);
  node.firstChild.prepend(h('a.back', { href: link('hosts') }, t('nav.hosts')));
  const unsubscribe = live.subscribe(`host:${id}`, (frame) => {
    const [item] = frame.t === 'snap' ? frame.items : frame.set || [];
    view = item || (frame.t === 'delta' && frame.del.length ? null : view);
    update();
  });

  function update() {
    const row = store.hosts.get(id);
    const loaded = store.loaded.has('hosts');
    show(loading, !row && !loaded);
    show(missing, !row && loaded);
    show(content, Boolean(row));
    show(chip, Boolean(row));
    if (!row) {
      show(cordon, false);
      return;
    }
    const host = view ? { ...view, agent_state: row.agent_state, reason: row.reason, last_seen: row.last_seen || view.last_seen } : { ...row, usage: null };
    chip.update(host.agent_state);
    show(cordon, host.kind !== 'launcher');
    setText(cordon, t(host.cordoned ? 'host.uncordon' : 'host.cordon'));
    facts.update(host);
    agent.update(host);
    agentLog.update(host);
    ssh.update(host);
    gpus.update(view);
    charts.add(view && view.usage);
    workers.update([...store.workers.values()].filter((worker) => worker.agent === id));
    history.load({ host: host.host });
    const own = history.within(ALWAYS, (event) => event.host === host.host).slice(-EVENTS_SHOWN).reverse();
    events.update(own);
    show(noEvents, own.length === 0);
    setText(noEvents, t(history.loaded ? 'worker.no_events' : 'loading'));
    setAttr(allEvents, 'href', link('events', '', { host: host.host }));
  }

  function started() {
    charts.start();
    agent.started();
  }

  function unmount() {
    unsubscribe();
    charts.destroy();
  }

  return { node, title: id, topics: ['hosts', 'workers', 'events'], update, started, unmount };
}

async function toggleCordon(host) {
  const verb = host.cordoned ? 'uncordon' : 'cordon';
  const sure = await confirmAction({ title: t(`host.${verb}_title`, { host: host.host }), detail: [t(`host.${verb}_detail`)], action: t(`host.${verb}`) });
  if (!sure) return;
  try {
    await post(`/api/hosts/${encodeURIComponent(host.host)}/${verb}`, verb === 'cordon' ? { reason: t('host.cordon_reason') } : {});
    notify(t(`host.${verb}_done`, { host: host.host }));
  } catch (error) {
    notifyError(error, t('host.act_failed', { host: host.host }), () => toggleCordon(host));
  }
}

function factList() {
  const rows = FACTS.map(([name, read, title]) => {
    const value = h(name === 'release' ? 'code' : 'span');
    const row = h(`div.fact.fact-${name}`, {}, h('dt', {}, t(`hostfact.${name}`)), h('dd', {}, value));
    row.update = (host) => {
      const text = read(host) || '';
      setText(value, text);
      if (title) setAttr(value, 'title', title(host));
      show(row, text !== '');
    };
    return row;
  });
  const list = h('dl.facts', {}, rows);
  list.update = (host) => rows.forEach((row) => row.update(host));
  return list;
}

/** Whether the manager can log in over SSH, the unchanged stage and cause of a failure, and a button that tests it now. */
function sshPanel() {
  let host = null;
  const word = h('p.ssh-word');
  const why = h('p.reason.ssh-why');
  const when = h('p.muted');
  const button = acts(h('button.button', { type: 'button' }, t('hosts.check')));
  button.addEventListener('click', async () => {
    button.disabled = true;
    try {
      const result = await post(`/api/hosts/${encodeURIComponent(host)}/check-ssh`);
      notify(result.ok ? t('hosts.ssh_works', { host }) : t('hosts.ssh_fails', { host, reason: reasonOf(result) }));
    } catch (error) {
      notifyError(error, t('hosts.check_failed', { host }), () => button.click());
    } finally {
      button.disabled = false;
    }
  });
  const panel = h('section.panel', { 'aria-labelledby': 'host-ssh' }, h('h2', { id: 'host-ssh' }, t('hosts.ssh')), word, why, when, button);
  panel.update = (item) => {
    host = item.host;
    const state = sshState(item);
    setText(word, state.word);
    word.className = `ssh-word ${state.kind}`;
    const { ok, reason, checked_at: checked } = item.recovery_ssh || {};
    setText(why, ok === false ? reason : '');
    show(why, ok === false && Boolean(reason));
    setText(when, checked ? t('hosts.checked', { d: formatAge(checked) }) : '');
    show(when, Boolean(checked));
    show(button, item.kind !== 'launcher');
    setAttr(button, 'aria-label', t('hosts.check_of', { host }));
  };
  return panel;
}

/** One line per GPU: utilization, memory, temperature, and its worker. */
function gpuPanel() {
  const list = h('ul.gpu-list');
  const trouble = h('p.bad');
  const unread = h('p.muted');
  const panel = h('section.panel', { hidden: true, 'aria-labelledby': 'host-gpus' }, h('h2', { id: 'host-gpus' }, t('hosts.gpus')), trouble, list, unread);
  panel.update = (view) => {
    const usage = view && view.usage;
    const gpus = (usage && usage.gpus) || [];
    const why = (usage && usage.gpu_trouble) || '';
    show(panel, gpus.length > 0 || why !== '');
    setText(trouble, why);
    show(trouble, why !== '');
    const log = (usage && usage.kernel_log_trouble) || '';
    setText(unread, t('host.kernel_log_unread', { why: log }));
    show(unread, log !== '');
    keyed(list, gpus, (gpu) => gpu.index, gpuItem);
  };
  return panel;
}

function gpuItem() {
  const name = h('span.strong');
  const busy = h('span');
  const used = h('span');
  const heat = h('span.muted');
  const users = h('span.gpu-users');
  const item = h('li', {}, name, busy, used, heat, users);
  item.update = (gpu) => {
    setText(name, t('host.gpu_name', { i: gpu.index, name: gpu.name || '' }));
    setText(busy, gpu.trouble ? t('hosts.gpu_lost', { i: gpu.index, why: gpu.trouble }) : t('host.gpu_busy', { percent: formatPercent(gpu.utilization_percent) }));
    setText(used, gpu.trouble ? '' : t('overview.of', { some: formatBytes(gpu.memory_used_bytes), all: formatBytes(gpu.memory_total_bytes) }));
    setText(heat, gpuHeat(gpu));
    setText(users, gpuUsers(gpu));
    setAttr(users, 'title', gpuUsers(gpu));
  };
  return item;
}

function gpuHeat(gpu) {
  const power = gpu.power_w == null ? '' : `${formatNumber(gpu.power_w, 0)} / ${gpu.power_limit_w == null ? '?' : formatNumber(gpu.power_limit_w, 0)} W`;
  const heat = gpu.temperature_c == null ? '' : `${formatNumber(gpu.temperature_c, 0)} °C`;
  return [power, heat].filter(Boolean).join(', ');
}

function gpuUsers(gpu) {
  const others = gpu.processes.filter((process) => !process.worker_id);
  const own = new Set(gpu.processes.map((process) => process.worker_id).filter(Boolean));
  if (gpu.worker_id) own.add(gpu.worker_id);
  return [...own, ...others.map((process) => t('hosts.gpu_process', { pid: String(process.pid), who: [process.user, process.name].filter(Boolean).join(' ') || '?' }))].join(', ');
}

/** The host's workers, those that need attention first. */
function workersPanel(agent) {
  const list = h('ul.host-workers');
  const none = h('p.muted', {}, t('host.no_workers'));
  const more = h('a.more', { hidden: true });
  const title = h('h2', { id: 'host-workers' });
  const panel = h('section.panel', { 'aria-labelledby': 'host-workers' }, title, none, list, more);
  panel.update = (workers) => {
    setText(title, t('host.workers', { n: workers.length }));
    workers.sort((a, b) => STATES.indexOf(a.state) - STATES.indexOf(b.state) || compareNames(a.worker_id, b.worker_id));
    keyed(list, workers.slice(0, WORKERS_SHOWN), (worker) => worker.worker_id, workerItem);
    show(none, workers.length === 0);
    show(more, workers.length > WORKERS_SHOWN);
    setText(more, t('overview.more', { n: workers.length - WORKERS_SHOWN }));
    if (workers.length) setAttr(more, 'href', link('workers', '', { host: workers[0].host || agent }));
  };
  return panel;
}

function workerItem() {
  const chip = stateChip();
  const name = h('a.strong');
  const figures = h('span.muted');
  const reason = h('span.reason');
  const item = h('li', {}, chip, name, figures, reason);
  item.update = (worker) => {
    chip.update(worker);
    setText(name, worker.worker_id);
    setAttr(name, 'href', link('worker', worker.worker_id));
    setText(figures, worker.usage ? t('host.worker_uses', { cpu: formatPercent(worker.usage.cpu_percent), memory: formatBytes(worker.usage.rss_bytes) }) : '');
    setText(reason, reasonText(worker));
    setAttr(reason, 'title', reasonText(worker));
  };
  return item;
}
