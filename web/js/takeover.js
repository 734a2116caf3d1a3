/**
 * Where to go when the manager of this page is gone or stands by: to another of the managers that it has named.
 *
 * Only where this page's own address is one of theirs: behind one name or virtual IP the page stays, and reconnects.
 * The view goes along in the address. Pure but for `navigate`.
 */

export const GONE_MS = 8000; // a standby leads by then

/** The next manager's address for this view; null: stay. `managers`: their URLs, the leader's first. */
export function nextManager(managers, here) {
  const origins = managers.map(originOf).filter(Boolean);
  const at = origins.indexOf(here.origin);
  if (at < 0) return null;
  const next = [...origins.slice(at + 1), ...origins.slice(0, at)].find((one) => one !== here.origin);
  return next ? `${next}${here.pathname}${here.search}${here.hash}` : null;
}

/** http and https only: the list comes from a manager, and ends in an address that the browser opens. */
function originOf(url) {
  try {
    const parsed = new URL(url);
    return ['http:', 'https:'].includes(parsed.protocol) ? parsed.origin : null;
  } catch {
    return null;
  }
}

/** Whether the manager here answers that it stands by: then a reload is redirected to the leader. */
export async function standsBy() {
  try {
    const answer = await fetch('/readyz', { cache: 'no-store', signal: AbortSignal.timeout(3000) });
    return answer.status === 503 && (await answer.json()).error.code === 'standby';
  } catch {
    return false;
  }
}
