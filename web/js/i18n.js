/** Languages: every displayed text comes from web/locales through `t`. Knows nothing of pages. */

import { commands } from './commands.js';
import { recall, remember } from './storage.js';

export const LANGUAGES = ['zh-CN', 'en'];

let language = 'en';
let texts = {};
let plural = new Intl.PluralRules('en');
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
  let text = hasText(key) ? texts[key] : key;
  if (text.includes('|') && typeof values.n === 'number') {
    const forms = text.split('|');
    text = plural.select(values.n) === 'one' ? forms[0] : forms[forms.length - 1];
  }
  return text.replace(/\{(\w+)\}/g, (whole, name) => {
    if (!(name in values)) return whole;
    const value = values[name];
    return typeof value === 'number' ? formatNumber(value) : String(value);
  });
}

/** At most `digits` after the point, and `least` at least: a column of numbers with as many of each is aligned. */
export function formatNumber(value, digits = 0, least = 0) {
  if (!least && value >= 0 && value < 1000 && Number.isInteger(value)) return String(value); // without a separator; a list shows thousands of them
  const form = digits * 10 + least;
  numbers[form] ??= new Intl.NumberFormat(language, { minimumFractionDigits: least, maximumFractionDigits: digits });
  return numbers[form].format(value);
}
