/**
 * Which workers are picked in a list: some by hand, or all that match its filters but a few. Draws nothing.
 * "All that match" is a wish to the manager, not a list: it holds for workers that no window has room for.
 */

import { conditionText } from './selector.js';

export class Selection {
  /** `onChange()` after each change. */
  constructor(onChange) {
    this.onChange = onChange;
    this.all = false;
    this.ids = new Set(); // picked by hand
    this.left = new Set(); // with `all`: not these
    this.anchor = null; // where a range begins
  }

  has(id) {
    return this.all ? !this.left.has(id) : this.ids.has(id);
  }

  set(id, on) {
    const [target, add] = this.all ? [this.left, !on] : [this.ids, on];
    if (add) target.add(id);
    else target.delete(id);
  }

  /** `shown`: the ids of the list in its order. With `range`, everything from the last one picked to this one. */
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

  /** With the keyboard, row by row: everything from where the range began to `id`. `from`: where it begins, if it has not yet. */
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

  /** How many of `shown` (ids that match the filters) and of those picked by hand it holds. */
  count(shown) {
    return this.all ? shown.filter((id) => !this.left.has(id)).length : this.ids.size;
  }

  /** What to ask the manager for: {selector, q}; `filter` is what the list shows, {selector, q}. */
  request(filter) {
    if (!this.all) return { selector: [...this.ids].sort().join('|'), q: '' };
    const left = this.left.size ? conditionText('id', [...this.left].sort(), true) : '';
    return { selector: [filter.selector, left].filter(Boolean).join(',') || '*', q: filter.q };
  }
}
