/** REST calls to the manager: JSON in and out, the CSRF header, one ApiError. Knows no page. */

import { takeAhead } from './ahead.js';
import { noteServerDate } from './format.js';
import { currentLanguage } from './i18n.js';

const TIMEOUT_MS = 15000;
export const FOR_THOUSANDS = { timeoutMs: 120000 }; // for requests about thousands of workers

let csrf = '';
let onUnauthorized = () => {};

export class ApiError extends Error {
  /** `code` is stable and names a text `error.<code>`; `next` is the manager's next step; `requestId` identifies the request in its log. */
  constructor({ code, message = '', next = '', language = 'en', requestId = '', status = 0, retryAfterS = null }) {
    super(message || code);
    Object.assign(this, { code, next, language, requestId, status, retryAfterS });
  }
}

export function setCsrf(token) {
  csrf = token || '';
}

export function onLoggedOut(handler) {
  onUnauthorized = handler;
}

/** The parsed JSON response (or text with `as: 'text'`). Raises ApiError; a 401 also makes the page show the log-in. */
export async function request(method, path, { body, as = 'json', quiet401 = false, timeoutMs = TIMEOUT_MS, cache = 'no-store' } = {}) {
  const here = method === 'GET' && as === 'json' ? takeAhead(path) : null;
  if (here) return here.body;
  const answer = await reach(method, path, body, timeoutMs, cache);
  if (cache === 'no-store') noteServerDate(answer.headers.get('Date'));
  if (!answer.ok) {
    const error = await readError(answer);
    if (answer.status === 401 && !quiet401) onUnauthorized(error);
    throw error;
  }
  try {
    return as === 'text' ? await answer.text() : await answer.json();
  } catch {
    throw new ApiError({ code: 'bad_answer', status: answer.status });
  }
}

/** A repeated request: {tag, body}; `before` itself if the manager reports that it is unchanged. */
export async function getAgain(path, before = null) {
  const here = before ? null : takeAhead(path);
  if (here) return { tag: here.etag, body: here.body };
  const answer = await reach('GET', path, undefined, TIMEOUT_MS, 'no-store', before && before.tag ? { 'If-None-Match': before.tag } : {});
  if (answer.status === 304) return before;
  if (!answer.ok) {
    const error = await readError(answer);
    if (answer.status === 401) onUnauthorized(error);
    throw error;
  }
  return { tag: answer.headers.get('ETag'), body: await answer.json() };
}

/** A response of JSON lines: calls `take(object)` for each line as it arrives. Ends without an error when `signal` aborts it. */
export async function stream(path, signal, take) {
  let answer;
  try {
    answer = await fetch(path, { headers: { Accept: 'application/x-ndjson', 'Accept-Language': currentLanguage() }, credentials: 'same-origin', cache: 'no-store', signal });
  } catch {
    if (signal.aborted) return;
    throw new ApiError({ code: 'unreachable' });
  }
  if (!answer.ok) {
    const error = await readError(answer);
    if (answer.status === 401) onUnauthorized(error);
    throw error;
  }
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = '';
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const whole = (rest + value).split('\n');
      rest = whole.pop();
      for (const line of whole) if (line) take(JSON.parse(line));
    }
  } catch {
    if (!signal.aborted) throw new ApiError({ code: 'unreachable' });
  }
}

async function reach(method, path, body, timeoutMs, cache, more = {}) {
  const headers = { Accept: 'application/json', 'Accept-Language': currentLanguage(), ...more };
  if (method !== 'GET' && csrf) headers['X-ProcGuard-CSRF'] = csrf;
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  try {
    return await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: 'same-origin',
      cache,
      signal: AbortSignal.timeout(timeoutMs),
    });
  } catch (cause) {
    throw new ApiError({ code: cause.name === 'TimeoutError' ? 'timeout' : 'unreachable' });
  }
}

async function readError(answer) {
  let error = {};
  try {
    error = (await answer.json()).error || {};
  } catch {
    /* not the manager's JSON, for example a proxy's page: only the status is used */
  }
  const shown = error.localized || error;
  const retryAfter = Number(answer.headers.get('Retry-After'));
  return new ApiError({
    code: error.code || `http_${answer.status}`,
    message: shown.message,
    next: shown.next,
    language: error.localized ? error.localized.language : 'en',
    requestId: error.request_id || answer.headers.get('X-Request-Id') || '',
    status: answer.status,
    retryAfterS: retryAfter > 0 ? retryAfter : null,
  });
}

export const get = (path, options) => request('GET', path, options);
export const post = (path, body = {}, options = {}) => request('POST', path, { ...options, body });

export function workerPath(workerId) {
  return `/api/workers/${encodeURIComponent(workerId)}`;
}

export function logPath(workerId, parameters) {
  const query = new URLSearchParams(parameters);
  return `/api/remote-workers/${encodeURIComponent(workerId)}/logs?${query}`;
}
