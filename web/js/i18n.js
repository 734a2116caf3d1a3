/** Languages: every text a person reads comes from web/locales through `t`. Knows nothing of pages. */

import { commands } from './commands.js';
import { recall, remember } from './storage.js';

export const LANGUAGES = ['zh-CN', 'en'];

let language = 'en';
let texts = {};
let plural = new Intl.PluralRules('en');
let numbers = []; // by digits: what writes a number; making one takes a hundred times as long as using it

/** The language to start with: ?lang, then the stored choice, then what the browser prefers, then English. */
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

/** With the hash of what the manager puts together, so that a browser keeps it until that changes. */
export function versioned(path) {
  const { texts: version } = document.documentElement.dataset;
  return version ? `${path}?v=${version}` : path;
}

/** The language of answers that are asked for before its texts are here. */
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

/** The user's own choice: remembered, and it replaces a ?lang in the address. */
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

/** The text of `key` as it is written. */
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

export function formatNumber(value, digits = 0) {
  numbers[digits] ??= new Intl.NumberFormat(language, { maximumFractionDigits: digits });
  return numbers[digits].format(value);
}
