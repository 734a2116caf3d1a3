/** The address is the state: `#/workers?state=failed&host=gpu01`. Pages read and write it only by this module. */

export function readRoute() {
  const [path, query = ''] = location.hash.replace(/^#/, '').split('?');
  const parts = path.split('/').filter(Boolean).map(decodeSafely);
  return { page: parts[0] || 'overview', id: parts[1] || '', query: new URLSearchParams(query) };
}

function decodeSafely(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

export function link(page, id = '', query = null) {
  const path = `#/${id ? `${page}/${encodeURIComponent(id)}` : page}`;
  if (!query) return path; // a scrolling list asks for hundreds a second
  const filled = Object.entries(query).filter(([, value]) => value !== '' && value !== null && value !== undefined);
  const search = new URLSearchParams(filled).toString();
  return search ? `${path}?${search}` : path;
}

export function go(page, id, query) {
  location.hash = link(page, id, query);
}

/** Changes filters in place: no history entry per key stroke, and the page is not remounted. */
export function replaceQuery(query) {
  const { page, id } = readRoute();
  history.replaceState(history.state, '', link(page, id, query));
}

export function onRoute(handler) {
  window.addEventListener('hashchange', handler);
}
