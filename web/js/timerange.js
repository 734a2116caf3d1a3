/**
 * A time range in the form of addresses and of the API: {since, until}, each '' (no bound), an age
 * (`2h`) or a time (ISO 8601). Owns the control that selects one: common ages, or any other range.
 */

import { fill, h } from './dom.js';
import { formatMoment, fromInput, serverNowMs, toInput, zoneName } from './format.js';
import { t } from './i18n.js';

export const ALWAYS = { since: '', until: '' };
export const AGES = ['15m', '1h', '2h', '24h', '7d'];
const ALL = 'all'; // in an address, if another range is the default
const OTHER = 'other';
const UNIT_S = { s: 1, m: 60, h: 3600, d: 86400 };

function ageS(text) {
  const found = /^(\d{1,6})([smhd])$/.exec(text);
  return found && Number(found[1]) > 0 ? Number(found[1]) * UNIT_S[found[2]] : null;
}

function isTime(text) {
  return text === '' || ageS(text) !== null || (/^\d{4}-/.test(text) && !Number.isNaN(Date.parse(text)));
}

/** The range in an address; `usual`: the default age. */
export function readRange(query, usual = '') {
  const said = query.get('since') ?? query.get('range') ?? usual;
  const since = said === ALL ? '' : said;
  const until = query.get('until') || '';
  return isTime(since) && isTime(until) ? { since, until } : { since: usual, until: '' };
}

/** The parameters of a range for an address. */
export function rangeQuery({ since, until }, usual = '') {
  return { since: since === usual ? '' : since || ALL, until };
}

function momentMs(text, nowMs) {
  const age = ageS(text);
  return age === null ? Date.parse(text) : nowMs - age * 1000;
}

/** The beginning in ms; -Infinity if unbounded. */
export function rangeStart({ since }) {
  return since ? momentMs(since, serverNowMs()) : -Infinity;
}

/** The end in ms: now if unbounded. */
export function rangeEnd({ until }) {
  return until ? momentMs(until, serverNowMs()) : serverNowMs();
}

/** Whether the range includes new events. */
export function isOpen({ until }) {
  return until === '';
}

export function rangeName({ since, until }) {
  if (!since && !until) return t('range.all');
  if (!until) return ageS(since) === null ? t('range.since', { at: formatMoment(since) }) : t('range.last', { d: ageName(since) });
  if (!since) return t('range.until', { at: momentName(until) });
  return t('range.between', { from: momentName(since), to: momentName(until) });
}

function momentName(text) {
  return ageS(text) === null ? formatMoment(text) : t('time.ago', { d: ageName(text) });
}

/** "24h" -> "24 h". */
function ageName(text) {
  const [, n, unit] = /^(\d+)([smhd])$/.exec(text);
  return t(`unit.${unit === 'm' ? 'min' : unit}`, { n: Number(n) });
}

/** The next wider common age, or everything; null if nothing is wider. */
export function wider(range) {
  if (!range.since && !range.until) return null;
  const length = (rangeEnd(range) - rangeStart(range)) / 1000;
  const next = range.until ? undefined : AGES.find((age) => ageS(age) > length * 1.01);
  return { since: next || '', until: '' };
}

/** A button that widens the range, for an empty page; nothing if there is no wider range. */
export function widenButton(range, onPick) {
  const next = wider(range);
  return next ? h('button.button', { type: 'button', on: { click: () => onPick(next) } }, t('range.widen', { range: rangeName(next) })) : null;
}

/** A select for the range, whose last option opens a dialog for any other range. `onPick(range)`; `.update(range)`. */
export function rangePick(chosen, onPick) {
  let now = chosen;
  const select = h('select.input.range-pick', { 'aria-label': t('range.label') });
  select.addEventListener('change', () => {
    if (select.value === OTHER) {
      draw();
      askRange(now, onPick);
    } else {
      onPick({ since: select.value, until: '' });
    }
  });

  function draw() {
    const usual = !now.until && ['', ...AGES].includes(now.since);
    const options = ['', ...AGES].map((since) => h('option', { value: since }, rangeName({ since, until: '' })));
    if (!usual) options.push(h('option', { value: 'own' }, rangeName(now)));
    options.push(h('option', { value: OTHER }, t('range.other')));
    fill(select, options);
    select.value = usual ? now.since : 'own';
  }

  select.update = (range) => {
    if (range.since === now.since && range.until === now.until && select.options.length) return;
    now = range;
    draw();
  };
  draw();
  return select;
}

/** A dialog for any range: an age in seconds to days, or from one time to another. */
function askRange(now, onPick) {
  const age = ageS(now.since) === null || now.until ? ['', '2', 'h'] : /^(\d+)([smhd])$/.exec(now.since);
  const count = h('input.input', { id: 'range-count', type: 'number', min: '1', max: '99999', value: age[1], inputmode: 'numeric' });
  const unit = h('select.input', { 'aria-label': t('range.unit') }, Object.keys(UNIT_S).map((one) => h('option', { value: one, selected: one === age[2] }, t(`range.unit_${one}`))));
  const from = h('input.input', { id: 'range-from', type: 'datetime-local', step: '1', value: now.since && ageS(now.since) === null ? toInput(Date.parse(now.since)) : '' });
  const to = h('input.input', { id: 'range-to', type: 'datetime-local', step: '1', value: now.until ? toInput(rangeEnd(now)) : '' });
  const problem = h('p.bad', { role: 'alert' });
  const cancel = h('button.button', { type: 'button', on: { click: () => dialog.close() } }, t('cancel'));
  const field = (label, ...inputs) => h('div.field', {}, h('label', { for: inputs[0].id }, label), h('div.range-inputs', {}, inputs));
  const last = h('form.range-form', { on: { submit: (event) => take(event, { since: `${Number(count.value)}${unit.value}`, until: '' }) } }, field(t('range.the_last'), count, unit), h('button.button.primary', { type: 'submit' }, t('range.show')));
  const between = h(
    'form.range-form',
    { on: { submit: (event) => take(event, { since: fromInput(from.value), until: fromInput(to.value) }) } },
    field(t('range.from'), from),
    field(t('range.to'), to),
    h('button.button.primary', { type: 'submit' }, t('range.show')),
  );
  const dialog = h('dialog.dialog', { 'aria-labelledby': 'range-title' }, h('h2', { id: 'range-title' }, t('range.other_title')), last, h('p.muted', {}, t('range.or_between', { zone: zoneName() })), between, problem, h('div.dialog-buttons', {}, cancel));

  function take(event, range) {
    event.preventDefault();
    const wrong = !isTime(range.since) || !isTime(range.until) || !(range.since || range.until) || rangeStart(range) >= rangeEnd(range);
    fill(problem, wrong ? t('range.wrong') : null);
    if (wrong) return;
    dialog.close();
    onPick(range);
  }

  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  count.focus();
}
