/** The columns of the list of workers: content, width, and the selection of columns. */

import { actionButtons } from './actions.js';
import { formatMetric, metricsOf } from './chartkinds.js';
import { attrWriter, h, textWriter } from './dom.js';
import { fieldsOf, labelOf, valueOf } from './fields.js';
import { formatBytes, formatDuration, formatMoment, formatPercent, formatSince } from './format.js';
import { formatNumber, t } from './i18n.js';
import { commandText, reasonText } from './pages/parts.js';
import { mayAct } from './rights.js';
import { link } from './router.js';
import { stateChip } from './status.js';
import { recall, remember } from './storage.js';
import { textCell } from './table.js';

const STORED = 'columns.workers';
const NUMBERS = ['progress', 'metrics']; // shown by default if a worker has numbers from its log
const YIELDING = ['reason', 'restarts', 'since', 'rss', 'cpu']; // make room for names and numbers, first to last

const usage = (worker, name) => (worker.usage ? worker.usage[name] : null);

/** Cells of columns that show more than their field's value. */
const OWN = {
  command: textCell((worker) => commandText(worker.command), { selector: 'code', title: (worker) => commandText(worker.command) }),
  gpu: textCell(gpuText),
  metrics: textCell(metricsText, { title: metricsText }),
  progress: textCell(progressText, { title: progressText }),
  reason: textCell(reasonText, { title: reasonText }),
  restarts: restartsCell,
};
/** The texts that a column must hold in full. */
const FITS = {
  host: { text: (worker) => worker.host || '' },
  gpu: { text: (worker, length) => (worker.usage && worker.usage.gpus && 2 * worker.usage.gpus.length + 7 > length ? gpuWords(worker.usage.gpus, '100 %') : '') },
  metrics: { text: metricsPattern },
  since: { pattern: () => formatDuration(86399) }, // the longest in both languages
  progress: { pattern: () => t('workers.left', { percent: '100 %', d: formatDuration(59 * 60, 1) }) },
};
const BY_UNIT = {
  bytes: formatBytes,
  bytes_per_s: (value) => (value === null || value === undefined ? t('none') : `${formatBytes(value)}/s`),
  count: (value) => (value ? formatNumber(value) : t('none')),
  labels: labelsText,
  moment: formatSince,
  percent: formatPercent,
};

/** A field's value in its unit; the title contains the full text. */
function cellOf(field) {
  const text = (worker) => {
    const value = valueOf(worker, field);
    return BY_UNIT[field.unit] ? BY_UNIT[field.unit](value) : plainText(value);
  };
  if (field.unit === 'moment') return textCell(text, { title: (worker) => formatMoment(valueOf(worker, field)) });
  return textCell(text, field.unit && field.unit !== 'labels' ? {} : { title: (worker) => valueOf(worker, field) && text(worker) });
}

function plainText(value) {
  return value === null || value === undefined || value === '' || value === false ? t('none') : String(value);
}

/** The keys of the available columns, in order. */
export function choiceNames() {
  return [...fieldsOf('workers').columns.keys()];
}

function usualNames() {
  return choiceNames().filter((name) => fieldsOf('workers').columns.get(name).column.usual);
}

/** The selected columns: from the address, otherwise stored, otherwise the default. */
export function readColumns(text) {
  const wanted = (text || recall(STORED) || '').split(',');
  const chosen = choiceNames().filter((name) => wanted.includes(name));
  return chosen.length ? chosen : usualNames();
}

export function rememberColumns(names) {
  remember(STORED, isUsual(names) ? null : names.join(','));
}

export function isUsual(names) {
  return names.join() === usualNames().join();
}

export function columnLabel(name) {
  return labelOf(fieldsOf('workers').columns.get(name));
}

/** The columns that make room for the others; those that the user has selected stay. */
export function yieldingColumns(names) {
  return isUsual(names) ? YIELDING : YIELDING.slice(0, 1);
}

/** Whether any worker has numbers from its log. */
export function anyNumbers(workers) {
  for (const worker of workers) if (worker.metrics) return true;
  return false;
}

/** The columns of a grid: the fixed ones around the selected ones; by default, `numbers` adds the columns of numbers. */
export function gridColumns(names, { everything, pickCell, numbers = false }) {
  const shown = numbers && isUsual(names) ? choiceNames().filter((name) => NUMBERS.includes(name) || names.includes(name)) : names;
  const columns = [
    { name: 'select', label: t('batch.pick'), width: '16px', narrow: '16px', head: everything, make: pickCell },
    { name: 'state', label: t('workers.state'), width: '142px', narrow: '118px', sortable: true, make: stateChip },
    { name: 'worker', label: t('workers.worker'), width: 'minmax(138px, 1fr)', narrow: 'minmax(80px, 1.4fr)', fit: { text: (worker) => worker.worker_id, weight: 600 }, sortable: true, make: workerCell },
    ...shown.map(chosenColumn),
    { name: 'actions', label: t('workers.actions'), width: '120px', narrow: '116px', make: () => actionButtons() },
  ];
  return mayAct() ? columns : columns.filter(({ name }) => name !== 'select' && name !== 'actions');
}

/** `narrow`: the width on a smaller screen; without it the column is hidden there. */
function chosenColumn(name) {
  const field = fieldsOf('workers').columns.get(name);
  const { width, narrow } = field.column;
  return { name, label: labelOf(field), width, narrow: narrow === null ? undefined : narrow, fit: FITS[name], sortable: field.sortable, make: OWN[name] || cellOf(field) };
}

function labelsText(labels) {
  return Object.entries(labels || {}).map(([name, value]) => `${name}=${value}`).join(' ');
}

/** "0–3,6 · 97 %": GPUs and their utilization. */
function gpuText(worker) {
  const busy = usage(worker, 'gpu_percent');
  return gpuWords(usage(worker, 'gpus'), busy === null || busy === undefined ? '' : formatPercent(busy)) || t('none');
}

function gpuWords(gpus, busy) {
  if (!gpus || gpus.length === 0) return '';
  return busy ? `${ranges(gpus)} · ${busy}` : ranges(gpus);
}

/** [0, 1, 2, 6] -> "0–2,6" */
export function ranges(numbers) {
  const runs = [];
  for (const number of numbers) {
    const last = runs.at(-1);
    if (last && number === last[1] + 1) last[1] = number;
    else runs.push([number, number]);
  }
  return runs.map(([first, last]) => (last > first + 1 ? `${first}–${last}` : last > first ? `${first},${last}` : `${first}`)).join(',');
}

/** "62 %, 3 min 20 s left" */
export function progressText(worker) {
  const { progress_percent: percent, eta_s: left } = worker;
  if (percent === null || percent === undefined) return t('none');
  return left === null || left === undefined ? formatPercent(percent) : t('workers.left', { percent: formatPercent(percent), d: formatDuration(left, 1) });
}

/** "loss 0.231, step 1,200" */
export function metricsText(worker) {
  const known = Object.entries(metricsOf(worker)).filter(([, value]) => typeof value === 'number');
  return known.map(([name, value]) => `${name} ${formatMetric(value)}`).join(', ') || t('none');
}

/** As long as the text of the same metrics gets: longer values are cut, with the whole text as the title. */
function metricsPattern(worker, length) {
  const names = Object.keys(metricsOf(worker));
  const letters = names.reduce((sum, name) => sum + name.length + 9, -2);
  return letters > length ? names.map((name) => `${name} 0.0000`).join(', ') : '';
}

function workerCell() {
  const name = h('a.strong');
  const marks = h('span.marks');
  const cell = h('span', {}, name, marks);
  cell.isCell = true;
  const writeName = textWriter(name);
  const writeMarks = textWriter(marks);
  const [writeTitle, writeMarksTitle] = [name, marks].map((node) => attrWriter(node, 'title'));
  let shown = null;
  cell.update = (worker) => {
    if (shown !== worker.worker_id) {
      shown = worker.worker_id;
      writeName(shown);
      name.setAttribute('href', link('worker', shown));
    }
    writeMarks(marksText(worker));
  };
  cell.describe = (worker) => {
    writeTitle(worker.worker_id);
    writeMarksTitle(marksText(worker) || null);
  };
  return cell;
}

/** Short marks beside a name, with information that no state contains. */
export function marksText(worker) {
  const marks = [];
  if (worker.restart_pending) marks.push(t('worker.restart_pending'));
  if (worker.suspect) marks.push(t('worker.suspect'));
  if (worker.undeclared) marks.push(t('worker.undeclared'));
  return marks.join(' · ');
}

function restartsCell() {
  const title = (worker) => t('worker.restarts_title', { now: worker.restarts || 0, all: worker.restarts_total || 0 });
  return textCell((worker) => formatNumber(worker.restarts_total || 0), { title })();
}
