/** The release names of the manager's own release, as reported by agents: requested once, and again if needed much later. */

import { get } from './api.js';

const AGAIN_MS = 600000;
let known = null; // null: unknown yet
let askedMs = -Infinity;

/** Requests the releases if `hosts` contains a deployed agent; calls `changed()` after the response. */
export async function loadReleases(hosts, changed) {
  if (performance.now() - askedMs < AGAIN_MS || !hosts.some((host) => host.kind !== 'launcher' && host.release)) return;
  askedMs = performance.now();
  try {
    known = (await get('/api/releases')).releases;
    changed();
  } catch {
    known = known || null; // show nothing rather than something wrong
  }
}

/** Whether a host's agent is known to be of another release than the manager's. */
export function isOld(host) {
  return Boolean(known && known.length && host.release && host.kind !== 'launcher' && !known.includes(host.release));
}
