/**
 * The source of one worker's lines: first those in the manager's store, then live pieces. The model keeps
 * duplicates once. Owns the subscription, its credit, and the request; draws nothing.
 */

import { get, logPath } from './api.js';

export const TAIL = 2000;
const LOAD_AGAIN_MS = 1000;
const MAX_WAITING = 2000; // pieces
const CREDIT_CHARS = 512 * 1024; // maximum sent in advance of drawing

export class LogSource {
  /**
   * `chosen()`: {attempt, stream, tail, at, reach, since, until}; `changed()` after each change of the model; `onProblem(error | null)`;
   * `onExcerpt(target | null)` once the lines around `at` are here.
   */
  constructor({ worker, live, model, chosen, changed, onProblem, onExcerpt = () => {} }) {
    Object.assign(this, { worker, live, model, chosen, changed, onProblem, onExcerpt });
    this.unsubscribe = null;
    this.topic = `logs:${worker}`;
    this.newest = 0; // the current attempt
    this.loaded = false;
    this.complete = false; // the store has no older lines of the selection
    this.waiting = null; // pieces that arrive while the stored lines are being fetched
    this.loads = 0;
    this.again = 0; // the timer after a failed load
    this.taken = 0; // characters since the last credit
  }

  /** Loads from the beginning. The lines around an address, or of a past range, are fixed: no live output is added. */
  start() {
    this.waiting = null;
    this.loaded = false;
    const live = !this.chosen().at && !this.chosen().until;
    if (live && !this.unsubscribe) this.unsubscribe = this.live.subscribe(this.topic, (frame) => this.receive(frame));
    if (!live) this.leave();
    this.load();
  }

  leave() {
    if (this.unsubscribe) this.unsubscribe();
    this.unsubscribe = null;
  }

  destroy() {
    this.loads += 1;
    clearTimeout(this.again);
    this.leave();
  }

  /** Grants credit for the output that has been drawn. */
  credit() {
    if (this.taken < CREDIT_CHARS / 4) return;
    this.grant(this.taken);
    this.taken = 0;
  }

  grant(n) {
    this.live.send({ t: 'credit', topic: this.topic, n });
  }

  attempt() {
    const { attempt } = this.chosen();
    return attempt === 'newest' ? String(this.newest || '') : attempt;
  }

  parameters() {
    const parameters = {};
    const { stream } = this.chosen();
    if (this.attempt()) parameters.attempt = this.attempt();
    if (stream) parameters.stream = stream;
    return parameters;
  }

  question() {
    const { at, reach, tail, since, until } = this.chosen();
    if (at) return { at, before: String(reach), after: String(reach) };
    const range = Object.fromEntries(Object.entries({ since, until }).filter(([, value]) => value));
    return { ...this.parameters(), ...range, tail: String(tail) };
  }

  /**
   * Loads stored lines first, then adds the pieces that arrived meanwhile; duplicates are kept once. If the stored lines are
   * unavailable, the pieces wait for them, because showing them at once would leave a permanent gap.
   */
  async load() {
    const turn = ++this.loads;
    clearTimeout(this.again);
    this.waiting = this.waiting || [];
    try {
      const answer = await get(logPath(this.worker, { ...this.question(), format: 'json' }));
      if (turn !== this.loads) return;
      this.onProblem(this, null);
      this.model.addLines(answer.lines, this.worker);
      this.complete = answer.lines.length < this.chosen().tail;
      if (!this.loaded && !this.chosen().at) this.markRotated(answer);
      this.loaded = true;
      if (this.chosen().at) this.onExcerpt(answer.target);
    } catch (error) {
      if (turn !== this.loads) return;
      if (error.status !== 401) this.onProblem(this, error);
      if (!error.status || error.status >= 500) {
        this.again = setTimeout(() => this.load(), LOAD_AGAIN_MS);
        return;
      }
    }
    const pieces = this.waiting || [];
    this.waiting = null;
    for (const piece of pieces) this.take(piece);
    this.changed();
  }

  /** Marks attempts whose logs were deleted because there are newer ones, in their position. */
  markRotated({ attempts }) {
    const { since, until } = this.chosen();
    if (this.complete && !this.attempt() && !since && !until && attempts && attempts[0] > 1) this.model.markFirst({ marker: 'rotated', worker: this.worker, attempt: attempts[0] });
  }

  receive(frame) {
    if (frame.t === 'log') {
      this.taken += frame.text.length;
      if (this.waiting) this.wait(frame);
      else this.take(frame);
      this.changed();
    } else if (frame.t === 'snap') {
      // Subscribed, for the first time or again: pieces follow. Earlier output is in the store, and a
      // load that began before may have missed the end of it.
      this.taken = 0;
      this.grant(CREDIT_CHARS);
      this.load();
    }
  }

  /** Pieces that the stored lines also contain need not be kept. */
  wait(piece) {
    this.waiting.push(piece);
    if (this.waiting.length > MAX_WAITING) this.waiting.splice(0, MAX_WAITING / 2);
  }

  take(piece) {
    const attempt = this.attempt();
    const { stream } = this.chosen();
    if (attempt && String(piece.attempt) !== attempt) return;
    if (stream && piece.stream !== stream) return;
    this.model.addPiece(piece, this.worker);
  }
}
