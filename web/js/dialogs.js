/** Confirmations, errors and short notices. Every error shows its code, translated text, request id, and a retry if one is useful. */

import { copyText } from './clipboard.js';
import { commands } from './commands.js';
import { fill, h } from './dom.js';
import { formatDuration } from './format.js';
import { hasText, t } from './i18n.js';
import { icon } from './icons.js';

const NOTICE_MS = 6000;
const MAX_NOTICES = 4;

const MAX_REASON_CHARS = 500;

/**
 * Asks for confirmation; resolves to {reason} only if the action's own button was pressed, otherwise to null. Cancel has the focus.
 * `withReason`: with a field for a reason, which is recorded in the history.
 */
export function confirmAction({ title, detail, action, danger = false, withReason = false }) {
  return new Promise((resolve) => {
    const reason = h('input.input', { id: 'confirm-reason', type: 'text', maxlength: String(MAX_REASON_CHARS), autocomplete: 'off', placeholder: t('batch.reason_hint') });
    const cancel = h('button.button', { type: 'button', autofocus: true }, t('cancel'));
    const go = h(danger ? 'button.button.danger' : 'button.button.primary', { type: 'button' }, action);
    const dialog = h(
      'dialog.dialog',
      { 'aria-labelledby': 'dialog-title' },
      h('h2', { id: 'dialog-title' }, title),
      detail.map((line) => h('p', {}, line)),
      withReason ? h('div.field', {}, h('label', { for: 'confirm-reason' }, t('batch.reason')), reason) : null,
      h('div.dialog-buttons', {}, cancel, go),
    );
    let answer = null;
    reason.addEventListener('keydown', (event) => event.key === 'Enter' && go.click());
    cancel.addEventListener('click', () => dialog.close());
    go.addEventListener('click', () => {
      answer = { reason: reason.value.trim() };
      dialog.close();
    });
    dialog.addEventListener('close', () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    cancel.focus();
  });
}

/** A dialog with a long text, e.g. the whole of a truncated line. */
export function showText(title, text) {
  const close = h('button.button', { type: 'button' }, t('close'));
  const dialog = h(
    'dialog.dialog.wide',
    { 'aria-labelledby': 'dialog-title' },
    h('h2', { id: 'dialog-title' }, title),
    h('pre.dialog-text', { tabindex: '0' }, text),
    h('div.dialog-buttons', {}, close),
  );
  close.addEventListener('click', () => dialog.close());
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}

export function errorText(error) {
  if (error.retryAfterS) return t('error.locked', { d: formatDuration(error.retryAfterS) });
  const key = `error.${error.code}`;
  if (hasText(key)) return t(key);
  if (error.status >= 500) return t('error.server');
  if (error.status === 0) return t('error.page');
  return t('error.other');
}

/** The body of an error, for a page or a notice. */
export function errorBox(error, retry) {
  const facts = [error.code && t('error.code', { code: error.code }), error.requestId && t('error.request', { id: error.requestId })];
  return h(
    'div.error-box',
    { role: 'alert' },
    h('p.error-title', {}, h('span.glyph', { 'aria-hidden': 'true' }, '✖'), ' ', errorText(error)),
    error.status && error.message !== error.code ? h('p.error-said', { lang: error.language }, error.message) : null,
    error.next ? h('p.error-said', { lang: error.language }, error.next) : null,
    h('p.error-facts', {}, facts.filter(Boolean).join(' · ')),
    retry ? h('button.button', { type: 'button', on: { click: retry } }, t('retry')) : null,
  );
}

export function notify(text) {
  const notice = place(h('p', {}, text));
  setTimeout(() => notice.remove(), NOTICE_MS);
}

/** An error that stays until it is closed, so that it is not missed. */
export function notifyError(error, title, retry) {
  const again = retry
    ? () => {
        notice.remove();
        retry();
      }
    : null;
  const notice = place(h('div', {}, title ? h('p.notice-title', {}, title) : null, errorBox(error, again)));
  notice.classList.add('is-error');
}

function place(content) {
  const area = document.getElementById('toasts');
  while (area.children.length >= MAX_NOTICES) area.firstChild.remove();
  const close = h('button.icon-button', { type: 'button', 'aria-label': t('close') }, icon('close'));
  const notice = h('div.notice', {}, content, close);
  close.addEventListener('click', () => notice.remove());
  area.append(notice);
  return notice;
}

/** The content of an empty page: why it is empty and the next step. */
export function emptyBox(title, ...rest) {
  return h('div.empty', {}, h('p.empty-title', {}, title), ...rest);
}

/** A command to type, with a button that copies it. */
export function commandBox(text) {
  const command = commands(text);
  const label = h('span', {}, t('copy'));
  const button = h('button.button', { type: 'button' }, icon('copy'), label);
  button.addEventListener('click', async () => {
    fill(label, t((await copyText(command)) ? 'copied' : 'copy_failed'));
  });
  return h('div.command-box', {}, h('code', { tabindex: '0' }, command), button);
}
