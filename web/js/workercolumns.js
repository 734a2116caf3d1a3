/** The columns of the list of workers: what each shows, how wide it is, and which are chosen. */

import { actionButtons } from './actions.js';
import { h, setAttr, setText } from './dom.js';
import { formatBytes, formatMoment, formatPercent, formatSince } from './format.js';
import { formatNumber, t } from './i18n.js';
import { commandText, reasonText } from './pages/parts.js';
import { mayAct } from './rights.js';
import { link } from './router.js';
import { stateChip } from './status.js';
import { recall, remember } from './storage.js';
import { textCell } from './table.js';

const STORED = 'columns.workers';
const DEFAULT = ['host', 'attempt', 'restarts', 'cpu', 'rss', 'gpu', 'since', 'reason'];

const usage = (worker, name) => (worker.usage ? worker.usage[name] : null);

/** Columns that may be chosen. `narrow`: the width on a smaller screen; without one the column is left out there. */
const CHOICE = {
  host: { width: 'minmax(104px, .8fr)', narrow: 'minmax(60px, 1fr)', sortable: true, make: textCell((worker) => worker.host || t('none'), { title: (worker) => worker.host }) },
  group: { width: 'minmax(70px, .6fr)', sortable: true, make: textCell((worker) => worker.group || t('none'), { title: (worker) => worker.group || null }) },
  labels: { width: 'minmax(90px, .9fr)', make: textCell(labelsText, { title: labelsText }) },
  attempt: { width: '52px', sortable: true, make: textCell((worker) => (worker.attempt ? String(worker.attempt) : t('none'))) },
  restarts: { width: '60px', narrow: '60px', sortable: true, make: restartsCell },
  cpu: { width: '62px', narrow: '54px', sortable: true, make: textCell((worker) => formatPercent(usage(worker, 'cpu_percent'))) },
  rss: { width: '76px', narrow: '66px', sortable: true, make: textCell((worker) => formatBytes(usage(worker, 'rss_bytes'))) },
  gpu: { width: '84px', sortable: true, make: textCell(gpuText) },
  gpu_memory: { width: '92px', sortable: true, make: textCell((worker) => formatBytes(usage(worker, 'gpu_memory_bytes'))) },
  since: { width: '92px', narrow: '84px', sortable: true, make: textCell((worker) => formatSince(worker.since), { title: (worker) => formatMoment(worker.since) }) },
  command: { width: 'minmax(120px, 1.4fr)', make: textCell((worker) => commandText(worker.command), { selector: 'code', title: (worker) => commandText(worker.command) }) },
  reason: { width: 'minmax(110px, 1.4fr)', narrow: '', make: textCell(reasonText, { title: reasonText }) },
};
export const CHOICE_NAMES = Object.keys(CHOICE);

/** The chosen ones: of the address, else remembered, else the usual. */
export function readColumns(text) {
  const wanted = (text || recall(STORED) || '').split(',').filter((name) => CHOICE[name]);
  return wanted.length ? CHOICE_NAMES.filter((name) => wanted.includes(name)) : DEFAULT;
}

export function rememberColumns(names) {
  remember(STORED, isUsual(names) ? null : names.join(','));
}

export function isUsual(names) {
  return names.join() === CHOICE_NAMES.filter((name) => DEFAULT.includes(name)).join();
}

export function columnLabel(name) {
  return t(`workers.${name}`);
}

/** Everything a grid needs: the fixed columns round the chosen ones. */
export function gridColumns(names, { everything, pickCell }) {
  const columns = [
    { name: 'select', label: t('batch.pick'), width: '16px', narrow: '16px', head: everything, make: pickCell },
    { name: 'state', label: t('workers.state'), width: '128px', narrow: '118px', sortable: true, make: stateChip },
    { name: 'worker', label: t('workers.worker'), width: 'minmax(130px, 1.2fr)', narrow: 'minmax(80px, 1.4fr)', sortable: true, make: workerCell },
    ...names.map((name) => ({ name, label: columnLabel(name), ...CHOICE[name] })),
    { name: 'actions', label: t('workers.actions'), width: '120px', narrow: '116px', make: () => actionButtons() },
  ];
  return mayAct() ? columns : columns.filter(({ name }) => name !== 'select' && name !== 'actions');
}

function labelsText(worker) {
  return Object.entries(worker.labels || {}).map(([name, value]) => `${name}=${value}`).join(' ');
}

/** "0,1 · 97 %": which GPUs and how busy they are. */
function gpuText(worker) {
  const gpus = usage(worker, 'gpus');
  if (!gpus || gpus.length === 0) return t('none');
  const busy = usage(worker, 'gpu_percent');
  return busy === null || busy === undefined ? gpus.join(',') : `${gpus.join(',')} · ${formatPercent(busy)}`;
}

function workerCell() {
  const name = h('a.strong');
  const marks = h('span.marks');
  const cell = h('span.worker-name', {}, name, marks);
  cell.update = (worker) => {
    if (name.textContent !== worker.worker_id) {
      setText(name, worker.worker_id);
      setAttr(name, 'title', worker.worker_id);
      setAttr(name, 'href', link('worker', worker.worker_id));
    }
    setText(marks, marksText(worker));
  };
  return cell;
}

/** Short words beside a name: what the operator should know and no state says. */
export function marksText(worker) {
  const marks = [];
  if (worker.restart_pending) marks.push(t('worker.restart_pending'));
  if (worker.suspect) marks.push(t('worker.suspect'));
  if (worker.undeclared) marks.push(t('worker.undeclared'));
  return marks.join(' · ');
}

function restartsCell() {
  const cell = h('span');
  cell.update = (worker) => {
    setText(cell, formatNumber(worker.restarts_total || 0));
    setAttr(cell, 'title', t('worker.restarts_title', { now: worker.restarts || 0, all: worker.restarts_total || 0 }));
  };
  return cell;
}
