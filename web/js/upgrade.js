/**
 * Upgrades the agents of several hosts from a page: one first, then a few at a time; the first failure ends it. The remaining agents
 * are not changed, also if the page is closed meanwhile.
 */

import { ApiError, post } from './api.js';
import { confirmAction, notify, notifyError } from './dialogs.js';
import { h, keyed, setText, show } from './dom.js';
import { compareNames } from './format.js';
import { t } from './i18n.js';
import { icon } from './icons.js';
import { reasonOf } from './reasons.js';
import { acts } from './rights.js';

const AT_ONCE = 4;
const SHORT = 12; // displayed characters of a release's name, as on a host's page
const NAMES_SHOWN = 6; // displayed names of its hosts
const POLL_MS = 250;
const TIMEOUT_MS = 300000; // per host
const ENDS = ['agent_upgraded', 'agent_upgrade_failed'];

let run = null; // {done, all, failed}: the upgrade in progress, independent of the shown page

/** A button with the progress; `.update(hosts)`: the hosts to upgrade. */
export function upgradeThese(store) {
  let hosts = [];
  const button = acts(h('button.button.primary', { type: 'button', on: { click: () => begin() } }, icon('restart'), h('span')));
  const progress = h('span.muted', { role: 'status' });
  const node = h('div.upgrade-these', {}, button, progress);

  async function begin() {
    const names = hosts.filter((host) => host.agent_state === 'connected').map((host) => host.host);
    const sure = await confirmAction({ title: t('upgrade.title', { n: names.length }), detail: [t('upgrade.order', { host: names[0], n: AT_ONCE }), t('maintenance.upgrade_detail'), t('maintenance.workers_stay')], action: t('upgrade.these', { n: names.length }) });
    if (sure && !run) upgradeAll(store, names);
  }

  node.update = (next) => {
    hosts = next;
    const able = hosts.filter((host) => host.agent_state === 'connected').length;
    setText(button.lastChild, t('upgrade.these', { n: able }));
    show(button, able > 0);
    button.disabled = run !== null;
    setText(progress, run ? t('upgrade.progress', { done: run.done, all: run.all }) : '');
    show(node, able > 0 || run !== null);
  };
  return node;
}

/** Agents grouped by release, each with a button that upgrades the group; `.update(hosts)`: the hosts to upgrade. */
export function releaseGroups(store) {
  const list = h('ul.release-groups', { 'aria-label': t('upgrade.by_release'), hidden: true });
  list.update = (hosts) => {
    const found = new Map();
    for (const host of hosts) found.set(host.release, [...(found.get(host.release) || []), host]);
    const groups = [...found].map(([release, of]) => ({ release, hosts: of.sort((a, b) => compareNames(a.host, b.host)) }));
    keyed(list, groups.sort((a, b) => b.hosts.length - a.hosts.length || compareNames(a.release, b.release)), (one) => one.release, () => releaseGroup(store));
    show(list, groups.length > 0);
  };
  return list;
}

function releaseGroup(store) {
  const name = h('code');
  const count = h('strong');
  const names = h('span.muted.release-hosts');
  const upgrade = upgradeThese(store);
  const item = h('li', {}, count, name, names, upgrade);
  item.update = ({ release, hosts }) => {
    setText(name, release.slice(0, SHORT));
    setText(count, t('upgrade.of_release', { n: hosts.length }));
    setText(names, hosts.slice(0, NAMES_SHOWN).map((host) => host.host).join(', ') + (hosts.length > NAMES_SHOWN ? ' …' : ''));
    upgrade.update(hosts);
  };
  return item;
}

async function upgradeAll(store, [first, ...rest]) {
  run = { done: 0, all: rest.length + 1, trouble: null };
  const one = async (host) => {
    try {
      await upgradeOne(store, host);
      run.done += 1;
    } catch (error) {
      run.trouble = run.trouble || { host, error };
    }
  };
  await one(first);
  const work = async () => {
    while (rest.length && !run.trouble) await one(rest.shift());
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  const { done, all, trouble } = run;
  run = null;
  if (trouble) notifyError(trouble.error, t('upgrade.stopped', { host: trouble.host, done, all }));
  else notify(t('upgrade.done', { n: done }));
}

/** Upgrades one agent and waits for the event with the result. Throws the manager's error or the event's reason. */
async function upgradeOne(store, host) {
  const { seq } = await post(`/api/hosts/${encodeURIComponent(host)}/upgrade-agent`);
  const until = performance.now() + TIMEOUT_MS;
  while (performance.now() < until) {
    const end = store.events.find((event) => event.seq > seq && event.host === host && ENDS.includes(event.kind));
    if (end && end.kind === ENDS[0]) return;
    if (end) throw new ApiError({ code: end.kind, status: 409, message: reasonOf(end) });
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
  throw new ApiError({ code: 'timeout' });
}
