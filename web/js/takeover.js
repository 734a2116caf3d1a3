/**
 * Moves the page to another of the known managers if its own is gone or a standby.
 *
 * Only if this page's own address is one of theirs: behind a single name or virtual IP the page stays and reconnects.
 * The view is kept in the address. Pure, except for `navigate`.
 */

export const GONE_MS = 8000; // a standby has taken over by then

/** The address of this view at the next manager; null: stay. `managers`: their URLs, the leader's first. */
export function nextManager(managers, here) {
  const origins = managers.map(originOf).filter(Boolean);
  const at = origins.indexOf(here.origin);
  if (at < 0) return null;
  const next = [...origins.slice(at + 1), ...origins.slice(0, at)].find((one) => one !== here.origin);
  return next ? `${next}${here.pathname}${here.search}${here.hash}` : null;
}

/** Accepts only http and https, because the list comes from a manager and the browser opens the address. */
function originOf(url) {
  try {
    const parsed = new URL(url);
    return ['http:', 'https:'].includes(parsed.protocol) ? parsed.origin : null;
  } catch {
    return null;
  }
}

/** Whether this manager is a standby; a reload is then redirected to the leader. */
export async function standsBy() {
  try {
    const answer = await fetch('/readyz', { cache: 'no-store', signal: AbortSignal.timeout(3000) });
    return answer.status === 503 && (await answer.json()).error.code === 'standby';
  } catch {
    return false;
  }
}
