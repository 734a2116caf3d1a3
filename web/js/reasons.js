/**
 * Reasons: a code with parameters becomes a sentence in the page's language. The manager adds the templates to each locale (procguard/i18n/
 * reason_texts.py); remote_agent/protocol/reasons.py defines the syntax of templates. Parameters are text, never markup.
 */

import { formatDuration } from './format.js';
import { currentLanguage, formatNumber, hasText, template } from './i18n.js';

const DEEPEST = 8;
const sentences = { language: '', of: new WeakMap() }; // reason -> its text: a snapshot's rows share few reasons, and a list shows them all the time
const WORDS = ['state', 'verb', 'status', 'agent', 'opstatus'];

/**
 * The text NAME in data from the manager: a plain text, {code, params}, or a text with NAME_code and NAME_params beside it. `left`: the seconds
 * until what it announces, if they are shown beside it; otherwise it has the delay from when it was written.
 */
export function reasonOf(shown, name = 'reason', left = null) {
  if (!shown) return '';
  const value = shown[name];
  if (isReason(value)) return !value.code ? '' : left === null ? sentenceOf(value) : rendered(value, 0, left);
  const code = shown[`${name}_code`];
  if (!code || !hasText(`reason.${code}`)) return code && value === code ? unknown(code, shown[`${name}_params`] || {}, 0) : value || '';
  return rendered({ code, params: shown[`${name}_params`] || {} }, 0, left);
}

/** The reasons after the first one, if that is shown by other means. */
export function restOfReason(shown) {
  const also = ((shown && shown.reason_params) || {}).also;
  return Array.isArray(also) ? also.filter(isReason).map((one) => rendered(one)).join(template('word.joint')) : '';
}

/** The displayed name of an actor: translated for the manager's own components, unchanged for people. */
export function actorName(name) {
  return name ? word('actor', name) : '';
}

function sentenceOf(reason) {
  if (sentences.language !== currentLanguage()) Object.assign(sentences, { language: currentLanguage(), of: new WeakMap() });
  if (!sentences.of.has(reason)) sentences.of.set(reason, rendered(reason));
  return sentences.of.get(reason);
}

function rendered({ code, params }, depth = 0, left = null) {
  const text = hasText(`reason.${code}`) ? filled(template(`reason.${code}`), params, depth, left) : unknown(code, params, depth);
  const also = Array.isArray(params.also) && depth < DEEPEST ? params.also.filter(isReason) : [];
  return [text, ...also.map((one) => rendered(one, depth + 1, left))].join(template('word.joint'));
}

function filled(text, params, depth, left) {
  const forms = text.split('|');
  const chosen = forms.length > 1 && params.n !== 1 ? forms[1] : forms[0];
  return chosen.replace(/\{(\w+)(?::(\w+))?\}/g, (whole, name, form) => {
    if (!Object.hasOwn(params, name)) return whole;
    return form === 'in' && left !== null ? inTime(left, 1) : shown(form, params[name], depth);
  });
}

function unknown(code, params, depth) {
  const parts = Object.keys(params).filter((name) => name !== 'also').map((name) => `${name}=${shown('', params[name], depth)}`);
  return parts.length ? `${code} (${parts.join(', ')})` : code;
}

function shown(form, value, depth) {
  if (isReason(value)) return depth < DEEPEST ? rendered(value, depth + 1) : '…';
  if (Array.isArray(value)) {
    const items = value.map((one) => shown(form === 'counts' ? form : '', one, depth));
    if (form === 'joined') return items.join(template('word.joint'));
    const names = items.slice(0, 10).join(template('word.comma'));
    return items.length > 10 ? template('word.and_more').replace('{names}', () => names).replace('{n}', String(items.length - 10)) : names;
  }
  if (typeof value === 'number') {
    if (form === 'duration') return formatDuration(value);
    if (form === 'in') return inTime(value);
    return Number.isInteger(value) ? String(value) : formatNumber(value, 3);
  }
  const text = String(value);
  if (form === 'state' && currentLanguage() === 'en') return text; // the name in the API and the command line
  if (WORDS.includes(form)) return word(form, text);
  if (form === 'actor') return actorName(text);
  if (form === 'counts') {
    const [number, ...state] = text.split(' ');
    return template('word.count').replace('{n}', number).replace('{what}', () => word('result', state.join(' ')));
  }
  return text;
}

function inTime(seconds, units = 2) {
  return seconds < 0.05 ? template('word.now') : template('word.in').replace('{d}', () => formatDuration(seconds, units));
}

function word(kind, name) {
  const key = `word.${kind}.${name}`;
  return hasText(key) ? template(key) : name;
}

function isReason(value) {
  return Boolean(value) && typeof value === 'object' && typeof value.code === 'string' && Boolean(value.params) && typeof value.params === 'object';
}

/** The codes of an event's reason and of the reasons that follow it. */
export function codesOf(event) {
  const also = (event.reason_params || {}).also;
  return [event.reason_code, ...(Array.isArray(also) ? also.filter(isReason).map((one) => one.code) : [])].filter(Boolean);
}
