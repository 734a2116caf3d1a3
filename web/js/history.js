/**
 * Events on record that fit some filters: the newest come from the manager's store in pages, older pages when somebody asks, and
 * what happens from then on comes live. Knows how far back it is loaded, and whether anything older is on record.
 */

import { get } from './api.js';
import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { serverNowMs, toMs } from './format.js';
import { rangeEnd, rangeStart } from './timerange.js';

const PAGE = 1000;
const AGES_EVERY_MS = 5000; // interval at which entries too old for the range are removed
const AGAIN_MS = 3000; // between two loads because more came than the live list holds

export function eventsPath(query, limit = PAGE) {
  return `/api/events?${new URLSearchParams({ ...query, limit: String(limit) })}`;
}

export class EventHistory {
  /** `store`: for what comes live; `changed()` once an answer is here; `page`: events of one request. */
  constructor(store, changed, { page = PAGE } = {}) {
    this.store = store;
    this.changed = changed;
    this.page = page;
    this.problem = h('div');
    this.asked = null; // the query as it was asked
    this.turn = 0;
    this.reset();
  }

  reset() {
    this.fetched = new Map(); // seq -> event
    this.loaded = false;
    this.complete = false; // nothing older is on record
    this.oldest = 0; // seq that the pages reach back to
    this.upTo = 0; // what came live until then is in the pages
    this.changes = (this.changes || 0) + 1; // of what was fetched
    this.known = '';
    this.found = [];
  }

  /** `query`: what the API takes, e.g. {since, cause}; `words`: also looked for in everything on record. Asked again only when it is another one. */
  load(query, words = '') {
    const filled = Object.fromEntries(Object.entries(query).filter(([, value]) => value));
    const asked = JSON.stringify([filled, words]);
    if (asked === this.asked) return null;
    this.asked = asked;
    this.query = filled;
    this.words = words;
    this.reset();
    return this.fetch();
  }

  /** The next older page. */
  more() {
    return this.complete ? null : this.fetch();
  }

  async fetch() {
    const turn = (this.turn += 1);
    const { query, words, oldest } = this;
    const before = oldest ? { before: String(oldest) } : {};
    try {
      const [page, matching] = await Promise.all([this.ask({ ...query, ...before }), words && !oldest ? this.ask({ ...query, q: words }) : []]);
      if (turn !== this.turn) return;
      fill(this.problem);
      for (const event of [...page, ...matching]) this.fetched.set(event.seq, event);
      this.complete = page.length < this.page;
      this.oldest = page.length ? page[0].seq : oldest;
      if (!oldest) this.upTo = Math.max(lastSeq(this.store.events), page.length ? page[page.length - 1].seq : 0);
      this.loaded = true;
      this.changes += 1;
      this.changed();
    } catch (error) {
      if (turn !== this.turn) return;
      if (error.status !== 401) fill(this.problem, errorBox(error, () => this.fetch()));
    }
  }

  async ask(query) {
    return (await get(eventsPath(query, this.page))).events;
  }

  /** More came at once than the live list holds: what fell out of it is on record. */
  catchUp() {
    const [first] = this.store.events;
    if (!this.loaded || !this.store.eventsDropped || !first || first.seq <= this.upTo + 1) return;
    const now = performance.now();
    if (now - (this.caughtUp || -Infinity) < AGAIN_MS) return;
    this.caughtUp = now;
    this.oldest = 0;
    this.fetched.clear();
    this.fetch();
  }

  /** Everything of `range` ({since, until}) that is loaded, oldest first; the same list while nothing came. */
  within(range, accepts = () => true) {
    this.catchUp();
    const { events } = this.store;
    const known = [range.since, range.until, this.changes, events.length, lastSeq(events), Math.floor(serverNowMs() / AGES_EVERY_MS)].join();
    if (known === this.known) return this.found;
    this.known = known;
    const start = rangeStart(range);
    const end = range.until ? rangeEnd(range) : Infinity;
    const live = this.loaded ? events.filter((event) => event.seq >= this.oldest && accepts(event)) : [];
    const all = new Map([...this.fetched, ...live.map((event) => [event.seq, event])]);
    const inRange = (event) => (toMs(event.at) ?? 0) >= start && (toMs(event.at) ?? 0) <= end;
    this.found = [...all.values()].filter(inRange).sort((a, b) => a.seq - b.seq);
    return this.found;
  }

  /** When the oldest page begins; null while nothing is loaded. */
  loadedSince() {
    const event = this.fetched.get(this.oldest);
    return event ? event.at : null;
  }
}

function lastSeq(events) {
  return events.length ? events[events.length - 1].seq : 0;
}
