/** The audit: changes with actor, address and outcome, log-ins and refusals. Newest first. */

import { get } from '../../api.js';
import { asked, listTable } from '../../asked.js';
import { debounced, h, show } from '../../dom.js';
import { formatMoment } from '../../format.js';
import { t } from '../../i18n.js';
import { actorName } from '../../reasons.js';
import { replaceQuery } from '../../router.js';
import { Table, textCell } from '../../table.js';
import { rangePick, rangeQuery, readRange } from '../../timerange.js';

const KINDS = ['change', 'refused', 'login', 'logout'];
const PAGE = 200;
const MOST = 10000; // entries per response
const WIDTHS = 'minmax(112px, 1.4fr) minmax(60px, .6fr) minmax(116px, 1fr) minmax(108px, 1fr) minmax(160px, 3fr) 48px';

export function auditSection({ query }) {
  let chosen = { kind: KINDS.includes(query.get('kind')) ? query.get('kind') : '', q: query.get('q') || '', ...readRange(query) };
  let limit = PAGE;
  const kind = h('select.input', { 'aria-label': t('audit.kind') }, h('option', { value: '' }, t('audit.all')), KINDS.map((one) => h('option', { value: one, selected: one === chosen.kind }, t(`audit.${one}`))));
  const words = h('input.input.search', { type: 'search', 'aria-label': t('audit.filter'), placeholder: t('audit.filter_hint'), value: chosen.q, data: { jump: '' } });
  const range = rangePick(chosen, (next) => {
    choose(next);
    range.update(chosen);
  });
  const more = h('button.button', { type: 'button', hidden: true, on: { click: showMore } }, t('audit.more'));
  const list = asked(ask, draw);

  function ask() {
    const { kind: one, q, since, until } = chosen;
    const filled = Object.entries({ kind: one, q, since, until, limit: String(limit) }).filter(([, value]) => value);
    return get(`/api/audit?${new URLSearchParams(filled)}`);
  }

  function draw({ audit }) {
    show(more, audit.length === limit && limit < MOST);
    if (!audit.length) return h('p', {}, t('audit.none'));
    return listTable(new Table({ label: t('admin.audit'), kind: 'audit-table', keyOf: (one) => one.seq, columns: columns() }), WIDTHS, [...audit].reverse());
  }

  function choose(changes) {
    chosen = { ...chosen, ...changes };
    limit = PAGE;
    replaceQuery({ kind: chosen.kind, q: chosen.q, ...rangeQuery(chosen) });
    list.load();
  }

  function showMore() {
    limit = Math.min(MOST, limit * 4);
    list.load();
  }

  kind.addEventListener('change', () => choose({ kind: kind.value }));
  words.addEventListener('input', debounced(() => choose({ q: words.value.trim() }), 300));
  const node = h('div.admin-sections', {}, h('div.toolbar', {}, words, kind, range), list.node, more);
  return { node, started: list.load, stop: list.stop };
}

function columns() {
  return [
    { name: 'at', label: t('audit.at'), make: textCell((one) => formatMoment(one.at), { selector: 'time' }) },
    { name: 'kind', label: t('audit.kind'), make: textCell((one) => t(`audit.${one.kind}`)) },
    { name: 'actor', label: t('events.actor'), make: textCell((one) => (one.actor ? actorName(one.actor) : t('none'))) },
    { name: 'from', label: t('audit.from'), make: textCell((one) => [one.address, one.via].filter(Boolean).join(' · ') || t('none')) },
    { name: 'what', label: t('audit.what'), make: textCell((one) => one.what, { selector: 'code' }) },
    { name: 'status', label: t('audit.status'), make: textCell((one) => String(one.status || t('none')), { title: (one) => one.request_id || null }) },
  ];
}
