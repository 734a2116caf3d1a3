/**
 * Stored events that match some filters: the newest are loaded from the manager's store in pages, older pages on request, and
 * later events are received live. Knows how far back events are loaded, and whether older ones are stored.
 */

import { get } from './api.js';
import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { serverNowMs, toMs } from './format.js';
import { rangeEnd, rangeStart } from './timerange.js';

const PAGE = 1000;
const AGES_EVERY_MS = 5000; // interval at which entries too old for the range are removed
const AGAIN_MS = 3000; // minimum interval between loads that are caused by an overflow of the live list

export function eventsPath(query, limit = PAGE) {
  return `/api/events?${new URLSearchParams({ ...query, limit: String(limit) })}`;
}

export class EventHistory {
  /** `store`: for live events; `changed()`: called after each response; `page`: number of events per request. */
  constructor(store, changed, { page = PAGE } = {}) {
    this.store = store;
    this.changed = changed;
    this.page = page;
    this.problem = h('div');
    this.asked = null; // the last query
    this.turn = 0;
    this.reset();
  }

  reset() {
    this.fetched = new Map(); // seq -> event
    this.loaded = false;
    this.complete = false; // no older events are stored
    this.oldest = 0; // lowest seq that the pages cover
    this.upTo = 0; // live events up to this seq are in the pages
    this.changes = (this.changes || 0) + 1; // number of changes of the fetched events
    this.known = '';
    this.found = [];
  }

  /** `query`: parameters of the API, e.g. {since, cause}; `words`: also searched in all stored events. Requested again only if it differs. */
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

  /** Loads the next older page. */
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

  /** More events arrived at once than the live list holds: the dropped ones are loaded from the store. */
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

  /** All loaded events of `range` ({since, until}), oldest first; the same list while there are no new ones. */
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

  /** The beginning of the oldest page; null while nothing is loaded. */
  loadedSince() {
    const event = this.fetched.get(this.oldest);
    return event ? event.at : null;
  }
}

function lastSeq(events) {
  return events.length ? events[events.length - 1].seq : 0;
}
