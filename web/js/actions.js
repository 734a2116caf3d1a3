/** An operator's commands to a worker: start, stop, restart, kill. Each is confirmed first, with an optional reason. */

import { post, workerPath } from './api.js';
import { confirmAction, notify, notifyError } from './dialogs.js';
import { h } from './dom.js';
import { t } from './i18n.js';
import { icon } from './icons.js';
import { acts } from './rights.js';

export const VERBS = ['start', 'stop', 'restart', 'kill'];

const ALIVE = ['starting', 'running', 'stopping'];
const SETTLED = ['stopped', 'exited', 'failed'];

/** Whether `verb` is applicable now. An unknown worker accepts any verb, because it converges when its agent returns. */
export function allowed(verb, worker) {
  if (worker.state === 'unknown') return verb === 'start' || verb === 'stop';
  if (verb === 'start') return SETTLED.includes(worker.state) || worker.state === 'backoff';
  if (verb === 'stop') return ALIVE.includes(worker.state) || worker.state === 'backoff';
  if (verb === 'restart') return ALIVE.includes(worker.state) || SETTLED.includes(worker.state); // for an ended worker this is a start
  return ALIVE.includes(worker.state);
}

export async function act(verb, worker) {
  const answer = await ask(verb, worker);
  if (answer) await send(verb, worker.worker_id, answer.reason);
}

function ask(verb, worker) {
  const means = verb === 'restart' && SETTLED.includes(worker.state) ? 'confirm.restart_settled' : `confirm.${verb}`;
  const detail = [t(means, { worker: worker.worker_id, host: worker.host || t('none') })];
  if (worker.group) detail.push(t('confirm.group', { group: worker.group }));
  return confirmAction({
    title: t(`confirm.${verb}_title`, { worker: worker.worker_id }),
    detail,
    action: t(`action.${verb}`),
    danger: !['start', 'restart'].includes(verb),
    withReason: true,
  });
}

async function send(verb, workerId, reason) {
  try {
    await post(`${workerPath(workerId)}/command`, { command: verb, reason });
    notify(t('action.accepted', { action: t(`action.${verb}`), worker: workerId }));
  } catch (error) {
    notifyError(error, t('action.failed', { action: t(`action.${verb}`), worker: workerId }), () => send(verb, workerId, reason));
  }
}

/** The four buttons of a worker; `.update(worker)` enables the applicable ones, `.describe(worker)` names the worker in them. `labelled`: with text, for its own page. */
export function actionButtons({ labelled = false } = {}) {
  let current = null;
  let named = null; // the worker named by the buttons
  const buttons = VERBS.map((verb) => {
    const button = h(
      labelled ? 'button.button' : 'button.icon-button',
      { type: 'button', title: labelled ? null : t(`action.${verb}`), data: { verb }, on: { click: () => act(verb, current) } },
      icon(verb),
      labelled ? t(`action.${verb}`) : null,
    );
    if (verb === 'kill') button.classList.add('quiet-danger');
    return button;
  });
  const group = acts(h('div.actions', { role: 'group', 'aria-label': t('workers.actions') }, buttons));
  group.update = (worker) => {
    current = worker;
    for (const [at, button] of buttons.entries()) {
      // aria-disabled would keep it focusable, but an inactive button in every row would slow down keyboard navigation
      const usable = allowed(VERBS[at], worker);
      if (button.disabled === usable) button.disabled = !usable;
    }
  };
  group.describe = (worker) => {
    if (labelled || named === worker.worker_id) return;
    for (const [at, button] of buttons.entries()) button.setAttribute('aria-label', t('action.on', { action: t(`action.${VERBS[at]}`), worker: worker.worker_id }));
    named = worker.worker_id;
  };
  return group;
}
