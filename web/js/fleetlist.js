/**
 * The workers of a list, in its order, recomputed only as far as necessary. Ten thousand are filtered in a
 * few milliseconds and sorted in about ten; the order by name is kept between changes. Pure.
 */

import { fieldsOf, valueOf } from './fields.js';
import { facetMatches, isFiltered, matches } from './filters.js';
import { STATES } from './status.js';
import { naturalKey } from './rows.js';
import { toMs } from './format.js';

const FIXED = {
  worker: { of: null },
  state: { of: (worker) => STATES.indexOf(worker.state) },
};

/** {of: numbers or texts to sort by, with ties in the order of names; `measured`: changes every second}; null: not sortable. */
export function orderOf(name) {
  if (FIXED[name]) return FIXED[name];
  const field = fieldsOf('workers').columns.get(name);
  if (!field || !field.sortable) return null;
  return { of: (worker) => sortedBy(valueOf(worker, field), field.unit), measured: field.live === 'measure' };
}

function sortedBy(value, unit) {
  if (unit === 'moment') return -(toMs(value) ?? 0);
  return typeof value === 'number' ? value : unit ? -1 : naturalKey(value);
}

export function readSort(text) {
  return orderOf((text || '').replace(/^-/, '')) ? text : 'worker';
}

export class FleetList {
  /** `table`: the RowTable of workers. */
  constructor(table) {
    this.table = table;
    this.byName = [];
    this.members = -1;
    this.known = ''; // the input of the current result
    this.shown = [];
    this.counts = {}; // state -> number of workers that match all filters except states
    this.all = 0;
  }

  /** True if `shown` or `counts` may have changed. `filters`: from filters.js; `sort`: as in the address. */
  update(filters, sort) {
    const order = orderOf(sort.replace(/^-/, ''));
    const { table } = this;
    const known = `${table.version} ${order.measured ? table.measured : ''} ${sort}`;
    if (known === this.known && filters === this.filters) return false;
    this.known = known;
    this.filters = filters;
    this.sortByName();
    this.filter(filters);
    this.sort(order.of, sort.startsWith('-'));
    return true;
  }

  sortByName() {
    if (this.members === this.table.members) return;
    this.members = this.table.members;
    this.byName = [...this.table.rows.values()].sort((a, b) => (a.sortKey < b.sortKey ? -1 : a.sortKey > b.sortKey ? 1 : 0));
  }

  filter(filters) {
    const counts = {};
    const shown = [];
    const every = !isFiltered(filters);
    for (const worker of this.byName) {
      if (!every && !matches(worker, filters, 'state')) continue;
      counts[worker.state] = (counts[worker.state] || 0) + 1;
      if (every || facetMatches(worker, 'state', filters.facets.state)) shown.push(worker);
    }
    this.counts = counts;
    this.shown = shown;
    this.all = this.byName.length;
  }

  sort(of, descending) {
    const sign = descending ? -1 : 1;
    if (of === null) {
      if (descending) this.shown.reverse();
      return;
    }
    const keyed = this.shown.map((worker, at) => ({ worker, at, key: of(worker) }));
    keyed.sort((a, b) => (a.key < b.key ? -sign : a.key > b.key ? sign : a.at - b.at));
    this.shown = keyed.map((one) => one.worker);
  }
}
