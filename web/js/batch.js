/** The dialog before a batch operation: its workers, the skipped workers, its options; then it begins. */

import { FOR_THOUSANDS, post } from './api.js';
import { commandBox, errorBox, notify, notifyError } from './dialogs.js';
import { fill, h, setText, show } from './dom.js';
import { formatNumber, t } from './i18n.js';
import { causeList } from './operations.js';
import { acts } from './rights.js';
import { go } from './router.js';
import { stateChip } from './status.js';

const CONFIRM_ABOVE = 20;
const HOSTS_SHOWN = 8;
const COMMAND_CHARS = 160;

/**
 * Requests a preview of the workers that match `selector` and `q`, shows it, and begins the operation once confirmed.
 * `visible`: the number of them that the list shows. Calls `onBegun()` once it runs.
 */
export async function batch({ verb, selector, q, visible, onBegun }) {
  let preview = null;
  try {
    preview = await requestPreview(verb, selector, q);
  } catch (error) {
    notifyError(error, t('batch.failed', { action: t(`action.${verb}`) }), () => batch({ verb, selector, q, visible, onBegun }));
    return;
  }
  if (preview.matching === 0) notify(t('batch.nobody'));
  else new BatchDialog({ verb, selector, q, visible, onBegun }, preview).open();
}

const requestPreview = (command, selector, q) => post('/api/operations/preview', { command, selector, q }, FOR_THOUSANDS);

class BatchDialog {
  constructor(request, preview) {
    this.request = request;
    this.body = h('div.batch-body');
    this.error = h('div');
    this.cancel = h('button.button', { type: 'button', on: { click: () => this.dialog.close() } }, t('cancel'));
    this.go = h(request.verb === 'start' || request.verb === 'restart' ? 'button.button.primary' : 'button.button.danger', { type: 'submit' });
    this.title = h('h2', { id: 'batch-title' });
    const form = h('form', { method: 'dialog', novalidate: true }, this.title, this.body, this.error, h('div.dialog-buttons', {}, this.cancel, this.go));
    form.addEventListener('submit', (event) => {
      event.preventDefault();
      this.begin();
    });
    this.dialog = h('dialog.dialog.batch', { 'aria-labelledby': 'batch-title' }, form);
    this.dialog.addEventListener('close', () => this.dialog.remove());
    this.concurrency = h('input.input', { type: 'number', min: '1', max: '20000', value: '100', inputmode: 'numeric', id: 'batch-concurrency' });
    this.limit = h('input.input', { type: 'text', placeholder: t('batch.limit_hint'), id: 'batch-limit', maxlength: '8', autocomplete: 'off' });
    this.reason = h('input.input', { type: 'text', maxlength: '500', placeholder: t('batch.reason_hint'), id: 'batch-reason', autocomplete: 'off' });
    this.typed = h('input.input', { type: 'text', inputmode: 'numeric', autocomplete: 'off', id: 'batch-typed', on: { input: () => this.check() } });
    this.fillIn(preview);
  }

  open() {
    document.body.append(this.dialog);
    this.dialog.showModal();
    this.cancel.focus(); // so that Enter by mistake stops nothing
  }

  fillIn(preview) {
    this.preview = preview;
    const { verb } = this.request;
    const action = t(`action.${verb}`);
    setText(this.title, t('batch.title', { action, n: preview.acts }));
    setText(this.go, t('batch.go', { action, n: preview.acts }));
    this.typedWanted = ['stop', 'kill'].includes(verb) && preview.acts > CONFIRM_ABOVE;
    const causes = causeList({ links: false });
    causes.update(preview.causes);
    fill(
      this.body,
      h('p.batch-numbers', {}, t('batch.numbers', { n: preview.matching, visible: this.request.visible })),
      h('p', {}, t(`batch.means_${verb}`)),
      h('div.batch-split', {}, this.states(preview), this.hosts(preview)),
      preview.causes.length ? causes : null,
      this.options(),
      this.typedWanted ? this.question(preview.acts) : null,
      this.commandLine(preview),
    );
    this.check();
  }

  states(preview) {
    const chips = preview.by_state.map((one) => {
      const chip = stateChip();
      chip.update({ state: one.state });
      return h('li', {}, chip, ' ', formatNumber(one.matching));
    });
    return h('ul.split', { 'aria-label': t('batch.by_state') }, chips);
  }

  hosts(preview) {
    const named = preview.by_host.slice(0, HOSTS_SHOWN).map((one) => h('li', {}, h('span.muted', {}, one.host), ' ', formatNumber(one.matching)));
    const more = preview.hosts - named.length;
    return h('ul.split', { 'aria-label': t('batch.by_host') }, named, more > 0 ? h('li.muted', {}, t('batch.more_hosts', { n: more })) : null);
  }

  options() {
    const field = (input, label) => h('div.field', {}, h('label', { for: input.id }, label), input);
    return h('div.batch-options', {}, field(this.concurrency, t('batch.concurrency')), field(this.limit, t('batch.limit')), field(this.reason, t('batch.reason')));
  }

  question(number) {
    return h('div.field.batch-question', {}, h('label', { for: 'batch-typed' }, t('batch.type', { number: String(number) })), this.typed);
  }

  /** The equivalent command for a terminal, if it is short enough to be useful. */
  commandLine(preview) {
    const text = `invoke ${preview.command} '${preview.selector || '*'}'`;
    if (preview.q || text.length > COMMAND_CHARS || text.includes("''")) return null;
    return h('details.batch-command', {}, h('summary', {}, t('batch.command_line')), commandBox(text));
  }

  check() {
    const digits = this.typed.value.replace(/[\s,.]/g, '');
    const confirmed = !this.typedWanted || digits === String(this.preview.acts);
    this.go.disabled = this.preview.acts === 0 || !confirmed || this.busy === true;
  }

  async begin() {
    if (this.go.disabled) return;
    this.busy = true;
    this.check();
    try {
      const wanted = {
        token: this.preview.token,
        concurrency: Number(this.concurrency.value) || null,
        max_failures: this.limit.value.trim(),
        reason: this.reason.value.trim(),
      };
      const operation = await post('/api/operations', wanted, FOR_THOUSANDS);
      this.dialog.close();
      this.request.onBegun();
      go('operation', operation.operation_id);
    } catch (error) {
      fill(this.error, errorBox(error, ['preview_expired', 'not_your_preview'].includes(error.code) ? () => this.previewAgain() : null));
    } finally {
      this.busy = false;
      this.check();
    }
  }

  async previewAgain() {
    fill(this.error);
    this.typed.value = '';
    try {
      this.fillIn(await requestPreview(this.request.verb, this.request.selector, this.request.q));
    } catch (error) {
      fill(this.error, errorBox(error, () => this.previewAgain()));
    }
  }
}

/** The bar that appears once workers are selected. `.update(count, allMatching)`. */
export function batchBar({ onAct, onAll, onClear, onLogs, onCompare, verbs, icon }) {
  const count = h('span.batch-count', { role: 'status' });
  const all = h('button.button.subtle.small', { type: 'button', on: { click: onAll } });
  const buttons = verbs.map((verb) => h('button.button.small', { type: 'button', data: { verb }, on: { click: () => onAct(verb) } }, icon(verb), t(`action.${verb}`)));
  const clear = h('button.button.subtle.small', { type: 'button', on: { click: onClear } }, t('batch.clear'));
  const logs = h('button.button.small', { type: 'button', title: t('batch.logs_title'), on: { click: onLogs } }, icon('logs'), t('nav.logs'));
  const compare = h('button.button.small', { type: 'button', title: t('batch.compare_title'), on: { click: onCompare } }, icon('chart'), t('compare.title'));
  const bar = acts(h('div.batch-bar', { role: 'group', 'aria-label': t('batch.bar'), hidden: true }, count, h('div.batch-verbs', {}, buttons), logs, compare, all, clear));
  bar.update = (selected, everything, matching) => {
    show(bar, selected > 0);
    setText(count, everything ? t('batch.all_selected', { n: selected }) : t('batch.selected', { n: selected }));
    show(all, !everything && selected < matching);
    setText(all, t('batch.select_all', { n: matching }));
  };
  return bar;
}
