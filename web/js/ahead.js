/**
 * Prefetches the first requests of a page together with the lists, in one response. The paths are those recorded when its address was last
 * opened in this browser; the manager omits those that it cannot answer at once. Each response is used once, and only while the page starts.
 */

import { recall, remember } from './storage.js';

const STORED = 'ahead';
const STARTS_MS = 3000; // later, a response would be outdated
const ADDRESSES = 40;
const PATHS = 8; // maximum accepted by the manager
const CHARS = 3000; // of all paths of an address together
const NEVER = /^\/api\/(live|session)\b/;

let address = '';
let noted = null; // null: the page has started
let answers = new Map();
let timer = null;

/** The paths to request with the lists; `usual`: the default if nothing is recorded. */
export function pathsAhead(usual = []) {
  address = location.hash;
  const known = stored();
  const paths = known[address] || usual;
  delete known[address];
  keep(known);
  noted = [];
  clearTimeout(timer);
  timer = setTimeout(ended, STARTS_MS);
  return paths;
}

/** Stores `also` of the response: {path: {etag, body}}. */
export function bringAhead(also) {
  if (noted) answers = new Map(Object.entries(also || {}));
}

/** The prefetched response to `path`, if there is one: {etag, body}. */
export function takeAhead(path) {
  if (!noted || NEVER.test(path) || !path.startsWith('/api/')) return undefined;
  note(path);
  const answer = answers.get(path);
  answers.delete(path);
  return answer;
}

export function forgetAhead() {
  ended();
  remember(STORED, null);
}

function note(path) {
  if (location.hash !== address) ended();
  if (!noted || noted.includes(path) || noted.length === PATHS || [...noted, path].join('').length > CHARS) return;
  noted.push(path);
  keep({ ...stored(), [address]: noted });
}

function ended() {
  noted = null;
  answers = new Map();
}

/** {address: its paths}, oldest first. */
function stored() {
  try {
    const known = JSON.parse(recall(STORED));
    return Object.fromEntries(Object.entries(known || {}).filter(([, paths]) => Array.isArray(paths) && paths.every((one) => typeof one === 'string')));
  } catch {
    return {};
  }
}

function keep(known) {
  remember(STORED, JSON.stringify(Object.fromEntries(Object.entries(known).slice(-ADDRESSES))));
}
