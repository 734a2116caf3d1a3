/** Which releases are the manager's own, as its agents call themselves: asked for once, and again when somebody looks much later. */

import { get } from './api.js';

const AGAIN_MS = 600000;
let known = null; // null: not known yet
let askedMs = -Infinity;

/** Asks if need be, that is where `hosts` has an agent that was deployed; `changed()` once there is an answer. */
export async function loadReleases(hosts, changed) {
  if (performance.now() - askedMs < AGAIN_MS || !hosts.some((host) => host.kind !== 'launcher' && host.release)) return;
  askedMs = performance.now();
  try {
    known = (await get('/api/releases')).releases;
    changed();
  } catch {
    known = known || null; // the pages say nothing of it rather than something wrong
  }
}

/** Whether a host's agent is known to be of another release than the manager's. */
export function isOld(host) {
  return Boolean(known && known.length && host.release && host.kind !== 'launcher' && !known.includes(host.release));
}
