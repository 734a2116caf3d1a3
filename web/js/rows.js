/**
 * A live list of workers or hosts: rows in slots, from the columns of the live protocol (procguard/portal/live/tables.py). Pure, except
 * for the names of its fields.
 *
 * Each row is one object that is changed in place, so that ten thousand of them cost little and a day of frames adds
 * nothing. `version` counts changes of rows and their fields, `measured` those of measurements.
 */

import { fieldsOf } from './fields.js';

export class RowTable {
  /** `keyOf(row)`; `blank()` creates an empty row, always of the same shape; `measure(row, name, value)` stores one measured value. */
  constructor({ keyOf, blank, measure, cleared }) {
    this.keyOf = keyOf;
    this.blank = blank;
    this.measure = measure;
    this.cleared = cleared;
    this.rows = new Map(); // key -> row
    this.slots = [];
    this.version = 0;
    this.members = 0; // counts added and removed rows
    this.measured = 0;
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
      names.forEach((name, column) => {
        key[name] = values[column][at];
      });
      const row = before.get(this.keyOf(key)) || this.blank();
      names.forEach((name, column) => {
        row[name] = values[column][at];
      });
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
    if (this.cleared) this.cleared(row);
  }

  /** Applies measurements; an omitted column was measured for none of the rows. */
  measures({ slots, columns }, names) {
    summed(slots).forEach((slot, at) => {
      const row = this.slots[slot];
      if (!row) return;
      for (const name of names) this.measure(row, name, columns[name] ? columns[name][at] : null);
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

function blankRow(names) {
  const row = {};
  for (const name of names) row[name] = null;
  row.receivedMs = 0;
  row.usage = null;
  row.searched = null; // the searched text, created on demand
  row.sortKey = '';
  return row;
}

const FROM_LOG = ['metrics', 'progress_percent', 'eta_s']; // measures of a worker that do not belong to its usage

export function workerTable() {
  return new RowTable({
    keyOf: (row) => row.worker_id,
    blank: () => ({ ...blankRow(fieldsOf('workers').rows), metrics: null, progress_percent: null, eta_s: null }),
    measure: (row, name, value) => {
      if (FROM_LOG.includes(name)) row[name] = value;
      else takeMeasure(row, name, value, fieldsOf('workers').measures);
    },
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
    blank: () => ({ ...blankRow(fieldsOf('hosts').rows), last_seen: null }),
    measure: (row, name, value) => {
      if (name === 'last_seen') row.last_seen = value;
      else takeMeasure(row, name, value, fieldsOf('hosts').measures);
    },
    cleared: (row) => {
      row.searched = null;
      row.sortKey = row.sortKey || naturalKey(row.host);
    },
  });
}

/** `usage` is null while nothing is measured. */
function takeMeasure(row, name, value, names) {
  if (value !== null && row.usage === null) {
    row.usage = {};
    for (const one of names) row.usage[one] = null;
    if (Array.isArray(row.gpus)) row.usage.gpus = row.gpus;
  }
  if (row.usage === null) return;
  row.usage[name] = value;
  if (value === null && names.every((one) => row.usage[one] === null || one === 'last_seen')) row.usage = null;
}

/** "worker10" -> "worker0000000010", so that plain comparison orders worker2 before it, a hundred times faster than a collator. */
export function naturalKey(text) {
  return (text || '').toLowerCase().replace(/\d+/g, (digits) => digits.padStart(10, '0'));
}
