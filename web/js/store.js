/**
 * The page's data about the fleet: workers, hosts, operations and events, from the live protocol. Owns the data, draws nothing.
 * Data is never cleared because a connection broke: a page shows the last known data until newer data arrives.
 */

import { fieldsOf } from './fields.js';
import { hostTable, workerTable } from './rows.js';

const MAX_EVENTS = 2000;

export class Store {
  constructor() {
    this.tables = { workers: workerTable(), hosts: hostTable() };
    this.operations = new Map();
    this.events = []; // the newest events, oldest first
    this.eventsDropped = false; // whether events were dropped because the list was full
    this.loaded = new Set(); // topics that have received a snapshot
    this.listeners = new Map();
  }

  /** Rows by their id; each row is changed in place. */
  get workers() {
    return this.tables.workers.rows;
  }

  get hosts() {
    return this.tables.hosts.rows;
  }

  /** Calls `listener` after each change of `topic`; returns a function that unsubscribes. */
  on(topic, listener) {
    if (!this.listeners.has(topic)) this.listeners.set(topic, new Set());
    this.listeners.get(topic).add(listener);
    return () => this.listeners.get(topic).delete(listener);
  }

  changed(topic) {
    for (const listener of this.listeners.get(topic) || []) listener();
  }

  /** Applies a frame of the list of workers or hosts. */
  takeRows(topic, frame) {
    const table = this.tables[topic];
    if (frame.t === 'snap') {
      table.snapshot(frame);
      this.loaded.add(topic);
    } else if (frame.t === 'rows') {
      table.change(frame);
    } else {
      table.measures(frame, fieldsOf(topic).measures);
      if (frame.more) return; // shown with the last part
    }
    this.changed(topic);
  }

  snapshot(topic, items) {
    if (topic === 'events') {
      this.events = [];
      this.addEvents(items);
    } else {
      this[topic] = new Map(items.map((item) => [item.operation_id, stamp(item)]));
    }
    this.loaded.add(topic);
    this.changed(topic);
  }

  delta(topic, frame) {
    if (topic === 'events') {
      this.addEvents(frame.add || []);
    } else {
      for (const item of frame.set || []) this[topic].set(item.operation_id, stamp(item));
      for (const key of frame.del || []) this[topic].delete(key);
    }
    this.changed(topic);
  }

  /** Hosts with an approved agent; pending launchers are in `pending()`. */
  agents() {
    return [...this.hosts.values()].filter((agent) => agent.agent_state !== 'pending');
  }

  pending() {
    return [...this.hosts.values()].filter((agent) => agent.agent_state === 'pending');
  }

  addEvents(items) {
    for (const item of items) {
      const last = this.events.length ? this.events[this.events.length - 1].seq : -Infinity;
      if (item.seq > last) this.events.push(item);
      else if (!this.events.some((one) => one.seq === item.seq)) {
        this.events.push(item);
        this.events.sort((a, b) => a.seq - b.seq);
      }
    }
    if (this.events.length <= MAX_EVENTS) return;
    this.events.splice(0, this.events.length - MAX_EVENTS);
    this.eventsDropped = true;
  }
}

/** Records the time of arrival, from which countdowns ("starts in 30 s") are computed. */
function stamp(item) {
  item.receivedMs = Date.now();
  return item;
}
