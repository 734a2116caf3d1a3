/**
 * For answers that no live topic carries: requested again once the live feed has said something new, while the page is in sight, and not
 * sooner than every few seconds. An idle fleet causes no requests.
 */

const AGAIN_MS = 5000;
const SHARE = 10; // of the time at most one tenth is spent on it

export class Follower {
  /** `ask()` resolves when the answer is drawn; `version()`: changes with what the live feed says. */
  constructor(ask, version) {
    Object.assign(this, { ask, version });
    this.seen = null; // the version that the last answer is for; null: none was requested
    this.asking = false;
    this.nextMs = 0;
  }

  async load() {
    if (this.asking) return;
    this.asking = true;
    this.seen = this.version();
    const began = performance.now();
    try {
      await this.ask();
    } finally {
      this.asking = false;
      const now = performance.now();
      this.nextMs = now + Math.max(AGAIN_MS, SHARE * (now - began));
    }
  }

  update() {
    if (document.hidden || this.asking || this.seen === null) return;
    if (performance.now() >= this.nextMs && this.version() !== this.seen) this.load();
  }
}

/** The newest event that the live feed told, as a version. */
export function lastEvent(store) {
  const last = store.events[store.events.length - 1];
  return last ? last.seq : 0;
}
