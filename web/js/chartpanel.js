/**
 * Charts of what was measured over 15 minutes, an hour or a day, with the same numbers as a table. What is kept of 15 minutes are
 * moments: they are asked for once, and those that come are added from the live view. An hour and a day are kept as means and
 * peaks of a step, which only the manager knows: each step is asked for once it is over.
 */

import { get } from './api.js';
import { Chart } from './chart.js';
import { errorBox } from './dialogs.js';
import { fill, h, setAttr, show } from './dom.js';
import { formatBytes, formatClock, formatPercent, serverNowMs } from './format.js';
import { formatNumber, t } from './i18n.js';
import { recall, remember } from './storage.js';

const SPANS = ['15m', '1h', '24h'];
const STORED = 'charts.span';
const MOMENTS_S = 10; // steps as short as this hold one moment
const LATE_S = 10; // so long after a step is over the manager may know of it

const rate = (value) => t('chart.rate', { bytes: formatBytes(value) });
const plain = (value) => formatNumber(value, value < 10 ? 2 : 0);

/** What charts there are: `series` of the answer, or of each GPU. */
const OF_WORKER = [
  { name: 'cpu', format: formatPercent, ceiling: 100, series: ['cpu_percent'] },
  { name: 'memory', format: formatBytes, bytes: true, series: ['rss_bytes'] },
  { name: 'gpu', format: formatPercent, ceiling: 100, series: ['gpu_percent'] },
  { name: 'gpu_memory', format: formatBytes, bytes: true, series: ['gpu_memory_bytes'] },
];
const OF_HOST = [
  { name: 'cpu', format: formatPercent, ceiling: 100, series: ['cpu_percent'] },
  { name: 'memory', format: formatBytes, bytes: true, series: ['memory_used_bytes'] },
  { name: 'load', format: plain, ceiling: 1, series: ['load1'] },
  { name: 'gpu', format: formatPercent, ceiling: 100, gpu: 'utilization_percent' },
  { name: 'gpu_memory', format: formatBytes, bytes: true, gpu: 'memory_used_bytes' },
  { name: 'network', format: rate, bytes: true, series: ['network_received_bytes_per_s', 'network_sent_bytes_per_s'] },
  { name: 'disk', format: formatBytes, bytes: true, series: ['disk_free_bytes'] },
];

export const workerCharts = (id) => new ChartPanel(`/api/measurements/workers/${encodeURIComponent(id)}`, OF_WORKER);
export const hostCharts = (id) => new ChartPanel(`/api/measurements/hosts/${encodeURIComponent(id)}`, OF_HOST);

class ChartPanel {
  constructor(path, kinds) {
    this.path = path;
    this.kinds = kinds;
    this.span = SPANS.includes(recall(STORED)) ? recall(STORED) : SPANS[0];
    this.data = null;
    this.askedS = 0; // when the manager was asked last
    this.shown = false;
    this.charts = new Map();
    this.buttons = SPANS.map((span) => h('button.button.small', { type: 'button', data: { span }, on: { click: () => this.choose(span) } }, t(`chart.span_${span}`)));
    this.tableButton = h('button.button.small', { type: 'button', 'aria-pressed': 'false', on: { click: () => this.toggleTable() } }, t('chart.as_table'));
    this.problem = h('div');
    this.none = h('p.muted', { hidden: true }, t('chart.none'));
    this.area = h('div.charts');
    this.table = h('div.chart-table', { hidden: true, tabindex: '0', role: 'region', 'aria-label': t('chart.table') });
    this.node = h(
      'section.panel.chart-panel',
      { 'aria-label': t('chart.title') },
      h('div.chart-bar', {}, h('div.chart-spans', { role: 'group', 'aria-label': t('chart.span') }, this.buttons), h('span.spring'), this.tableButton),
      this.problem,
      this.none,
      this.area,
      this.table,
    );
    this.redraw = () => this.charts.forEach((chart) => chart.draw());
    this.themes = new MutationObserver(this.redraw);
    this.themes.observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] });
    this.dark = window.matchMedia('(prefers-color-scheme: dark)');
    this.dark.addEventListener('change', this.redraw);
    this.mark();
  }

  destroy() {
    this.shown = false;
    this.themes.disconnect();
    this.dark.removeEventListener('change', this.redraw);
    for (const chart of this.charts.values()) chart.destroy();
  }

  /** Once its tab is open. */
  start() {
    this.shown = true;
    if (!this.data) this.load();
  }

  choose(span) {
    this.span = span;
    remember(STORED, span === SPANS[0] ? null : span);
    this.mark();
    this.load();
  }

  mark() {
    for (const button of this.buttons) setAttr(button, 'aria-pressed', button.dataset.span === this.span ? 'true' : 'false');
  }

  /** `quiet`: what is shown stays where the manager does not answer; the next step is another try. */
  async load(quiet = false) {
    const { span } = this;
    this.askedS = serverNowMs() / 1000;
    try {
      const data = await get(`${this.path}?span=${span}`);
      if (span !== this.span || !this.shown) return;
      this.data = data;
      fill(this.problem);
      this.draw();
    } catch (error) {
      if (error.status !== 401 && this.shown && !quiet) fill(this.problem, errorBox(error, () => this.load()));
    }
  }

  /** What was measured just now; taken once in each step, or a sign that time has passed. `usage` null: nothing is. */
  add(usage) {
    if (!this.data || !this.shown) return;
    const now = serverNowMs() / 1000;
    const { at, step_s: step } = this.data;
    if (step > MOMENTS_S) {
      const due = at.length ? at[at.length - 1] + step + LATE_S : 0;
      if (now >= Math.max(due, this.askedS + step / 6)) this.load(true);
      return;
    }
    if (at.length && now - at[at.length - 1] < step) return;
    append(this.data, now, usage || {});
    for (const gpu of this.data.gpus || []) append(gpu, now, ((usage && usage.gpus) || []).find((one) => one.index === gpu.index) || {}, this.data.points);
    for (const gpu of (usage && usage.gpus) || []) {
      if (typeof gpu !== 'object' || !this.data.gpus || this.data.gpus.some((one) => one.index === gpu.index)) continue;
      this.data.gpus.push(append({ index: gpu.index, at: [], series: { utilization_percent: [], memory_used_bytes: [] } }, now, gpu, this.data.points));
    }
    this.draw();
  }

  draw() {
    const { data } = this;
    const to = serverNowMs() / 1000;
    const range = { from: to - data.step_s * data.points, to, step: data.step_s };
    const drawn = this.kinds.map((kind) => [kind, linesOf(kind, data)]).filter(([, lines]) => lines.length);
    for (const [kind, lines] of drawn) this.chart(kind).show(lines, range);
    const names = drawn.map(([kind]) => kind.name);
    for (const [name, chart] of this.charts) show(chart.node, names.includes(name));
    show(this.none, drawn.length === 0);
    if (!this.table.hidden) this.drawTable(drawn);
  }

  chart(kind) {
    if (!this.charts.has(kind.name)) {
      const chart = new Chart({ title: t(`chart.${kind.name}`), format: kind.format, ceiling: kind.ceiling, bytes: kind.bytes });
      this.charts.set(kind.name, chart);
      const order = this.kinds.map((one) => one.name);
      const after = [...this.charts.keys()].filter((name) => order.indexOf(name) > order.indexOf(kind.name)).sort((a, b) => order.indexOf(a) - order.indexOf(b))[0];
      this.area.insertBefore(chart.node, after ? this.charts.get(after).node : null);
    }
    return this.charts.get(kind.name);
  }

  toggleTable() {
    show(this.table, this.table.hidden);
    show(this.area, this.table.hidden);
    setAttr(this.tableButton, 'aria-pressed', this.table.hidden ? 'false' : 'true');
    if (this.data) this.draw();
  }

  /** The newest first: a column for each line, a row for each moment. */
  drawTable(drawn) {
    const columns = drawn.flatMap(([kind, lines]) => lines.map((line) => ({ ...line, kind, head: lines.length > 1 ? `${t(`chart.${kind.name}`)} ${line.label}` : t(`chart.${kind.name}`) })));
    const indexes = columns.map((column) => new Map(column.at.map((at, place) => [at, place])));
    const moments = [...new Set(columns.flatMap((column) => column.at))].sort((a, b) => b - a);
    const cell = (column, number, at) => {
      const place = indexes[number].get(at);
      const value = place === undefined ? null : column.values[place];
      return h('td', {}, value === null ? t('none') : column.kind.format(value));
    };
    fill(
      this.table,
      h(
        'table',
        {},
        h('thead', {}, h('tr', {}, h('th', { scope: 'col' }, t('events.time')), columns.map((column) => h('th', { scope: 'col' }, column.head)))),
        h('tbody', {}, moments.map((at) => h('tr', {}, h('th', { scope: 'row' }, formatClock(at)), columns.map((column, number) => cell(column, number, at))))),
      ),
    );
  }
}

/** One more moment at the end; what is not measured is null. */
function append(data, now, usage, points = data.points) {
  data.at.push(now);
  for (const [name, value] of Object.entries(usage)) if (typeof value === 'number' && !data.series[name]) data.series[name] = data.at.slice(1).map(() => null);
  for (const [name, values] of Object.entries(data.series)) values.push(typeof usage[name] === 'number' ? usage[name] : null);
  if (data.at.length > points) {
    data.at.shift();
    for (const values of Object.values(data.series)) values.shift();
  }
  return data;
}

function linesOf(kind, data) {
  if (kind.gpu) {
    return (data.gpus || [])
      .filter((gpu) => gpu.series[kind.gpu])
      .map((gpu) => ({ label: t('chart.gpu_n', { n: String(gpu.index) }), at: gpu.at, values: gpu.series[kind.gpu] }));
  }
  return kind.series.filter((name) => data.series[name]).map((name) => ({ label: t(`chart.${kind.series.length > 1 ? name : kind.name}`), at: data.at, values: data.series[name] }));
}
