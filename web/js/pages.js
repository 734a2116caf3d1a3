/**
 * The portal's pages. The module of a page is loaded when the page is first opened, so that the first page does not wait for the
 * others; `loadOthers` loads those afterwards, so that they open even if the manager does not answer.
 */

const LOADERS = {
  overview: async () => (await import('./pages/overview.js')).overviewPage,
  workers: async () => (await import('./pages/workers.js')).workersPage,
  worker: async () => (await import('./pages/worker.js')).workerPage,
  groups: async () => (await import('./pages/groups.js')).groupsPage,
  compare: async () => (await import('./pages/compare.js')).comparePage,
  hosts: async () => (await import('./pages/hosts.js')).hostsPage,
  host: async () => (await import('./pages/host.js')).hostPage,
  gpus: async () => (await import('./pages/gpus.js')).gpusPage,
  logs: async () => (await import('./pages/logs.js')).logsPage,
  search: async () => (await import('./pages/search.js')).searchPage,
  operations: async () => (await import('./pages/operations.js')).operationsPage,
  operation: async () => (await import('./pages/operation.js')).operationPage,
  recovery: async () => (await import('./pages/recovery.js')).recoveryPage,
  events: async () => (await import('./pages/events.js')).eventsPage,
  api: async () => (await import('./pages/api.js')).apiPage,
  admin: async () => (await import('./pages/admin.js')).adminPage,
};
const OF_ONE = ['worker', 'host', 'operation']; // pages that require an id

const made = new Map(); // name -> the function that makes the page

/** Whether the address names a page. */
export function isPage({ page, id }) {
  return Object.hasOwn(LOADERS, page) && (id !== '' || !OF_ONE.includes(page));
}

/** The function that makes a page; undefined until it is loaded. */
export function pageNamed(name) {
  return made.get(name);
}

/** Rejects if the module cannot be loaded. */
export async function loadPage(name) {
  made.set(name, await LOADERS[name]());
}

/** One after another, so that they delay nothing else; stops at a failure. */
export async function loadOthers() {
  for (const name of Object.keys(LOADERS)) {
    if (!made.has(name)) await loadPage(name);
  }
}
