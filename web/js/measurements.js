/**
 * Measurements of one worker or host over 15 minutes, an hour or a day. The 15-minute range consists of single samples, which are requested
 * once and extended from the live view. An hour and a day consist of means and peaks per step, which only the
 * manager computes: each step is requested once it is over. Draws nothing.
 */

import { get } from './api.js';
import { serverNowMs } from './format.js';

export const SPANS = ['15m', '1h', '24h'];
const MOMENTS_S = 10; // steps of at most this length contain one sample
const LATE_S = 10; // delay after the end of a step until the manager may have computed it

export class Measurements {
  constructor(path) {
    this.path = path;
    this.data = null;
    this.askedS = 0; // time of the last request
    this.span = ''; // of the last request
  }

  /** Raises ApiError; earlier data is then kept. A late response for a range that is no longer selected is ignored. */
  async load(span) {
    this.askedS = serverNowMs() / 1000;
    this.span = span;
    const data = await get(`${this.path}?span=${span}`);
    if (span === this.span) this.data = data;
  }

  /** [from, to] of the range, up to now. */
  range() {
    const to = serverNowMs() / 1000;
    return { from: to - this.data.step_s * this.data.points, to, step: this.data.step_s };
  }

  /**
   * Adds a current measurement, once per step; null: nothing is measured. `metrics`: numbers from the log by name. Returns 'added',
   * 'ask' if only the manager has the next step, or ''.
   */
  add(usage, metrics = {}) {
    const { data } = this;
    const now = serverNowMs() / 1000;
    const { at, step_s: step } = data;
    if (step > MOMENTS_S) {
      const due = at.length ? at[at.length - 1] + step + LATE_S : 0;
      return now >= Math.max(due, this.askedS + step / 6) ? 'ask' : '';
    }
    if (at.length && now - at[at.length - 1] < step) return '';
    const { points } = data;
    append(data, now, usage || {}, points);
    for (const metric of data.metrics || []) append(metric, now, { value: metrics[metric.name] }, points);
    const gpus = (usage && usage.gpus) || [];
    for (const gpu of data.gpus || []) append(gpu, now, gpus.find((one) => one.index === gpu.index) || {}, points);
    for (const gpu of gpus) {
      if (typeof gpu !== 'object' || !data.gpus || data.gpus.some((one) => one.index === gpu.index)) continue;
      data.gpus.push(append({ index: gpu.index, at: [], series: { utilization_percent: [], memory_used_bytes: [] } }, now, gpu, points));
    }
    return 'added';
  }
}

/** Appends a sample; values that are not measured are null. */
function append(data, now, usage, points) {
  data.at.push(now);
  for (const [name, value] of Object.entries(usage)) if (typeof value === 'number' && !data.series[name]) data.series[name] = data.at.slice(1).map(() => null);
  for (const [name, values] of Object.entries(data.series)) values.push(typeof usage[name] === 'number' ? usage[name] : null);
  if (data.at.length > points) {
    data.at.shift();
    for (const values of Object.values(data.series)) values.shift();
  }
  return data;
}
