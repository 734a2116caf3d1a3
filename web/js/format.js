/** Formats times, sizes and durations in the current language. Pure, except for the server's clock offset. */

import { currentLanguage, formatNumber, t } from './i18n.js';
import { recall, remember } from './storage.js';

const SKEW_TOLERANCE_MS = 2000; // an HTTP Date has whole seconds: a smaller difference says nothing

let clockOffsetMs = 0; // server's wall clock minus this browser's

export function noteServerDate(httpDate) {
  const server = Date.parse(httpDate || '');
  if (Number.isNaN(server)) return;
  const offset = server - Date.now();
  clockOffsetMs = Math.abs(offset) > SKEW_TOLERANCE_MS ? offset : 0;
}

export function serverNowMs() {
  return Date.now() + clockOffsetMs;
}

const TIME = { hour: '2-digit', minute: '2-digit', second: '2-digit', hourCycle: 'h23' };
const MOMENTS = { moment: { ...TIME, year: 'numeric', month: 'short', day: 'numeric' }, clock: TIME, day: { ...TIME, month: '2-digit', day: '2-digit' }, zone: { timeZoneName: 'short' } };
const writers = new Map(); // language, zone and form -> formatter; creating one is slow
const UTC = 'utc';
const QUARTER_MS = 900000;

let utc = null; // not read yet
let zone = {}; // the last result of zoneName

/** Whether times are shown in UTC, otherwise in this browser's time zone. */
export function inUtc() {
  utc ??= recall('zone') === UTC;
  return utc;
}

export function chooseUtc(wanted) {
  utc = wanted;
  remember('zone', utc ? UTC : null);
  writers.clear();
}

function writer(form) {
  const name = `${currentLanguage()} ${form}`;
  if (!writers.has(name)) writers.set(name, new Intl.DateTimeFormat(currentLanguage(), { ...MOMENTS[form], timeZone: inUtc() ? 'UTC' : undefined }));
  return writers.get(name);
}

/** "UTC", "GMT+8": the zone that times are shown in. It changes at most every quarter of an hour. */
export function zoneName(ms = Date.now()) {
  const quarter = Math.floor(ms / QUARTER_MS);
  const format = writer('zone');
  if (zone.format !== format || zone.quarter !== quarter) {
    zone = { format, quarter, name: format.formatToParts(ms).find((part) => part.type === 'timeZoneName').value };
  }
  return zone.name;
}

/** A time in the form of `<input type=datetime-local>`, in the zone in which times are shown; and back, as ISO 8601 or ''. */
export function toInput(ms) {
  const shift = inUtc() ? 0 : new Date(ms).getTimezoneOffset() * 60000;
  return new Date(ms - shift).toISOString().slice(0, 19);
}

export function fromInput(text) {
  const moment = new Date(inUtc() && text ? `${text}Z` : text);
  return text && !Number.isNaN(moment.getTime()) ? moment.toISOString() : '';
}

function dayOf(ms) {
  return toInput(ms).slice(0, 10);
}

/** Milliseconds since 1970 of an ISO text or Unix seconds; null when there is none. */
export function toMs(value) {
  if (typeof value === 'number') return value > 0 ? value * 1000 : null;
  if (!value) return null;
  const parsed = Date.parse(value);
  return Number.isNaN(parsed) ? null : parsed;
}

export function ageS(value) {
  const ms = toMs(value);
  return ms === null ? null : Math.max(0, (serverNowMs() - ms) / 1000);
}

/** "3 h 12 min": the `units` largest units. */
export function formatDuration(seconds, units = 2) {
  if (seconds === null || seconds === undefined) return t('none');
  const whole = Math.max(0, Math.floor(seconds));
  if (whole < 1) return t('unit.s', { n: formatNumber(Math.max(0, seconds), 1) });
  const parts = [
    ['unit.d', Math.floor(whole / 86400)],
    ['unit.h', Math.floor((whole % 86400) / 3600)],
    ['unit.min', Math.floor((whole % 3600) / 60)],
    ['unit.s', whole % 60],
  ];
  const first = parts.findIndex(([, n]) => n > 0);
  return parts
    .slice(first, first + units)
    .filter(([, n]) => n > 0)
    .map(([unit, n]) => t(unit, { n }))
    .join(' ');
}

export function formatAge(value, units = 2) {
  const age = ageS(value);
  return age === null ? t('never') : age < 1 ? t('time.now') : t('time.ago', { d: formatDuration(age, units) });
}

export function formatSince(value) {
  const age = ageS(value);
  return age === null ? t('none') : formatDuration(age);
}

export function formatMoment(value) {
  const ms = toMs(value);
  if (ms === null) return t('never');
  return `${writer('moment').format(ms)}\u00a0${zoneName(ms)}`; // the zone last in every language, on the same line as the time
}

/** Time of day; with the date when it was not today. */
export function formatClock(value) {
  const ms = toMs(value);
  if (ms === null) return t('none');
  return writer(dayOf(ms) === dayOf(Date.now()) ? 'clock' : 'day').format(ms);
}

export function formatBytes(bytes) {
  if (bytes === null || bytes === undefined) return t('none');
  const names = ['B', 'KiB', 'MiB', 'GiB', 'TiB', 'PiB'];
  let value = bytes;
  let unit = 0;
  while (value >= 1024 && unit < names.length - 1) {
    value /= 1024;
    unit += 1;
  }
  return `${formatNumber(value, value < 10 && unit > 0 ? 1 : 0)} ${names[unit]}`;
}

export function formatPercent(value) {
  if (value === null || value === undefined) return t('none');
  return `${formatNumber(value, value < 10 ? 1 : 0)} %`;
}

let collator = null; // one for all, and only if names are compared: creating it is slow

/** worker2 before worker10 */
export function compareNames(a, b) {
  collator ??= new Intl.Collator(undefined, { numeric: true });
  return collator.compare(a, b);
}
