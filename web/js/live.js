/**
 * The live connection: one WebSocket, topics with sequence numbers, resync of exactly the topic that has a gap.
 *
 *   server  {"t":"hello","proto":1,"epoch":E,"managers":[URL…]}      the last where there are several
 *   client  {"t":"sub","topic":"workers","seq":N}      N = what it has of this epoch, 0 = nothing
 *   server  {"t":"snap","topic","seq","items"}  {"t":"delta","topic","seq","prev","set","del"|"add"}  {"t":"log","topic","seq","prev",…}
 *
 * The lists of workers and hosts have their snapshot from a request of its own, then frames in columns (rows.js):
 *   server  {"t":"rows","topic","seq","prev",…}  {"t":"measures","topic","seq",…}  {"t":"gap","topic"}: take a snapshot again
 * A large frame is binary: the same JSON, deflated.
 *
 * Owns the socket and the states live / reconnecting; data is passed to the handler of its topic.
 */

import { GONE_MS, nextManager, standsBy } from './takeover.js';

const RETRY_MS = [250, 500, 1000, 2000]; // the last one repeats; each with jitter, so that tabs do not return in step
const QUIET_MS = 8000; // the server's pings are invisible to a page: after this long without a frame, ask /healthz
const PROBE_MS = 3000;
const WATCH_MS = 2000;
const CLOSE_UNAUTHORIZED = 4401;
const CLOSE_OVERFLOW = 4408; // this page reads too slowly: reconnect with a delay and jitter
const RESYNC_SPREAD_MS = 2000;

export class Live {
  /** `onState()` after each change of `state`; `onRefused()` when the manager no longer knows this browser. */
  constructor({ onState, onRefused }) {
    this.onState = onState;
    this.onRefused = onRefused;
    this.managers = []; // their URLs, the leader's first; []: a single manager
    this.lostMs = 0; // time at which the connection was lost
    this.state = 'connecting';
    this.lastFrameMs = 0;
    this.lastEpoch = null; // of the current data
    this.topics = new Map(); // name -> {seq, handler, fetch, epoch, fetching}
    this.unpacking = null; // frames are processed in order, although unpacking is asynchronous
    this.epoch = null; // of this connection, known after hello
    this.socket = null;
    this.failures = 0;
    this.timer = null;
    this.wanted = false;
    window.addEventListener('online', () => this.retryNow());
    window.addEventListener('offline', () => this.drop());
    document.addEventListener('visibilitychange', () => {
      if (!document.hidden) this.retryNow();
    });
    setInterval(() => this.watch(), WATCH_MS);
  }

  start() {
    this.wanted = true;
    if (this.socket) return;
    this.become(this.lastFrameMs ? 'reconnecting' : 'connecting');
    this.connect();
    for (const [name, topic] of this.topics) if (topic.fetch) this.ask(name); // its snapshot need not wait for the socket
  }

  stop() {
    this.wanted = false;
    this.drop();
  }

  /**
   * `handler(frame)` gets snap, delta, log, rows and measures frames. `fetch()`: for lists, the request that answers the
   * snapshot with its `seq` and `epoch`. Returns the function that unsubscribes.
   */
  subscribe(topic, handler, fetch = null) {
    this.topics.set(topic, { seq: 0, handler, fetch, epoch: null, fetching: false });
    if (this.wanted) this.ask(topic);
    return () => {
      this.topics.delete(topic);
      this.send({ t: 'unsub', topic });
    };
  }

  ask(name) {
    const topic = this.topics.get(name);
    if (topic.fetch && topic.seq === 0) this.fetchSnapshot(name, topic);
    else if (this.epoch !== null) this.send({ t: 'sub', topic: name, seq: topic.seq });
  }

  async fetchSnapshot(name, topic) {
    if (topic.fetching) return;
    topic.fetching = true;
    try {
      const snapshot = await topic.fetch();
      topic.seq = snapshot.seq;
      topic.epoch = snapshot.epoch;
      this.lastFrameMs = Date.now();
      topic.handler({ ...snapshot, t: 'snap' });
    } catch {
      topic.seq = 0; // the manager is down, or the session has ended: requested again once that changes
    } finally {
      topic.fetching = false;
    }
    if (this.topics.get(name) !== topic || this.epoch === null) return;
    if (topic.seq && topic.epoch === this.epoch) this.send({ t: 'sub', topic: name, seq: topic.seq });
    else this.askLater(name, topic);
  }

  askLater(name, topic) {
    topic.seq = 0;
    setTimeout(() => {
      if (this.topics.get(name) === topic && this.epoch !== null && topic.seq === 0) this.ask(name);
    }, RETRY_MS[0] + RESYNC_SPREAD_MS * Math.random());
  }

  send(message) {
    if (this.socket && this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(message));
  }

  connect() {
    clearTimeout(this.timer);
    const scheme = location.protocol === 'https:' ? 'wss' : 'ws';
    const socket = new WebSocket(`${scheme}://${location.host}/ws`);
    socket.binaryType = 'arraybuffer';
    this.socket = socket;
    socket.onmessage = (event) => this.unpack(socket, event.data);
    socket.onclose = (event) => {
      if (socket === this.socket) this.lost(event.code);
    };
  }

  unpack(socket, data) {
    const take = (text) => {
      if (socket === this.socket) this.receive(JSON.parse(text));
    };
    if (typeof data === 'string' && !this.unpacking) {
      take(data);
      return;
    }
    const text = typeof data === 'string' ? data : inflated(data);
    const turn = (this.unpacking || Promise.resolve()).then(async () => {
      try {
        take(await text);
      } catch {
        if (socket === this.socket) this.drop(); // damaged: the missing data is requested again
      } finally {
        if (this.unpacking === turn) this.unpacking = null;
      }
    });
    this.unpacking = turn;
  }

  receive(frame) {
    this.lastFrameMs = Date.now();
    if (frame.t === 'hello') {
      this.managers = Array.isArray(frame.managers) ? frame.managers : [];
      this.onHello(frame.epoch);
      return;
    }
    const topic = this.topics.get(frame.topic);
    if (!topic) return;
    if (frame.t === 'gap') {
      this.askLater(frame.topic, topic);
      return;
    }
    if (frame.t !== 'snap' && topic.seq === 0) return; // its snapshot is pending
    if (frame.t === 'measures') {
      if (frame.seq === topic.seq) topic.handler(frame);
      return;
    }
    if (frame.t !== 'snap' && frame.prev !== topic.seq) {
      topic.seq = 0; // a gap: only this topic restarts
      this.ask(frame.topic);
      return;
    }
    if (typeof frame.seq === 'number') topic.seq = frame.seq;
    topic.handler(frame);
  }

  onHello(epoch) {
    for (const topic of this.topics.values()) if (epoch !== (topic.fetch ? topic.epoch : this.lastEpoch)) topic.seq = 0;
    this.lastEpoch = epoch;
    this.epoch = epoch;
    this.failures = 0;
    this.lostMs = 0;
    this.become('live');
    for (const name of this.topics.keys()) this.ask(name);
  }

  lost(code) {
    this.socket = null;
    this.epoch = null;
    if (!this.wanted) return;
    this.become('reconnecting');
    if (code === CLOSE_UNAUTHORIZED) {
      this.onRefused();
      return;
    }
    this.lostMs ||= Date.now();
    if (this.failures > 0) this.lookElsewhere();
    // A refused handshake appears as 1006 like any other failure: a request of the session distinguishes the two.
    if (this.failures === 1) this.onRefused();
    const retryMs = RETRY_MS[Math.min(this.failures, RETRY_MS.length - 1)];
    const delay = code === CLOSE_OVERFLOW ? retryMs + RESYNC_SPREAD_MS * Math.random() : retryMs;
    this.failures += 1;
    this.timer = setTimeout(() => this.connect(), delay * (0.7 + 0.6 * Math.random()));
  }

  /** With several managers, after the connection was lost: reloads if this manager is a standby, moves to another manager's page if it
   * is gone. Never in a hidden tab, because many would move at once. */
  async lookElsewhere() {
    if (!this.managers.length || document.hidden) return;
    if (await standsBy()) {
      if (this.state !== 'live') location.reload();
      return;
    }
    const next = Date.now() - this.lostMs >= GONE_MS ? nextManager(this.managers, location) : null;
    if (next && this.wanted && this.state !== 'live') location.assign(next);
  }

  drop() {
    clearTimeout(this.timer);
    const socket = this.socket;
    if (!socket) return;
    socket.onmessage = null;
    socket.onclose = null;
    socket.close();
    this.lost(0);
  }

  retryNow() {
    if (!this.wanted || this.state === 'live') return;
    if (this.socket && this.socket.readyState === WebSocket.CONNECTING) return;
    this.failures = 0;
    clearTimeout(this.timer);
    if (!this.socket) this.connect();
  }

  /** A half-open connection never closes by itself: after a long silence it is checked with a separate request. */
  async watch() {
    if (this.state !== 'live' || document.hidden || Date.now() - this.lastFrameMs < QUIET_MS) return;
    const socket = this.socket;
    try {
      await fetch('/healthz', { cache: 'no-store', signal: AbortSignal.timeout(PROBE_MS) });
      this.lastFrameMs = Date.now();
    } catch {
      if (socket === this.socket) this.drop();
    }
  }

  become(state) {
    if (this.state === state) return;
    this.state = state;
    this.onState();
  }
}

/** The text of a deflated frame. Without a Blob, whose content would pass through another process. */
function inflated(data) {
  const { readable, writable } = new DecompressionStream('deflate');
  const writer = writable.getWriter();
  for (const done of [writer.write(data), writer.close()]) done.catch(() => {}); // the reader gets the same error
  return new Response(readable).text();
}
