/** Which releases are the manager's own, as its agents call themselves: asked for once, and again when somebody looks much later. */

import { get } from './api.js';

const AGAIN_MS = 60000;
let known = null; // null: not known yet
let askedMs = -Infinity;

/** Asks if need be; `changed()` once there is an answer. */
export async function loadReleases(changed) {
  if (performance.now() - askedMs < AGAIN_MS) return;
  askedMs = performance.now();
  try {
    known = (await get('/api/agents')).releases;
    changed();
  } catch {
    known = known || null; // the pages say nothing of it rather than something wrong
  }
}

/** Whether a host's agent is known to be of another release than the manager's. */
export function isOld(host) {
  return Boolean(known && known.length && host.release && host.kind !== 'launcher' && !known.includes(host.release));
}
