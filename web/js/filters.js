/**
 * The filters of the list of workers: conditions on a row, and their forms in an address and in a request to
 * the manager. Pure.
 */

import { reasonOf } from './reasons.js';
import { conditionText, parseSelector, readTyped, selectorMatches } from './selector.js';
import { stateNamed } from './status.js';

/** The fields whose values can be selected, each with `of(worker)`, the worker's values. */
export const FIELDS = {
  state: (worker) => [worker.state],
  host: (worker) => (worker.host ? [worker.host] : []),
  group: (worker) => (worker.group ? [worker.group] : []),
  label: (worker) => Object.entries(worker.labels || {}).map(([name, value]) => `${name}=${value}`),
};
export const FIELD_NAMES = Object.keys(FIELDS);

/** {q, facets: {state: {in: [], out: []}, …}, words, selector, conditions} of an address. */
export function readFilters(query) {
  const typed = readTyped(query.get('q') || '', stateNamed);
  const selector = typed.conditions.join(',');
  return {
    text: query.get('q') || '',
    words: typed.words,
    selector,
    conditions: parseSelector(selector),
    facets: Object.fromEntries(FIELD_NAMES.map((name) => [name, readValues(query.get(name) || '')])),
  };
}

function readValues(text) {
  const parts = text.split(',').filter(Boolean);
  return {
    in: parts.filter((part) => !part.startsWith('!')).map(decode),
    out: parts.filter((part) => part.startsWith('!')).map((part) => decode(part.slice(1))),
  };
}

function decode(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

/** The form in an address: "failed,!stopped". */
export function writeValues({ in: wanted, out }) {
  const written = (value) => encodeURIComponent(value).replace(/^!/, '%21');
  return [...wanted.map(written), ...out.map((value) => `!${written(value)}`)].join(',');
}

/** {state: "failed", host: "!gpu03", q: "train"}: everything that filters. */
export function filterQuery({ text, facets }) {
  return { ...Object.fromEntries(FIELD_NAMES.map((name) => [name, writeValues(facets[name])])), q: text };
}

export function isFiltered({ facets, words, conditions }) {
  return words.length > 0 || conditions.length > 0 || FIELD_NAMES.some((name) => facets[name].in.length + facets[name].out.length > 0);
}

/** Whether a worker matches all filters, except that of the field `but`. */
export function matches(worker, filters, but = '') {
  for (const name of FIELD_NAMES) if (name !== but && !facetMatches(worker, name, filters.facets[name])) return false;
  if (filters.conditions.length && !selectorMatches(filters.conditions, worker)) return false;
  if (!filters.words.length) return true;
  const text = searchedText(worker);
  return filters.words.every((word) => text.includes(word));
}

export function facetMatches(worker, name, { in: wanted, out }) {
  if (!wanted.length && !out.length) return true;
  if (name === 'state') return (!wanted.length || wanted.includes(worker.state)) && !out.includes(worker.state);
  const values = FIELDS[name](worker);
  if (out.some((value) => values.includes(value))) return false;
  if (!wanted.length) return true;
  if (name !== 'label') return wanted.some((value) => values.includes(value));
  const labels = new Map(); // for each named label, any of its values
  for (const pair of wanted) labels.set(labelName(pair), labels.get(labelName(pair)) || values.includes(pair));
  return [...labels.values()].every(Boolean);
}

function labelName(pair) {
  return pair.slice(0, pair.indexOf('='));
}

/** The searched text, cached for each worker until its row changes. */
function searchedText(worker) {
  if (worker.searched === null || worker.searched === undefined) {
    worker.searched = [worker.worker_id, worker.host, worker.group, reasonOf(worker), worker.command, ...FIELDS.label(worker)].join('\n').toLowerCase();
  }
  return worker.searched;
}

/** The filters as a request to the manager: {selector, q}. */
export function filterRequest({ facets, selector, words }) {
  const parts = [];
  for (const name of FIELD_NAMES.filter((one) => one !== 'label')) {
    if (facets[name].in.length) parts.push(conditionText(name, facets[name].in));
    if (facets[name].out.length) parts.push(conditionText(name, facets[name].out, true));
  }
  for (const excluded of [false, true]) {
    const byName = new Map();
    for (const pair of facets.label[excluded ? 'out' : 'in']) {
      const name = labelName(pair);
      byName.set(name, [...(byName.get(name) || []), pair.slice(name.length + 1)]);
    }
    for (const [name, values] of byName) parts.push(conditionText(`label.${name}`, values, excluded));
  }
  if (selector) parts.push(selector);
  return { selector: parts.join(','), q: words.join(' ') };
}

/** The filters with one value of a field included, excluded, or neither ("in", "out", ""). */
export function withValue(facets, name, value, side) {
  const without = (values) => values.filter((one) => one !== value);
  const next = { in: without(facets[name].in), out: without(facets[name].out) };
  if (side) next[side].push(value);
  return { ...facets, [name]: next };
}

export function sideOf(facet, value) {
  return facet.in.includes(value) ? 'in' : facet.out.includes(value) ? 'out' : '';
}
