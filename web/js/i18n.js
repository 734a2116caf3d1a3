/** Languages: every displayed text comes from web/locales through `t`. Knows nothing of pages. */

import { commands } from './commands.js';
import { recall, remember } from './storage.js';

export const LANGUAGES = ['zh-CN', 'en'];

let language = 'en';
let texts = {};
let plural = new Intl.PluralRules('en');
let pieces = { plain: new Map(), counted: new Map() }; // key -> its forms, each split into texts and names in turn
let numbers = []; // number of digits -> formatter; creating one takes a hundred times as long as using it

/** The initial language: ?lang, then the stored choice, then the browser's preference, then English. */
export function pickLanguage(query, stored, preferred) {
  for (const preference of [query, stored, ...preferred]) {
    const found = preference && matchLanguage(preference);
    if (found) return found;
  }
  return 'en';
}

function matchLanguage(preference) {
  const base = preference.toLowerCase().split(/[-_]/)[0];
  return LANGUAGES.find((one) => one.toLowerCase().split('-')[0] === base);
}

export function initialLanguage() {
  const query = new URLSearchParams(location.search).get('lang');
  return pickLanguage(query, recall('lang'), navigator.languages || [navigator.language]);
}

/** The path with the hash of the content that the manager assembles, so that a browser caches it until the content changes. */
export function versioned(path) {
  const { texts: version } = document.documentElement.dataset;
  return version ? `${path}?v=${version}` : path;
}

/** Sets the language of responses that are requested before its texts are loaded. */
export function expectLanguage(wanted) {
  language = wanted;
  return wanted;
}

export async function loadLanguage(wanted) {
  const answer = await fetch(versioned(`/static/locales/${wanted}.json`));
  if (!answer.ok) throw new Error(`locale ${wanted}: HTTP ${answer.status}`);
  texts = JSON.parse(commands(await answer.text()));
  language = wanted;
  plural = new Intl.PluralRules(wanted);
  numbers = [];
  pieces = { plain: new Map(), counted: new Map() };
  document.documentElement.lang = wanted;
}

/** Sets the user's own choice, which is stored and replaces ?lang in the address. */
export async function chooseLanguage(wanted) {
  await loadLanguage(wanted);
  remember('lang', wanted);
  const url = new URL(location.href);
  if (url.searchParams.has('lang')) {
    url.searchParams.delete('lang');
    history.replaceState(history.state, '', url);
  }
}

export function currentLanguage() {
  return language;
}

export function hasText(key) {
  return Object.hasOwn(texts, key);
}

/** The text of `key` without replacements. */
export function template(key) {
  return hasText(key) ? texts[key] : key;
}

/** The text of `key` with {name} filled in. "one form|other form" is chosen by `values.n`. */
export function t(key, values = {}) {
  const counted = typeof values.n === 'number';
  const known = counted ? pieces.counted : pieces.plain;
  if (!known.has(key)) known.set(key, (counted ? template(key).split('|') : [template(key)]).map((form) => form.split(/\{(\w+)\}/)));
  const forms = known.get(key);
  const form = forms.length > 1 && plural.select(values.n) !== 'one' ? forms.at(-1) : forms[0];
  let text = form[0];
  for (let at = 1; at < form.length; at += 2) {
    const name = form[at];
    const value = values[name];
    text += name in values ? (typeof value === 'number' ? formatNumber(value) : value) : `{${name}}`;
    text += form[at + 1];
  }
  return text;
}

/** At most `digits` after the point, and `least` at least: a column of numbers with as many of each is aligned. */
export function formatNumber(value, digits = 0, least = 0) {
  if (!least && value >= 0 && value < 1000 && Number.isInteger(value)) return String(value); // without a separator; a list shows thousands of them
  if (!least && digits < 2 && Number.isFinite(value) && value >= 0 && value < 999) return String(Number(value.toFixed(digits))); // the same in both languages
  const form = digits * 10 + least;
  numbers[form] ??= new Intl.NumberFormat(language, { minimumFractionDigits: least, maximumFractionDigits: digits });
  return numbers[form].format(value);
}
