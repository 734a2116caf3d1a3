/** Moves a worker to another host, which is selected here; the manager decides whether the move is permitted. */

import { post, workerPath } from './api.js';
import { errorBox, notify } from './dialogs.js';
import { fill, h } from './dom.js';
import { compareNames } from './format.js';
import { t } from './i18n.js';

export function askMove(store, worker) {
  const able = store.agents().filter((host) => host.kind !== 'launcher' && host.agent !== worker.agent && host.agent_state === 'connected' && !host.cordoned);
  const names = able.map((host) => host.host).sort(compareNames);
  const input = h('input.input', { id: 'move-host', type: 'text', list: 'move-hosts', required: true, autocomplete: 'off', spellcheck: 'false' });
  const problem = h('div');
  const cancel = h('button.button', { type: 'button', on: { click: () => dialog.close() } }, t('cancel'));
  const go = h('button.button.primary', { type: 'submit' }, t('move.action'));
  const form = h(
    'form',
    { method: 'dialog' },
    h('h2', { id: 'move-title' }, t('move.title', { worker: worker.worker_id })),
    h('p', {}, t('move.detail', { host: worker.host })),
    h('div.field', {}, h('label', { for: 'move-host' }, t('move.to')), input, h('datalist', { id: 'move-hosts' }, names.map((name) => h('option', { value: name })))),
    problem,
    h('div.dialog-buttons', {}, cancel, go),
  );
  form.addEventListener('submit', async (event) => {
    event.preventDefault();
    go.disabled = true;
    try {
      await post(`${workerPath(worker.worker_id)}/move`, { host: input.value.trim() });
      dialog.close();
      notify(t('move.accepted', { worker: worker.worker_id, host: input.value.trim() }));
    } catch (error) {
      fill(problem, errorBox(error));
    }
    go.disabled = false;
  });
  const dialog = h('dialog.dialog', { 'aria-labelledby': 'move-title' }, form);
  dialog.addEventListener('close', () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  input.focus();
}
