/**
 * Removes lost workers from the fleet: workers that are no longer declared and have ended, and those of hosts that
 * have been silent for long. The manager refuses each worker that may still run; refusals are shown with the reason.
 */

import { FOR_THOUSANDS, post } from './api.js';
import { errorBox, notify } from './dialogs.js';
import { fill, h, setText, show } from './dom.js';
import { ageS, formatDuration } from './format.js';
import { t } from './i18n.js';
import { acts } from './rights.js';

const SETTLED = ['stopped', 'exited', 'failed'];
const CHOICES_S = [3600, 86400, 7 * 86400];
const NAMED = 12;
const CONFIRM_ABOVE = 20;

/** Whether a worker appears to be lost, according to this page; the manager's preview decides. */
function isGone(worker, silentS) {
  if (worker.undeclared && SETTLED.includes(worker.state)) return true;
  return worker.state === 'unknown' && (ageS(worker.last_seen) ?? Infinity) >= silentS;
}

/** A button that is hidden while there are no lost workers. */
export function purgeButton(store) {
  const button = acts(h('button.button.subtle.small', { type: 'button', hidden: true }));
  let version = -1;
  let checkedAt = 0;
  button.addEventListener('click', () => new PurgeDialog().open());
  button.update = () => {
    const { version: now } = store.tables.workers;
    if (now === version && Date.now() - checkedAt < 10000) return;
    version = now;
    checkedAt = Date.now();
    let n = 0;
    for (const worker of store.workers.values()) if (isGone(worker, CHOICES_S[0])) n += 1;
    setText(button, t('purge.open', { n }));
    show(button, n > 0);
  };
  return button;
}

class PurgeDialog {
  constructor() {
    this.numbers = h('p.batch-numbers', { role: 'status' });
    this.names = h('p.muted');
    this.failures = h('ul.purge-failures');
    this.age = h('select.input', { id: 'purge-age', on: { change: () => this.refresh() } }, CHOICES_S.map((s) => h('option', { value: s, selected: s === CHOICES_S[1] }, formatDuration(s, 1))));
    this.typed = h('input.input', { id: 'purge-typed', type: 'text', inputmode: 'numeric', autocomplete: 'off', on: { input: () => this.check() } });
    this.question = h('div.field.batch-question', { hidden: true }, h('label', { for: 'purge-typed' }), this.typed);
    this.cancel = h('button.button', { type: 'button', on: { click: () => this.dialog.close() } }, t('cancel'));
    this.go = h('button.button.danger', { type: 'submit' });
    const form = h(
      'form.batch-body',
      { method: 'dialog', novalidate: true },
      h('h2', { id: 'purge-title' }, t('purge.title')),
      h('p', {}, t('purge.means')),
      h('div.field', {}, h('label', { for: 'purge-age' }, t('purge.age')), this.age),
      this.numbers,
      this.names,
      this.question,
      this.failures,
      h('div.dialog-buttons', {}, this.cancel, this.go),
    );
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.begin();
    });
    this.dialog = h('dialog.dialog.batch', { 'aria-labelledby': 'purge-title' }, form);
    this.dialog.addEventListener('close', () => this.dialog.remove());
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.refresh();
    this.cancel.focus();
  }

  /** Requests the manager's preview of the lost workers; its token stands for exactly the shown workers. */
  async refresh() {
    const age = this.age.value;
    this.preview = null;
    this.typed.value = '';
    fill(this.failures);
    setText(this.numbers, t('loading'));
    this.check();
    try {
      const preview = await post('/api/purge/preview', { silent_s: Number(age) }, FOR_THOUSANDS);
      if (this.age.value === age) this.showPreview(preview);
    } catch (error) {
      setText(this.numbers, '');
      fill(this.failures, h('li', {}, errorBox(error, () => this.refresh())));
    }
  }

  showPreview(preview) {
    this.preview = preview;
    const { count } = preview;
    setText(this.numbers, t('purge.numbers', { n: count }));
    const named = preview.workers.slice(0, NAMED).join(', ');
    setText(this.names, count > NAMED ? t('purge.and_more', { names: named, n: count - NAMED }) : named);
    setText(this.go, t('purge.go', { n: count }));
    setText(this.question.firstChild, t('batch.type', { number: String(count) }));
    show(this.question, count > CONFIRM_ABOVE);
    this.check();
  }

  check() {
    const count = this.preview ? this.preview.count : 0;
    const confirmed = count <= CONFIRM_ABOVE || this.typed.value.trim() === String(count);
    this.go.disabled = count === 0 || !confirmed || this.busy === true;
  }

  async begin() {
    if (this.go.disabled) return;
    this.busy = true;
    this.check();
    try {
      this.report(await post('/api/purge', { token: this.preview.token }, FOR_THOUSANDS));
    } catch (error) {
      fill(this.failures, h('li', {}, errorBox(error, () => this.refresh())));
    } finally {
      this.busy = false;
    }
  }

  /** Shows the result: the removed workers, and the refused ones with the reason. */
  report({ taken_out: done, refused, refusals }) {
    notify(t('purge.done', { n: done }));
    if (!refused) {
      this.dialog.close();
      return;
    }
    this.preview = null;
    setText(this.numbers, t('purge.failed', { n: refused }));
    fill(this.failures, refusals.slice(0, NAMED).map((one) => h('li', {}, h('strong', {}, one.worker_id), ' ', one.message)));
    show(this.question, false);
    setText(this.cancel, t('close'));
    setText(this.names, '');
    this.check();
  }
}
