/** Log-in with an operator's or a viewer's token; shows the reason of a refusal and the remaining lock time. */

import { ApiError, get, post } from '../api.js';
import { commands } from '../commands.js';
import { errorBox } from '../dialogs.js';
import { fill, h, setText } from '../dom.js';
import { formatDuration } from '../format.js';
import { t } from '../i18n.js';

const RETRY_MS = 2000; // retry interval while the manager is down

/** `refusal`: the response of GET /api/session, if it was requested. `onDone(session)`: called once a token was accepted. */
export function loginPage(refusal, onDone) {
  const field = h('input.input', {
    id: 'token', type: 'password', name: 'token', autocomplete: 'current-password', required: true, spellcheck: 'false',
    'aria-describedby': 'token-hint',
  }); // prettier-ignore
  const button = h('button.button.primary', { type: 'submit' }, t('login.button'));
  const problem = h('div');
  const wait = h('p.login-wait', { role: 'timer' });
  let timer = null;
  const form = h(
    'form.login-card',
    { on: { submit: (event) => logIn(event) } },
    h('h1', {}, t('login.title')),
    h('p.muted', {}, t('login.why')),
    refusal.reason ? h('p.hint', {}, refusal.reason) : null,
    h('label', { for: 'token' }, t('login.token')),
    field,
    h('p.hint', { id: 'token-hint' }, t('login.hint'), ' ', h('code', {}, commands('invoke token.create --name browser'))),
    problem,
    wait,
    button,
  );

  /** Shows the remaining lock time after wrong tokens; a valid token is accepted at any time. */
  function lock(error) {
    const ends = Date.now() + error.retryAfterS * 1000;
    fill(problem, errorBox(error));
    const tick = () => {
      const left = Math.ceil((ends - Date.now()) / 1000);
      setText(wait, left > 0 ? t('login.locked', { d: formatDuration(left) }) : '');
      if (left > 0) timer = setTimeout(tick, 250);
      else fill(problem);
    };
    tick();
  }

  /** The manager is down: shows a message, and continues once it is back. */
  async function retry() {
    try {
      await get('/healthz', { quiet401: true });
      fill(problem);
      setText(wait, '');
    } catch {
      if (form.isConnected) timer = setTimeout(retry, RETRY_MS);
    }
  }

  async function logIn(event) {
    event.preventDefault();
    clearTimeout(timer);
    button.disabled = true;
    fill(problem);
    setText(wait, '');
    try {
      await post('/api/login', { token: field.value.trim() }, { quiet401: true });
      const session = await get('/api/session', { quiet401: true });
      field.value = '';
      onDone(session);
    } catch (error) {
      const wrong = error.status === 401 || error.status === 403;
      if (wrong) error.code = 'wrong_token';
      fill(problem, errorBox(error));
      field.select();
      button.disabled = false;
      if (error.retryAfterS) lock(error);
      if (!error.status) {
        setText(wait, t('login.away'));
        timer = setTimeout(retry, RETRY_MS);
      }
    }
  }

  if (refusal.locked_s > 0) lock(new ApiError({ code: 'too_many_wrong_tokens', status: 429, retryAfterS: refusal.locked_s }));

  return { node: h('main.login', { id: 'content' }, form), focus: () => field.focus() };
}
