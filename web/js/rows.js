/**
 * A live list of workers or hosts: rows in slots, from the columns of the live protocol (procguard/portal/live/tables.py). Pure, except
 * for the names of its fields.
 *
 * Each row is one object that is changed in place, so that ten thousand of them cost little and a day of frames adds
 * nothing. `version` counts changes of rows and their fields, `measured` those of measurements.
 */

import { fieldsOf } from './fields.js';

/** Fields that the page adds to a row. */
const OF_PAGE = { receivedMs: 0, usage: null, searched: null /* the searched text, created on demand */, sortKey: '' };

export class RowTable {
  /** `keyOf(row)`; `names()`: the fields of a row; `apart`: measured fields that are not part of its usage; `cleared(row)`: its fields changed. */
  constructor({ keyOf, names, apart, cleared }) {
    this.keyOf = keyOf;
    this.names = names;
    this.empty = null; // an empty row, known once the fields are loaded
    this.apart = apart;
    this.cleared = cleared;
    this.rows = new Map(); // key -> row
    this.slots = [];
    this.version = 0;
    this.members = 0; // counts added and removed rows
    this.measured = 0;
  }

  /**
   * An empty row. Copies of a parsed object have a fixed layout in V8; an object that was given more than a dozen fields one by one is a
   * hash table, which takes many times as long to create and to read.
   */
  blank() {
    this.empty ??= JSON.parse(JSON.stringify({ ...Object.fromEntries(this.names().map((name) => [name, null])), ...OF_PAGE }));
    return { ...this.empty };
  }

  /** Applies the whole list. Existing rows remain the same objects, so that references of a page stay valid. */
  snapshot({ slots, columns }) {
    const before = this.rows;
    this.rows = new Map();
    this.slots = [];
    const order = summed(slots);
    const names = Object.keys(columns);
    const values = names.map((name) => plain(columns[name]));
    const key = this.blank();
    order.forEach((slot, at) => {
      if (before.size) write(key, names, values, at);
      const row = (before.size && before.get(this.keyOf(key))) || this.blank();
      write(row, names, values, at);
      this.settle(row);
      this.slots[slot] = row;
      this.rows.set(this.keyOf(row), row);
    });
    this.version += 1;
    this.members += 1;
  }

  /** Applies changes: removed rows, then absolute values of the changed ones. */
  change({ gone, slots, columns }) {
    for (const slot of gone) this.remove(slot);
    const names = Object.keys(columns);
    summed(slots).forEach((slot, at) => {
      const known = this.slots[slot];
      const row = known || this.blank();
      for (const name of names) row[name] = columns[name][at];
      this.settle(row);
      if (known) return;
      this.slots[slot] = row;
      this.rows.set(this.keyOf(row), row);
      this.members += 1;
    });
    this.version += 1;
  }

  remove(slot) {
    const row = this.slots[slot];
    if (!row) return;
    this.slots[slot] = undefined;
    this.rows.delete(this.keyOf(row));
    this.members += 1;
  }

  settle(row) {
    row.receivedMs = Date.now();
    this.cleared(row);
  }

  /** Applies measurements; an omitted column was measured for none of the rows. */
  measures({ slots, columns }, names) {
    const apart = names.filter((name) => this.apart.includes(name));
    const used = names.filter((name) => !this.apart.includes(name));
    const ofApart = apart.map((name) => columns[name]);
    const ofUsed = used.map((name) => columns[name]);
    summed(slots).forEach((slot, at) => {
      const row = this.slots[slot];
      if (!row) return;
      write(row, apart, ofApart, at);
      const usage = row.usage || (Array.isArray(row.gpus) ? { gpus: row.gpus } : {});
      row.usage = write(usage, used, ofUsed, at) ? usage : null; // null while nothing is measured
    });
    this.measured += 1;
  }
}

/** [3, 1, 5] -> [3, 4, 9] */
export function summed(differences) {
  let at = 0;
  return differences.map((step) => (at += step));
}

function plain(column) {
  return Array.isArray(column) ? column : column.at.map((place) => column.of[place]);
}

const FROM_LOG = ['metrics', 'progress_percent', 'eta_s']; // measures of a worker that do not belong to its usage

export function workerTable() {
  return new RowTable({
    keyOf: (row) => row.worker_id,
    names: () => [...fieldsOf('workers').rows, ...FROM_LOG],
    apart: FROM_LOG,
    cleared: (row) => {
      row.searched = null;
      row.sortKey = row.sortKey || naturalKey(row.worker_id);
      if (Array.isArray(row.health)) row.health = { status: row.health[0], detail: row.health[1] };
      if (row.usage) row.usage.gpus = row.gpus || [];
    },
  });
}

export function hostTable() {
  return new RowTable({
    // one row per agent; the key of a pending launcher includes its fingerprint, because two may claim one name
    keyOf: (row) => (row.agent_state === 'pending' ? `${row.agent} ${row.fingerprint}` : row.agent),
    names: () => [...fieldsOf('hosts').rows, 'last_seen'],
    apart: ['last_seen'],
    cleared: (row) => {
      row.searched = null;
      row.sortKey = row.sortKey || naturalKey(row.host);
    },
  });
}

/** Stores one value of each column; an omitted column has none. Returns whether there was any. */
function write(row, names, columns, at) {
  let any = false;
  for (let place = 0; place < names.length; place += 1) {
    const value = columns[place] ? columns[place][at] : null;
    row[names[place]] = value;
    if (value !== null) any = true;
  }
  return any;
}

/** "worker10" -> "worker0000000010", so that plain comparison orders worker2 before it, a hundred times faster than a collator. */
export function naturalKey(text) {
  return (text || '').toLowerCase().replace(/\d+/g, (digits) => digits.padStart(10, '0'));
}
