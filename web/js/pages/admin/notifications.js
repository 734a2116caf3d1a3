/** Notifications: targets and their status, routes, and mutes. */

import { get, post, request } from '../../api.js';
import { asked, listTable } from '../../asked.js';
import { confirmAction, emptyBox, errorBox, notify, notifyError } from '../../dialogs.js';
import { fill, h } from '../../dom.js';
import { formatAge, formatDuration, formatMoment } from '../../format.js';
import { formatNumber, t } from '../../i18n.js';
import { actorName } from '../../reasons.js';
import { acts, mayAct } from '../../rights.js';
import { link } from '../../router.js';
import { Table, fixedCell, textCell } from '../../table.js';

const EXAMPLE = 'notifications:\n  - name: oncall\n    type: slack\n    url: env:SLACK_URL';
const RULE_EXAMPLE = 'alerts:\n  - name: disk-full\n    measure: host.disk_free_percent\n    below: 5';
const PERIODS_S = [3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600, 30 * 24 * 3600];

export function notificationsSection({ query }) {
  const targets = asked(() => get('/api/notifications'), drawTargets);
  const firing = asked(() => get('/api/alerts'), (answer) => drawFiring(answer, () => firing.load()));
  const mutes = asked(() => get('/api/mutes'), (answer) => drawMutes(answer.mutes, () => mutes.load()));
  const node = h(
    'div.admin-sections',
    {},
    h('section.panel', { 'aria-labelledby': 'firing-title' }, h('h2', { id: 'firing-title' }, t('firing.title')), firing.node),
    targets.node,
    h('section.panel', { 'aria-labelledby': 'mutes-title' }, h('h2', { id: 'mutes-title' }, t('mutes.title')), h('p.muted', {}, t('mutes.what')), mutes.node, mayAct() ? muteForm(query.get('mute') || '', () => mutes.load()) : null),
  );
  return {
    node,
    started: () => {
      firing.load();
      targets.load();
      mutes.load();
    },
    stop: () => {
      firing.stop();
      targets.stop();
      mutes.stop();
    },
  };
}

// --------------------------------------------------------------------------------------------------------------- firing

function drawFiring({ alerts, total, rules }, reload) {
  if (!alerts.length && !rules) return [h('p', {}, t('firing.no_rules')), h('p.muted', {}, t('firing.no_rules_how')), h('pre.config-example', {}, h('code', {}, RULE_EXAMPLE))];
  if (!alerts.length) return h('p', {}, t('firing.none'));
  const columns = [
    { name: 'rule', label: t('firing.alert'), make: textCell((one) => one.rule, { selector: 'strong', title: (one) => one.measure }) },
    { name: 'whose', label: t('firing.whose'), make: (one) => fixedCell(h('a', { href: one.worker_id ? link('worker', one.worker_id) : link('host', one.host) }, whose(one))) },
    { name: 'value', label: t('firing.value'), make: textCell((one) => `${one.measure}: ${valueText(one)}`) },
    { name: 'since', label: t('firing.since'), make: textCell((one) => formatMoment(one.since), { title: (one) => formatAge(one.since) }) },
    { name: 'known', label: t('firing.known'), make: textCell(knownText) },
    { name: 'act', label: t('firing.act'), make: (one) => fixedCell(acts(h('button.button.small', { type: 'button', hidden: Boolean(one.acknowledged), 'aria-label': t('firing.ack_of', { rule: one.rule, name: whose(one) }), on: { click: () => acknowledge(one, reload) } }, t('firing.ack')))) },
  ];
  const table = listTable(new Table({ label: t('firing.title'), kind: 'firing-table', keyOf: (one) => one.alert, columns }), 'minmax(90px, 1fr) minmax(100px, 1.2fr) minmax(150px, 1.8fr) minmax(130px, 1fr) minmax(120px, 1.6fr) 110px', alerts);
  return total > alerts.length ? [table, h('p.muted', {}, t('firing.more', { n: total - alerts.length }))] : table;
}

const whose = (one) => one.worker_id || (one.gpu === null ? one.host : t('firing.gpu', { host: one.host, i: one.gpu }));

function valueText(one) {
  const value = one.value === null ? t('none') : formatNumber(one.value);
  if (one.above !== null) return t('firing.above', { value, limit: formatNumber(one.above) });
  return one.below === null ? value : t('firing.below', { value, limit: formatNumber(one.below) });
}

function knownText(one) {
  const words = [];
  if (one.acknowledged) words.push(t('ack.seen', { actor: actorName(one.acknowledged.by), note: one.acknowledged.note || t('none') }));
  if (one.mute) words.push(t('firing.muted', { actor: actorName(one.mute.by), d: formatMoment(one.mute.ends) }));
  return words.join(t('worker.joint')) || t('none');
}

async function acknowledge(one, reload) {
  const answer = await confirmAction({ title: t('firing.ack_title', { rule: one.rule, name: whose(one) }), detail: [t('firing.ack_detail')], action: t('firing.ack'), withReason: true });
  if (!answer) return;
  try {
    await post('/api/alerts/acknowledge', { alert: one.alert, note: answer.reason });
    notify(t('firing.ack_done'));
  } catch (error) {
    notifyError(error, t('firing.ack_failed'));
  }
  reload();
}

function drawTargets({ notifications, routes }) {
  if (!notifications.length) return emptyBox(t('targets.none'), h('p', {}, t('targets.none_how')), h('pre.config-example', {}, h('code', {}, EXAMPLE)));
  const table = new Table({ label: t('targets.title'), kind: 'targets-table', keyOf: (one) => one.name, columns: targetColumns() });
  const all = acts(h('button.button', { type: 'button', on: { click: () => test('') } }, t('targets.test_all')));
  const widths = 'minmax(90px, 1fr) minmax(130px, 1.4fr) minmax(90px, 1.1fr) minmax(64px, .7fr) minmax(100px, 1fr) minmax(70px, 1.3fr) 72px';
  return [
    h('section.panel', { 'aria-labelledby': 'targets-title' }, h('div.panel-head', {}, h('h2', { id: 'targets-title' }, t('targets.title')), all), listTable(table, widths, notifications)),
    h('section.panel', { 'aria-labelledby': 'routes-title' }, h('h2', { id: 'routes-title' }, t('routes.title')), routes.length ? routeTable(routes) : h('p.muted', {}, t('routes.none'))),
  ];
}

function targetColumns() {
  return [
    { name: 'name', label: t('targets.name'), make: textCell((one) => `${one.name} (${one.type})`, { selector: 'strong' }) },
    { name: 'address', label: t('targets.address'), make: textCell((one) => one.address, { selector: 'code' }) },
    { name: 'events', label: t('targets.events'), make: textCell((one) => one.events.join(', ') || t('targets.by_route')) },
    { name: 'last', label: t('targets.last'), make: textCell((one) => formatAge(one.last_ok), { title: (one) => (one.last_ok ? formatMoment(one.last_ok) : null) }) },
    { name: 'counts', label: t('targets.counts'), make: textCell(countsText) },
    { name: 'error', label: t('targets.error'), make: textCell((one) => (one.last_error ? `${one.last_error} (${formatAge(one.last_error_at)})` : t('none'))) },
    { name: 'test', label: t('targets.test'), make: ({ name }) => fixedCell(acts(h('button.button.small', { type: 'button', 'aria-label': t('targets.test_of', { name }), on: { click: () => test(name) } }, t('targets.test')))) },
  ];
}

function countsText(one) {
  const words = [t('targets.sent', { n: one.sent })];
  if (one.queued) words.push(t('targets.queued', { n: one.queued }));
  for (const name of ['failures', 'dropped', 'deduplicated', 'muted']) if (one[name]) words.push(t(`targets.${name}`, { n: one[name] }));
  return words.join(t('worker.joint'));
}

function routeTable(routes) {
  const numbered = routes.map((route, at) => ({ ...route, at }));
  const columns = [
    { name: 'selector', label: t('routes.select'), make: textCell((one) => one.select, { selector: 'code' }) },
    { name: 'on', label: t('routes.on'), make: textCell((one) => one.on.join(', ')) },
    { name: 'to', label: t('routes.to'), make: textCell((one) => one.to.join(', ')) },
  ];
  return listTable(new Table({ label: t('routes.title'), kind: 'routes-table', keyOf: (one) => one.at, columns }), 'minmax(0, 2fr) minmax(0, 1fr) minmax(0, 1fr)', numbered);
}

async function test(name) {
  try {
    const { results } = await post('/api/notifications/test', name ? { name } : {}, { timeoutMs: 150000 });
    for (const one of results) {
      if (one.ok) notify(t('targets.tested', { name: one.name, d: formatDuration(one.took_s) }));
      else notifyError({ code: 'not_sent', status: 200, message: one.answer }, t('targets.test_failed', { name: one.name }));
    }
  } catch (error) {
    notifyError(error, t('targets.test_failed', { name: name || t('targets.title') }), () => test(name));
  }
}

// ---------------------------------------------------------------------------------------------------------------- mutes

function drawMutes(mutes, reload) {
  if (!mutes.length) return h('p', {}, t('mutes.none'));
  const columns = [
    { name: 'selector', label: t('mutes.select'), make: textCell((one) => one.select, { selector: 'code' }) },
    { name: 'when', label: t('mutes.until'), make: textCell((one) => (one.active ? formatMoment(one.ends) : t('mutes.window', { from: formatMoment(one.begins), to: formatMoment(one.ends) }))) },
    { name: 'by', label: t('mutes.by'), make: textCell((one) => actorName(one.by)) },
    { name: 'note', label: t('mutes.note'), make: textCell((one) => one.note || t('none')) },
    { name: 'end', label: t('mutes.end'), make: (one) => fixedCell(acts(h('button.button.small', { type: 'button', 'aria-label': t('mutes.end_of', { select: one.select }), on: { click: () => unmute(one, reload) } }, t('mutes.end')))) },
  ];
  return listTable(new Table({ label: t('mutes.title'), kind: 'mutes-table', keyOf: (one) => one.mute_id, columns }), 'minmax(120px, 1.4fr) minmax(150px, 1.2fr) minmax(80px, 1fr) minmax(100px, 1.6fr) 92px', mutes);
}

async function unmute(mute, reload) {
  const sure = await confirmAction({ title: t('mutes.end_title', { select: mute.select }), detail: [t('mutes.end_detail')], action: t('mutes.end') });
  if (!sure) return;
  try {
    await request('DELETE', `/api/mutes/${encodeURIComponent(mute.mute_id)}`);
    notify(t('mutes.ended'));
  } catch (error) {
    notifyError(error, t('mutes.end_failed'));
  }
  reload();
}

/** `select`: the initial selector. */
function muteForm(select, onDone) {
  const which = h('input.input', { id: 'mute-select', type: 'text', required: true, spellcheck: 'false', autocomplete: 'off', placeholder: t('mutes.hint'), value: select });
  const period = h('select.input', { id: 'mute-for' }, PERIODS_S.map((s) => h('option', { value: String(s) }, formatDuration(s, 1))));
  const note = h('input.input', { id: 'mute-note', type: 'text', maxlength: '500', autocomplete: 'off' });
  const problem = h('div');
  const field = (input, label) => h('div.field', {}, h('label', { for: input.id }, label), input);
  const form = h(
    'form.admin-form',
    { 'aria-label': t('mutes.add') },
    field(which, t('mutes.select')),
    field(period, t('mutes.for')),
    field(note, t('mutes.note')),
    h('button.button.primary', { type: 'submit' }, t('mutes.add')),
    problem,
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    fill(problem);
    try {
      await post('/api/mutes', { select: which.value.trim(), for_s: Number(period.value), note: note.value.trim() });
      which.value = note.value = '';
      onDone();
    } catch (error) {
      fill(problem, errorBox(error));
    }
  });
  return form;
}
