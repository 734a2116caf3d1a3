/** Maintenance of a host's agent: restart, upgrade to the manager's release, and the agent's own log. */

import { get, post } from './api.js';
import { commandBox, confirmAction, errorBox, notify, notifyError } from './dialogs.js';
import { fill, h, setText, show } from './dom.js';
import { formatBytes, formatClock } from './format.js';
import { reasonOf } from './reasons.js';
import { t } from './i18n.js';
import { acts, mayAct } from './rights.js';

const SHORT = 12; // displayed characters of a release's name
const ENDS = { restart: ['agent_restarted', 'agent_restart_failed'], upgrade: ['agent_upgraded', 'agent_upgrade_failed'] };

/** Call `.update(host)` after each change, and `.started()` once the page is shown. */
export function agentPanel(store) {
  let host = null;
  let releases = null; // release names of agents of the manager's own release; null: unknown yet
  let waiting = null; // {action, host, seq}: requested, not finished yet
  const version = h('p.agent-version');
  const progress = h('p.muted', { role: 'status', hidden: true });
  const restart = h('button.button', { type: 'button', on: { click: () => ask('restart') } }, t('maintenance.restart'));
  const upgrade = h('button.button.primary', { type: 'button', on: { click: () => ask('upgrade') } }, t('maintenance.upgrade'));
  const buttons = acts(h('div.head-buttons.agent-buttons', {}, restart, upgrade));
  const byHand = h('p.muted', {}, t('maintenance.by_hand'));
  const terminal = h('details.batch-command', {}, h('summary', {}, t('batch.command_line')));
  const panel = h('section.panel', { 'aria-labelledby': 'host-agent' }, h('h2', { id: 'host-agent' }, t('maintenance.title')), version, progress, buttons, byHand, terminal);

  panel.update = (item) => {
    if (host === null || host.host !== item.host) terminal.append(commandBox(`invoke upgrade --hosts INVENTORY --limit ${item.host}`));
    host = item;
    const launcher = item.kind === 'launcher';
    const known = releases !== null && Boolean(item.release);
    const old = known && !releases.includes(item.release);
    setText(version, versionText(item.release, known, old));
    version.classList.toggle('warn', old);
    show(byHand, launcher);
    show(buttons, !launcher);
    show(upgrade, old);
    show(terminal, !launcher && old);
    refresh();
  };

  panel.started = async () => {
    try {
      releases = (await get('/api/releases')).releases;
      if (host) panel.update(host);
    } catch {
      releases = null; // show nothing rather than something wrong
    }
  };

  function versionText(release, known, old) {
    if (!release) return t('maintenance.version_unknown');
    const mine = release.slice(0, SHORT);
    if (!known) return t('maintenance.version', { release: mine });
    return old ? t('maintenance.version_other', { release: mine, own: releases.map((one) => one.slice(0, SHORT)).join(' / ') }) : t('maintenance.version_same', { release: mine });
  }

  async function ask(action) {
    const name = host.host;
    const sure = await confirmAction({ title: t(`maintenance.${action}_title`, { host: name }), detail: [t(`maintenance.${action}_detail`), t('maintenance.workers_stay')], action: t(`maintenance.${action}`) });
    if (!sure) return;
    waiting = { action, host: name, seq: Infinity };
    refresh();
    try {
      waiting.seq = (await post(`/api/hosts/${encodeURIComponent(name)}/${action}-agent`)).seq;
    } catch (error) {
      waiting = null;
      notifyError(error, t(`maintenance.${action}_failed`, { host: name }), error.status === 409 ? null : () => ask(action));
    }
    refresh();
  }

  /** Checks whether the requested action has finished, according to the events. */
  function refresh() {
    if (waiting) {
      const { action, host: name, seq } = waiting;
      const end = store.events.find((event) => event.seq > seq && event.host === name && ENDS[action].includes(event.kind));
      if (end) {
        waiting = null;
        if (end.kind === ENDS[action][0]) notify(t(`maintenance.${action}_done`, { host: name, what: reasonOf(end) }));
        else notifyError({ code: end.kind, status: 409, message: reasonOf(end) }, t(`maintenance.${action}_failed`, { host: name }));
      }
    }
    setText(progress, waiting ? t(`maintenance.${waiting.action}_under_way`) : '');
    show(progress, waiting !== null);
    restart.disabled = upgrade.disabled = waiting !== null;
  }

  return panel;
}

/** The end of agent.log, read over SSH when the panel is opened, and again on request. */
export function agentLogPanel() {
  let host = null;
  const when = h('span.muted');
  const again = h('button.button.small', { type: 'button', hidden: true, on: { click: () => load() } }, t('maintenance.log_again'));
  const body = h('div');
  const box = h('details.last-words', { on: { toggle: () => box.open && !body.firstChild && load() } }, h('summary', {}, t('maintenance.log_read')), body, h('p.agent-log-foot', {}, again, when));
  const panel = h('section.panel.agent-log', { 'aria-labelledby': 'host-agent-log' }, h('h2', { id: 'host-agent-log' }, t('maintenance.log')), h('p.muted', {}, t('maintenance.log_what')), box);

  panel.update = (item) => {
    host = item;
    show(panel, item.kind !== 'launcher' && mayAct());
  };

  async function load() {
    again.disabled = true;
    if (!body.firstChild) fill(body, h('p.muted', {}, t('maintenance.log_reading')));
    try {
      const answer = await get(`/api/hosts/${encodeURIComponent(host.host)}/agent-log`);
      const text = answer.text ? h('pre.words.agent-log-text', { tabindex: '0', role: 'group', 'aria-label': t('maintenance.log') }, answer.text) : h('p.muted', {}, t('maintenance.log_empty'));
      fill(body, text);
      text.scrollTop = text.scrollHeight; // the newest line is at the end
      setText(when, t(answer.running ? 'maintenance.log_of' : 'maintenance.log_of_ended', { path: answer.path, size: formatBytes(answer.bytes), at: formatClock(new Date().toISOString()) }));
    } catch (error) {
      if (error.status !== 401) fill(body, errorBox(error, load));
      setText(when, '');
    } finally {
      again.disabled = false;
      show(again, true);
    }
  }
  return panel;
}
