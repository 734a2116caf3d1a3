/** Charts of the measurements of a worker or a host, side by side, zoomed together; with the same numbers as a table. */

import { Chart, loadPlots } from './chart.js';
import { OF_HOST, kindsOfGpu, kindsOfWorker, linesOf, titleOf } from './chartkinds.js';
import { chartTable } from './charttable.js';
import { errorBox } from './dialogs.js';
import { fill, h, setAttr, show } from './dom.js';
import { t } from './i18n.js';
import { Measurements, SPANS } from './measurements.js';
import { recall, remember } from './storage.js';

const STORED = 'charts.span';

/** `more`: nodes beside the selection of a range. */
export const workerCharts = (id, more = []) => new ChartPanel(`/api/measurements/workers/${encodeURIComponent(id)}`, kindsOfWorker, more);
export const hostCharts = (id) => new ChartPanel(`/api/measurements/hosts/${encodeURIComponent(id)}`, () => OF_HOST);

export const gpuCharts = (agent, index) => new ChartPanel(`/api/measurements/hosts/${encodeURIComponent(agent)}`, () => kindsOfGpu(index));

/** A switch for the range, initially the one last used in this browser. */
export class SpanChoice {
  constructor(onChoose, given = '') {
    const stored = given || recall(STORED);
    this.span = SPANS.includes(stored) ? stored : SPANS[0];
    this.buttons = SPANS.map((span) => h('button.button.small', { type: 'button', data: { span }, on: { click: () => this.choose(span, onChoose) } }, t(`chart.span_${span}`)));
    this.node = h('div.chart-spans', { role: 'group', 'aria-label': t('chart.span') }, this.buttons);
    this.mark();
  }

  choose(span, onChoose) {
    this.span = span;
    remember(STORED, span === SPANS[0] ? null : span);
    this.mark();
    onChoose();
  }

  mark() {
    for (const button of this.buttons) setAttr(button, 'aria-pressed', button.dataset.span === this.span ? 'true' : 'false');
  }
}

/** Calls `changed()` when the theme changes. Returns a function that unsubscribes. */
export function onTheme(changed) {
  const themes = new MutationObserver(changed);
  themes.observe(document.documentElement, { attributes: true, attributeFilter: ['data-theme'] });
  const dark = window.matchMedia('(prefers-color-scheme: dark)');
  dark.addEventListener('change', changed);
  return () => {
    themes.disconnect();
    dark.removeEventListener('change', changed);
  };
}

export function tryAgain(error, load) {
  if (error.code === 'script_gone') location.reload();
  else load();
}

let panels = 0;

class ChartPanel {
  constructor(path, kinds, more = []) {
    this.measured = new Measurements(path);
    this.kinds = kinds; // of the answer
    this.sync = `charts-${(panels += 1)}`;
    this.shown = false;
    this.zoom = null; // [from, to]; null: all of the range
    this.charts = new Map();
    this.spans = new SpanChoice(() => this.load());
    this.all = h('button.button.small', { type: 'button', hidden: true, on: { click: () => this.zoomTo(null) } }, t('chart.all'));
    this.tableButton = h('button.button.small', { type: 'button', 'aria-pressed': 'false', on: { click: () => this.toggleTable() } }, t('chart.as_table'));
    this.problem = h('div');
    this.none = h('p.muted', { hidden: true }, t('chart.none'));
    this.area = h('div.charts');
    this.table = chartTable();
    this.node = h(
      'section.panel.chart-panel',
      { 'aria-label': t('chart.title') },
      h('div.chart-bar', {}, this.spans.node, this.all, h('span.spring'), more, this.tableButton),
      this.problem,
      this.none,
      this.area,
      this.table,
    );
    this.forgetTheme = onTheme(() => this.charts.forEach((chart) => chart.recolour()));
  }

  destroy() {
    this.shown = false;
    this.forgetTheme();
    for (const chart of this.charts.values()) chart.destroy();
  }

  /** Call once its tab is open. */
  start() {
    this.shown = true;
    if (!this.measured.data) this.load();
  }

  /** `quiet`: keep the shown data if the manager does not answer; the next step retries. */
  async load(quiet = false) {
    const { span } = this.spans;
    if (!quiet) this.zoom = null;
    try {
      await Promise.all([this.measured.load(span), loadPlots()]);
      if (span !== this.spans.span || !this.shown) return;
      fill(this.problem);
      this.draw();
    } catch (error) {
      if (error.status !== 401 && this.shown && !quiet) fill(this.problem, errorBox(error, () => tryAgain(error, () => this.load())));
    }
  }

  /** Adds a current measurement, or advances the time. `usage` null: nothing is measured. */
  add(usage, metrics) {
    if (!this.measured.data || !this.shown) return;
    const came = this.measured.add(usage, metrics);
    if (came === 'ask') this.load(true);
    else if (came) this.draw();
  }

  zoomTo(part) {
    this.zoom = part;
    this.draw();
  }

  draw() {
    const { data } = this.measured;
    const range = this.measured.range();
    if (this.zoom) [range.from, range.to] = this.zoom;
    show(this.all, this.zoom !== null);
    const kinds = this.kinds(data);
    const drawn = kinds.map((kind) => [kind, linesOf(kind, data)]).filter(([, lines]) => lines.length);
    let after = null;
    for (const [kind, lines] of drawn) {
      const chart = this.chart(kind);
      if (chart.node.parentNode !== this.area || chart.node.previousSibling !== after) this.area.insertBefore(chart.node, after ? after.nextSibling : this.area.firstChild);
      after = chart.node;
      chart.show(lines, range);
    }
    const names = drawn.map(([kind]) => kind.name);
    for (const [name, chart] of this.charts) show(chart.node, names.includes(name));
    show(this.none, drawn.length === 0);
    if (!this.table.hidden) this.table.update(drawn.map(([kind, lines]) => ({ title: titleOf(kind), format: kind.format, lines })));
  }

  chart(kind) {
    if (!this.charts.has(kind.name)) this.charts.set(kind.name, new Chart({ ...kind, title: titleOf(kind), sync: this.sync, onZoom: (part) => this.zoomTo(part) }));
    return this.charts.get(kind.name);
  }

  toggleTable() {
    show(this.table, this.table.hidden);
    show(this.area, this.table.hidden);
    setAttr(this.tableButton, 'aria-pressed', this.table.hidden ? 'false' : 'true');
    if (this.measured.data) this.draw();
  }
}
