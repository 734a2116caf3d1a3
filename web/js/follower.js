/**
 * Refreshes responses without a live topic: repeats the request after changes in the live feed, while the page is visible, and at most
 * every few seconds. An idle fleet causes no requests.
 */

const AGAIN_MS = 5000;
const SHARE = 10; // at most a tenth of the time is spent on requests

export class Follower {
  /** `ask()` resolves when the response is drawn; `version()` changes with the live feed. */
  constructor(ask, version) {
    Object.assign(this, { ask, version });
    this.seen = null; // the version of the last response; null: none was requested
    this.pending = false;
    this.nextMs = 0;
  }

  async load() {
    if (this.pending) return;
    this.pending = true;
    this.seen = this.version();
    const began = performance.now();
    try {
      await this.ask();
    } finally {
      this.pending = false;
      const now = performance.now();
      this.nextMs = now + Math.max(AGAIN_MS, SHARE * (now - began));
    }
  }

  update() {
    if (document.hidden || this.pending || this.seen === null) return;
    if (performance.now() >= this.nextMs && this.version() !== this.seen) this.load();
  }
}

/** The newest event of the live feed, as a version. */
export function lastEvent(store) {
  const last = store.events[store.events.length - 1];
  return last ? last.seq : 0;
}
