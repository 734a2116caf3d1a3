/**
 * The selected workers of a list: individual ones, or all that match its filters with exceptions. Draws nothing.
 * "All that match" is a request to the manager, not a list: it also covers workers that are not shown.
 */

import { conditionText } from './selector.js';

export const MAX_COMPARED = 20; // workers whose measurements are shown in one chart
export const MAX_WORKERS = 20; // workers whose logs are shown in one view

export class Selection {
  /** `onChange()` after each change. */
  constructor(onChange) {
    this.onChange = onChange;
    this.all = false;
    this.ids = new Set(); // selected individually
    this.left = new Set(); // with `all`: the exceptions
    this.anchor = null; // beginning of a range
  }

  has(id) {
    return this.all ? !this.left.has(id) : this.ids.has(id);
  }

  set(id, on) {
    const [target, add] = this.all ? [this.left, !on] : [this.ids, on];
    if (add) target.add(id);
    else target.delete(id);
  }

  /** `shown`: the ids of the list in its order. With `range`, everything from the last selected one to this one. */
  pick(id, on, range, shown) {
    const from = range && this.anchor !== null ? shown.indexOf(this.anchor) : -1;
    const to = shown.indexOf(id);
    if (from >= 0 && to >= 0) {
      for (const one of shown.slice(Math.min(from, to), Math.max(from, to) + 1)) this.set(one, on);
    } else {
      this.set(id, on);
    }
    this.anchor = id;
    this.onChange();
  }

  /** Extends the range by keyboard, row by row: from its beginning to `id`. `from`: its beginning, if there is none yet. */
  extend(id, from, shown) {
    if (this.anchor === null) this.anchor = from;
    const anchor = this.anchor;
    this.pick(id, true, true, shown);
    this.anchor = anchor;
  }

  pickAll() {
    this.clear(true);
  }

  clear(all = false) {
    this.all = all;
    this.ids.clear();
    this.left.clear();
    this.anchor = null;
    this.onChange();
  }

  /** The number of selected workers among `shown` (ids that match the filters) and the individually selected ones. */
  count(shown) {
    return this.all ? shown.filter((id) => !this.left.has(id)).length : this.ids.size;
  }

  /** The selection as a request to the manager: {selector, q}; `filter`: the list's filter, {selector, q}. */
  request(filter) {
    if (!this.all) return { selector: [...this.ids].sort().join('|'), q: '' };
    const left = this.left.size ? conditionText('id', [...this.left].sort(), true) : '';
    return { selector: [filter.selector, left].filter(Boolean).join(',') || '*', q: filter.q };
  }
}
