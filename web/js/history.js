/** Events of some range: those the manager has in memory, asked for once, and those that come live after. */

import { get } from './api.js';
import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { serverNowMs, toMs } from './format.js';
import { t } from './i18n.js';

export const RANGES = ['1h', '24h', '7d', 'all'];
const RANGE_MS = { '1h': 3600e3, '24h': 86400e3, '7d': 7 * 86400e3, all: Infinity };
const FETCHED = 5000;
const AGES_EVERY_MS = 5000; // interval at which entries too old for the range are removed

/** When the range began, in ms; -Infinity for "all". */
export function rangeStart(range) {
  return serverNowMs() - RANGE_MS[range];
}

/** The next wider range, or null. */
export function wider(range) {
  return RANGES[RANGES.indexOf(range) + 1] || null;
}

export class EventHistory {
  /** `store`: for what comes live; `changed()` once an answer is here. */
  constructor(store, changed) {
    this.store = store;
    this.changed = changed;
    this.fetched = [];
    this.loaded = false;
    this.asked = '';
    this.turn = 0;
    this.known = ''; // what `found` was worked out of
    this.found = [];
    this.problem = h('div');
  }

  /** `query`: what the API takes, e.g. {since, cause}. Asked again only when it is another one. */
  async load(query) {
    const filled = Object.entries(query).filter(([, value]) => value);
    const parameters = new URLSearchParams([...filled, ['limit', String(FETCHED)]]).toString();
    if (parameters === this.asked) return;
    this.asked = parameters;
    const turn = ++this.turn;
    try {
      const answer = await get(`/api/events?${parameters}`);
      if (turn !== this.turn) return;
      fill(this.problem);
      this.fetched = answer.events;
      this.loaded = true;
      this.changed();
    } catch (error) {
      if (turn !== this.turn) return;
      this.asked = '';
      if (error.status !== 401) fill(this.problem, errorBox(error, () => this.load(query)));
    }
  }

  /** Everything of the range, oldest first; the same list while nothing came. */
  since(range) {
    const { events } = this.store;
    const last = events.length ? events[events.length - 1].seq : 0;
    const known = `${range} ${this.turn} ${this.fetched.length} ${last} ${Math.floor(serverNowMs() / AGES_EVERY_MS)}`;
    if (known === this.known) return this.found;
    const start = rangeStart(range);
    const newest = this.fetched.length ? this.fetched[this.fetched.length - 1].seq : -1;
    const live = events.filter((event) => event.seq > newest);
    this.known = known;
    this.found = [...this.fetched, ...live].filter((event) => (toMs(event.at) ?? 0) >= start);
    return this.found;
  }
}

/** A select for the range. `onPick(range)`. */
export function rangePick(chosen, onPick) {
  const select = h('select.input', { 'aria-label': t('range.label'), on: { change: () => onPick(select.value) } });
  select.append(...RANGES.map((range) => h('option', { value: range, selected: range === chosen }, t(`range.${range}`))));
  return select;
}

/** A button that widens the range, for an empty page; nothing where there is no wider one. */
export function widenButton(range, onPick) {
  const next = wider(range);
  return next ? h('button.button', { type: 'button', on: { click: () => onPick(next) } }, t('range.widen', { range: t(`range.${next}`) })) : null;
}
