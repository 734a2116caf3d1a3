/** The manager itself: version and addresses, the identity of this browser, the leader of several managers, log retention. */

import { get, post } from '../../api.js';
import { asked, listTable } from '../../asked.js';
import { confirmAction, notify, notifyError } from '../../dialogs.js';
import { h } from '../../dom.js';
import { formatBytes, formatDuration, formatMoment, formatSince } from '../../format.js';
import { formatNumber, t } from '../../i18n.js';
import { acts } from '../../rights.js';
import { Table, fixedCell, textCell } from '../../table.js';

export function systemSection({ session }) {
  const managers = asked(() => get('/api/managers'), (answer) => drawManagers(answer, () => managers.load()));
  const retention = asked(() => get('/api/logs/retention'), ({ rules }) => drawRetention(rules));
  const archive = asked(() => get('/api/logs/archive'), drawArchive);
  const fact = (name, value) => h('div.fact', {}, h('dt', {}, t(`system.${name}`)), h('dd', {}, value));
  const panel = (name, content) => h('section.panel', { 'aria-labelledby': `${name}-title` }, h('h2', { id: `${name}-title` }, t(`system.${name}`)), content);
  const node = h(
    'div.admin-sections',
    {},
    panel('manager', h('dl.facts', {}, fact('version', session.version), fact('you', whoAmI(session)), fact('addresses', session.urls.join('\n') || location.origin))),
    panel('managers', managers.node),
    panel('retention', retention.node),
    panel('archive', archive.node),
  );
  return {
    node,
    started: () => {
      managers.load();
      retention.load();
      archive.load();
    },
    stop: () => {
      managers.stop();
      retention.stop();
      archive.stop();
    },
  };
}

/** "laptop (operator)": the identity of this browser according to the manager. */
function whoAmI(session) {
  return t('system.who', { name: session.name || t('none'), role: t(`role.${session.role}_name`) });
}

function drawManagers(answer, reload) {
  if (!answer.managers.length) return h('p', {}, t('system.alone'));
  const columns = [
    { name: 'name', label: t('system.name'), make: textCell((one) => one.name, { selector: 'strong' }) },
    { name: 'role', label: t('system.role'), make: textCell((one) => t(`system.role_${one.role}`)) },
    { name: 'urls', label: t('system.addresses'), make: textCell((one) => one.urls.join(' '), { selector: 'code' }) },
    { name: 'version', label: t('system.version'), make: textCell((one) => one.version) },
    { name: 'seen', label: t('system.seen'), make: textCell((one) => t('time.ago', { d: formatDuration(one.seen_s) })) },
    { name: 'behind', label: t('system.behind'), make: textCell((one) => formatNumber(one.behind)) },
    { name: 'ssh', label: t('system.ssh'), make: textCell((one) => (one.ssh ? t('overview.of', { some: formatNumber(one.ssh.ok), all: formatNumber(one.ssh.ok + one.ssh.failed) }) : t('none')), { title: (one) => (one.ssh ? Object.entries(one.ssh.reasons).map((pair) => pair.join(': ')).join('\n') || null : null) }) },
    { name: 'lead', label: t('system.promote'), make: (one) => fixedCell(one.role === 'standby' ? acts(h('button.button.small', { type: 'button', 'aria-label': t('system.promote_of', { name: one.name }), on: { click: () => promote(one, reload) } }, t('system.promote'))) : h('span')) },
  ];
  const widths = 'minmax(90px, 1fr) minmax(80px, .8fr) minmax(120px, 1.6fr) minmax(70px, .6fr) minmax(80px, .8fr) minmax(70px, .6fr) minmax(70px, .6fr) 92px';
  const facts = [answer.database, answer.replication].filter(Boolean).join(' · ');
  return [
    h('p', {}, t('system.leads', { name: answer.leader, term: String(answer.term), d: formatSince(answer.since) })),
    facts ? h('p.muted', {}, facts) : null,
    answer.warnings.length ? h('ul.warnings', { lang: 'en' }, answer.warnings.map((one) => h('li', {}, one))) : null,
    listTable(new Table({ label: t('system.managers'), kind: 'managers-table', keyOf: (one) => one.name, columns }), widths, answer.managers),
  ];
}

async function promote({ name }, reload) {
  const sure = await confirmAction({ title: t('system.promote_title', { name }), detail: [t('system.promote_detail')], action: t('system.promote') });
  if (!sure) return;
  try {
    await post('/api/managers/promote', { name });
    notify(t('system.promoted', { name }));
  } catch (error) {
    notifyError(error, t('system.promote_failed', { name }));
  }
  reload();
}

function drawRetention(rules) {
  if (!rules.length) return h('p', {}, t('retention.none'));
  const numbered = rules.map((rule, at) => ({ ...rule, at }));
  const columns = [
    { name: 'selector', label: t('mutes.select'), make: textCell((one) => one.select, { selector: 'code' }) },
    { name: 'keeps', label: t('retention.keeps'), make: textCell(keepsText) },
    { name: 'workers', label: t('nav.workers'), make: textCell((one) => formatNumber(one.workers)) },
    { name: 'held', label: t('retention.held'), make: textCell((one) => formatBytes(one.held_bytes)) },
    { name: 'oldest', label: t('retention.oldest'), make: textCell((one) => (one.oldest_at ? formatMoment(one.oldest_at) : t('none'))) },
    { name: 'deleted', label: t('retention.deleted'), make: textCell((one) => formatBytes(one.deleted_bytes)) },
  ];
  return listTable(new Table({ label: t('system.retention'), kind: 'retention-table', keyOf: (one) => one.at, columns }), 'minmax(120px, 1.6fr) minmax(110px, 1fr) minmax(70px, .6fr) minmax(80px, .7fr) minmax(140px, 1.2fr) minmax(110px, .8fr)', numbered);
}

function drawArchive(view) {
  if (!view.place) return h('p', {}, t('archive.none'));
  const fact = (name, value) => h('div.fact', {}, h('dt', {}, t(`archive.${name}`)), h('dd', {}, value));
  const since = (seconds) => formatDuration(Math.max(0, Date.now() / 1000 - seconds));
  return [
    view.problem ? h('ul.warnings', { lang: 'en' }, h('li', {}, view.problem)) : null,
    h(
      'dl.facts',
      {},
      fact('place', view.place),
      fact('state', view.problem ? t('archive.failing', { d: view.failing_since ? since(view.failing_since) : t('none') }) : t('archive.works')),
      fact('uploaded_at', view.uploaded_at ? t('time.ago', { d: since(view.uploaded_at) }) : t('none')),
      fact('waiting', formatBytes(view.waiting_bytes)),
      fact('uploaded', formatBytes(view.uploaded_bytes)),
      fact('evicted', formatBytes(view.evicted_bytes)),
    ),
  ];
}

function keepsText({ days, max_bytes: most }) {
  return [days === null ? '' : formatDuration(days * 86400), most === null ? '' : formatBytes(most)].filter(Boolean).join(t('worker.joint'));
}
