/**
 * The lines of a log view: a bounded ring fed by complete lines (REST) and raw pieces (live), of one worker or of several
 * merged by time. Pure: no page, no network.
 *
 * A byte is identified by (worker, attempt, stream, offset); each line and piece has the `offset` of its first byte and the `end`
 * after its last (the text may be shorter or longer than that: line ends, bytes that are not text). Data from both sources is
 * kept once. A progress bar that rewrites its line with carriage returns is shown in its last state.
 */

export const MAX_LINES = 50000;
export const MAX_BYTES = 32 * 1024 * 1024;
export const MAX_LINE_CHARS = 1024 * 1024; // length of the tail that is kept of a line without end

const encoder = new TextEncoder();
const decoder = new TextDecoder();

/** The last state of a line that rewrote itself with "\r". */
export function lastState(raw) {
  const text = raw.replace(/\r+$/, '');
  return text.slice(text.lastIndexOf('\r') + 1);
}

export class LogModel {
  /** `merged`: lines of several workers, in the order of their times. */
  constructor({ maxLines = MAX_LINES, maxBytes = MAX_BYTES, merged = false } = {}) {
    this.maxLines = maxLines;
    this.maxBytes = maxBytes;
    this.merged = merged;
    this.made = 0; // number of lines created; each keeps its number
    this.clear();
  }

  clear() {
    this.lines = []; // {id, worker, attempt, stream, offset, at, text, open, raw, order} or {id, marker: 'attempt' | 'gap' | 'said' | …, …}
    this.bytes = 0;
    this.dropped = 0; // lines that left the ring
    this.ends = new Map(); // key -> offset after the last byte taken
    this.open = new Map(); // key -> the line without an end
    this.attempts = new Map(); // worker -> its newest known attempt
    this.lastTimes = new Map(); // key -> the time of its last line: a stream keeps its own order, whatever its clock says
    this.batch = null; // lines that are inserted together
  }

  /** Removes a worker that is no longer shown. */
  forget(worker) {
    this.lines = this.lines.filter((line) => line.worker !== worker);
    this.bytes = this.lines.reduce((sum, line) => sum + sizeOf(line), 0);
    for (const map of [this.ends, this.open, this.lastTimes]) {
      for (const key of map.keys()) if (key.startsWith(`${worker} `)) map.delete(key);
    }
    this.attempts.delete(worker);
  }

  /**
   * Adds lines from the manager's store, in order: text without its line end, `partial` if that is missing, `marker` for lines of
   * the manager instead of the worker. Known lines are skipped, and a gap gets a marker.
   */
  addLines(lines, worker = '') {
    this.batch = [];
    for (const line of lines) this.addLine(line, worker);
    const { batch } = this;
    this.batch = null;
    this.placeAll(batch);
    this.trim();
  }

  addLine(line, worker) {
    const key = keyOf(line, worker);
    const end = this.ends.get(key);
    const open = this.open.get(key);
    if (open && open.offset === line.offset) {
      this.complete(key, open, line);
      return;
    }
    if (end !== undefined && line.offset < end) return;
    if (line.marker) {
      this.push({ ...line, worker, marker: 'said' }, key, line.at);
      this.ends.delete(key); // the following data begins at its own offset
      return;
    }
    if (end !== undefined && line.offset > end) this.markGap(line, worker, end);
    this.startAttempt(line, worker);
    this.closeOpen(key);
    const entry = { worker, attempt: line.attempt, stream: line.stream, offset: line.offset, at: line.at, text: '', raw: '', open: true };
    this.open.set(key, entry);
    this.push(entry, key, line.at);
    this.complete(key, entry, line);
  }

  /** Extends an open line by the text in the manager's store, partial or complete. */
  complete(key, entry, { text, end, partial }) {
    this.retext(entry, text, lastState(text));
    this.ends.set(key, end);
    if (!partial) this.closeOpen(key);
  }

  /** Adds a raw piece of output. */
  addPiece(piece, worker = '') {
    const key = keyOf(piece, worker);
    const end = this.ends.get(key);
    let { text, offset } = piece;
    if (end !== undefined && offset !== end) {
      const joined = this.join(key, piece, worker, end);
      if (!joined) return;
      ({ text, offset } = joined);
    }
    this.startAttempt(piece, worker);
    const parts = text.split('\n');
    parts.forEach((part, index) => {
      const ended = index < parts.length - 1;
      if (part || ended) this.extend(key, piece, worker, part, offset, ended);
      offset += byteLength(part) + (ended ? 1 : 0);
    });
    this.ends.set(key, piece.end);
    this.trim();
  }

  /** The new part of a piece that does not begin at the end of the last one, or null. */
  join(key, piece, worker, end) {
    if (piece.end <= end) return null;
    if (piece.offset > end) {
      this.closeOpen(key);
      this.markGap(piece, worker, end);
      return piece;
    }
    return { text: decoder.decode(encoder.encode(piece.text).subarray(end - piece.offset)), offset: end };
  }

  markGap(line, worker, end) {
    const { attempt, stream, offset, at } = line;
    this.push({ marker: 'gap', worker, attempt, stream, bytes: offset - end }, keyOf(line, worker), at);
  }

  extend(key, piece, worker, part, offset, ended) {
    let line = this.open.get(key);
    if (!line) {
      if (ended && !part.includes('\r')) {
        this.push({ worker, attempt: piece.attempt, stream: piece.stream, offset, at: piece.at, text: part, open: false }, key, piece.at);
        return;
      }
      line = { worker, attempt: piece.attempt, stream: piece.stream, offset, at: piece.at, raw: '', text: '', open: true };
      this.open.set(key, line);
      this.push(line, key, piece.at);
    }
    const raw = (line.raw + part).slice(-MAX_LINE_CHARS);
    const rewritten = raw.lastIndexOf('\r', raw.length - 2);
    // earlier states of a progress bar are never shown again
    this.retext(line, rewritten > 0 ? raw.slice(rewritten) : raw, lastState(raw));
    if (ended) this.closeOpen(key);
  }

  retext(line, raw, text) {
    this.bytes += text.length - line.text.length;
    line.raw = raw;
    line.text = text;
    line.hitOf = null; // the match must be evaluated again
  }

  closeOpen(key) {
    const line = this.open.get(key);
    if (!line) return;
    delete line.raw;
    line.open = false;
    this.open.delete(key);
  }

  startAttempt(line, worker) {
    const { attempt } = line;
    const newest = this.attempts.get(worker);
    if (newest !== undefined && attempt > newest) this.push({ marker: 'attempt', worker, attempt }, keyOf(line, worker), line.at);
    if (newest === undefined || attempt > newest) this.attempts.set(worker, attempt);
  }

  /** Appends a line of the portal, for example that the connection was lost. Returns it. */
  mark(marker) {
    const last = this.lines[this.lines.length - 1];
    const entry = { ...marker, id: (this.made += 1), order: Math.max(marker.at || 0, last ? last.order : 0) };
    this.lines.push(entry);
    return entry;
  }

  /** Inserts a line of the portal before all others. */
  markFirst(marker) {
    this.lines.unshift({ ...marker, id: (this.made += 1), order: 0 });
  }

  push(line, key, at) {
    line.order = Math.max(at || 0, this.lastTimes.get(key) || 0);
    line.id = this.made += 1;
    this.lastTimes.set(key, line.order);
    this.bytes += sizeOf(line);
    if (this.batch) this.batch.push(line);
    else this.place(line);
  }

  /** Inserts a line by its time, nearly always at the end. */
  place(line) {
    const { lines } = this;
    let index = lines.length;
    if (this.merged) while (index > 0 && lines[index - 1].order > line.order) index -= 1;
    if (index === lines.length) lines.push(line);
    else lines.splice(index, 0, line);
  }

  placeAll(batch) {
    if (!batch.length) return;
    const { lines } = this;
    const last = lines[lines.length - 1];
    if (this.merged) batch.sort((a, b) => a.order - b.order);
    if (!this.merged || !last || last.order <= batch[0].order) {
      for (const line of batch) lines.push(line);
      return;
    }
    const merged = [];
    let next = 0;
    for (const line of lines) {
      while (next < batch.length && batch[next].order < line.order) merged.push(batch[next++]);
      merged.push(line);
    }
    while (next < batch.length) merged.push(batch[next++]);
    this.lines = merged;
  }

  trim() {
    const { lines } = this;
    let excess = Math.max(0, lines.length - this.maxLines);
    let { bytes } = this;
    for (let index = 0; index < excess; index += 1) bytes -= sizeOf(lines[index]);
    while (bytes > this.maxBytes && excess < lines.length - 1) {
      bytes -= sizeOf(lines[excess]);
      excess += 1;
    }
    if (!excess) return;
    lines.splice(0, excess);
    this.bytes = bytes;
    this.dropped += excess;
  }
}

function sizeOf(line) {
  return (line.text || '').length;
}

/** The length in UTF-8. Most lines are ASCII and need no encoder. */
function byteLength(text) {
  // eslint-disable-next-line no-control-regex
  return /[^\x00-\x7f]/.test(text) ? encoder.encode(text).length : text.length;
}

function keyOf({ attempt, stream }, worker) {
  return `${worker} ${attempt}.${stream}`;
}
