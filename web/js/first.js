/**
 * Requests what the first page needs: the session with the lists, the fields, the texts, and the page's module. Its own imports are few, and
 * the page loads it as a script of its own, so that these requests do not wait for the modules of main.js.
 */

import { bringAhead, pathsAhead } from './ahead.js';
import { get } from './api.js';
import { loadFields } from './fields.js';
import { zoneName } from './format.js';
import { expectLanguage, initialLanguage, loadLanguage } from './i18n.js';
import { isPage, loadPage } from './pages.js';
import { readRoute } from './router.js';

/** Requests the session, the lists and the first requests of the page in one response, and the fields of the lists: {session, lists}. */
export async function askFirst(page = readRoute().page) {
  const usual = page === 'overview' ? (await import('./pages/overview.js')).overviewPaths() : [];
  const paths = pathsAhead(usual);
  const path = '/api/live';
  const asked = paths.length ? `${path}?${new URLSearchParams({ also: JSON.stringify(paths) })}` : path;
  const [{ session, also: answers, ...lists }] = await Promise.all([get(asked, { quiet401: true }), loadFields()]);
  bringAhead(answers);
  return { session, lists };
}

const route = readRoute();
const language = expectLanguage(initialLanguage());

/** The responses of this start; rejects if they fail. */
export const asked = askFirst(route.page);
asked.catch(() => {}); // main.js handles the result

/** The texts and the module of the page; rejects if they do not load. */
export const loaded = Promise.all([loadLanguage(language), loadPage(isPage(route) ? route.page : 'overview')]);

zoneName(); // its first use takes 30 ms, during which the responses arrive
