/**
 * A line chart over time, or over another number, drawn by uPlot. Its content is also available as a table (charttable.js), and as
 * text in its label. Lines differ in colour and dash; the cursor is shared by all charts of a `sync` group. Dragging, or
 * + and −, call `onZoom` with a part of the range. Colours are read from the theme at each drawing.
 */

import { ApiError } from './api.js';
import { framed, h, keyed, setAttr, setText, show } from './dom.js';
import { formatClock } from './format.js';
import { formatNumber, t } from './i18n.js';

const HEIGHT = 150;
const AXIS_PX = 66; // left of the lines, for values
const END_PX = 26; // right of the lines, for half of the last label: 09:40:30
const LETTER_PX = 6; // width of a letter or digit of a label
const COLOURS = 8; // --line-1 … --line-8
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];
const GAP_STEPS = 2.5; // points further apart than this many steps are not joined
const STEP_PX = 12; // minimum distance of ticks on a bytes axis
const SVG = 'http://www.w3.org/2000/svg';
const POWERS_OF_2 = Array.from({ length: 60 }, (_, power) => 2 ** power);

let Plot = null;

/** uPlot itself, fetched when a chart is first shown. Raises ApiError `script_gone` if it is unavailable because the page is of another version. */
export async function loadPlots() {
  try {
    Plot ||= (await import('../vendor/uplot/uPlot.esm.js')).default;
  } catch {
    throw new ApiError({ code: 'script_gone' });
  }
}

const colourOf = (number) => `--line-${(number % COLOURS) + 1}`;
const dashOf = (number) => (number + Math.floor(number / COLOURS)) % DASHES.length;

export class Chart {
  /** `format(value)`; `ceiling`: minimum of the axis's upper end; `bytes`: ticks at powers of two; `fromZero`: whether the axis begins at zero. */
  constructor({ title, format, ceiling = 0, bytes = false, fromZero = true, sync = '', onZoom = () => {}, height = HEIGHT }) {
    Object.assign(this, { title, format, ceiling, bytes, fromZero, sync, onZoom, height });
    this.lines = []; // [{label, at, values}], `at` ascending
    this.range = { from: 0, to: 1, step: 10, time: true };
    this.off = new Set(); // labels of lines that are not drawn
    this.at = null; // position of the cursor
    this.plot = null;
    this.caption = h('span.chart-title', {}, title);
    this.readout = h('span.chart-readout');
    this.said = h('span.hidden-text', { role: 'status' }); // announces the position selected by the arrow keys
    this.area = h('div.chart-plot', { role: 'img', tabindex: '0', title: t('chart.keys'), on: { keydown: (event) => this.pressed(event) } });
    this.legend = h('ul.chart-legend');
    this.node = h('figure.chart', {}, h('figcaption', {}, this.caption, this.readout), this.area, this.legend, this.said);
    this.draw = framed(() => this.render());
    this.resized = new ResizeObserver(() => this.plot && this.area.clientWidth && this.plot.setSize({ width: this.area.clientWidth, height: this.height }));
    this.resized.observe(this.area);
  }

  destroy() {
    this.resized.disconnect();
    this.drop();
  }

  drop() {
    if (this.plot) this.plot.destroy();
    this.plot = null;
  }

  /** Call after the theme changed. */
  recolour() {
    if (this.plot) this.plot.redraw(false);
  }

  /** Shows lines over [from, to], in Unix seconds with a sample every `step` seconds; without `time`, any number. */
  show(lines, { from, to, step, time = true }) {
    const same = this.plot && time === this.range.time && lines.length === this.lines.length && lines.every((line, number) => line.label === this.lines[number].label);
    if (!same) this.drop();
    Object.assign(this, { lines, range: { from, to, step, time } });
    setAttr(this.area, 'aria-label', this.words());
    keyed(this.legend, lines.length > 1 ? lines.map((line, number) => ({ line, number })) : [], ({ line, number }) => `${number}/${line.label}`, (item) => this.entry(item));
    show(this.legend, lines.length > 1);
    this.draw();
  }

  /** "CPU: now 42 %, from 3 % to 97 %" */
  words() {
    const said = this.lines.map((line) => {
      const known = line.values.filter((value) => value !== null);
      if (!known.length) return t('chart.nothing', { what: line.label });
      const [low, high] = [known.reduce((a, b) => Math.min(a, b)), known.reduce((a, b) => Math.max(a, b))];
      return t('chart.words', { what: line.label, now: this.format(known[known.length - 1]), low: this.format(low), high: this.format(high) });
    });
    return [this.title, ...said].join('; ');
  }

  entry({ line, number }) {
    const { label } = line;
    const value = h('span.chart-value');
    const button = h('button.chart-entry', { type: 'button', title: t('chart.toggle'), on: { click: () => this.toggle(label, number) } }, swatch(number), h('span.chart-label', {}, label), value);
    const item = h('li', {}, button);
    item.update = (now) => {
      this.values ||= new Map();
      this.values.set(now.number, value);
      setAttr(button, 'aria-pressed', this.off.has(label) ? 'false' : 'true');
    };
    return item;
  }

  toggle(label, number) {
    if (!this.off.delete(label)) this.off.add(label);
    setAttr(this.legend.children[number].firstChild, 'aria-pressed', this.off.has(label) ? 'false' : 'true');
    if (this.plot) this.plot.setSeries(number + 1, { show: !this.off.has(label) });
  }

  render() {
    const width = this.area.clientWidth;
    if (!Plot || !width || !this.lines.length) return;
    const data = aligned(this.lines, this.range.step);
    if (this.plot) this.plot.setData(data);
    else this.plot = new Plot(this.options(width), data, this.area);
    this.readValues();
  }

  options(width) {
    const colour = (name) => getComputedStyle(this.area).getPropertyValue(name);
    const font = `11px ${getComputedStyle(this.area).fontFamily}`;
    const grid = { stroke: () => colour('--border'), width: 1 };
    const axis = { stroke: () => colour('--muted'), grid, ticks: { show: false }, font, gap: 4 };
    const along = (plot, splits, index, space, incr) => {
      const { from, to, time } = this.range;
      const rightOf = (at) => END_PX + ((to - at) / (to - from)) * (plot.width - AXIS_PX - END_PX);
      return splits.map((at) => [at, time ? clock(at, incr) : formatNumber(at)]).map(([at, text]) => ((text.length * LETTER_PX) / 2 > rightOf(at) ? '' : text));
    };
    return {
      width,
      height: this.height,
      legend: { show: false },
      padding: [8, END_PX, 0, 0],
      scales: { x: { time: this.range.time, range: () => [this.range.from, this.range.to] }, y: { range: (plot, low, high) => this.reach(low, high) } },
      axes: [
        { ...axis, size: 22, space: 74, values: along },
        { ...axis, size: AXIS_PX, space: this.bytes ? STEP_PX * 3 : 34, values: (plot, splits) => splits.map((value) => this.format(value)), ...(this.bytes ? { incrs: POWERS_OF_2 } : {}) },
      ],
      series: [{}, ...this.lines.map((line, number) => ({ label: line.label, show: !this.off.has(line.label), stroke: () => colour(colourOf(number)), dash: DASHES[dashOf(number)], width: 1.6, points: { size: 4, space: 16 } }))],
      cursor: {
        y: false,
        points: { size: 6 },
        sync: this.sync ? { key: this.sync, setSeries: false } : undefined,
        drag: { x: true, y: false, setScale: false },
        bind: { dblclick: () => () => this.onZoom(null) },
      },
      hooks: { setCursor: [(plot) => this.point(plot)], setSelect: [(plot) => this.chosen(plot)] },
    };
  }

  reach(low, high) {
    if (low === null || high === null) return [0, this.ceiling || 1];
    if (!this.fromZero) return low === high ? [low - (Math.abs(low) || 1) / 2, high + (Math.abs(high) || 1) / 2] : Plot.rangeNum(low, high, 0.1, true);
    if (high <= this.ceiling && this.ceiling > 0) return [0, this.ceiling];
    return [0, roundUp(high || 1, this.bytes)];
  }

  /** A part of the range was selected by dragging. */
  chosen(plot) {
    const { left, width } = plot.select;
    if (width <= 0) return;
    const part = [plot.posToVal(left, 'x'), plot.posToVal(left + width, 'x')];
    plot.setSelect({ left: 0, top: 0, width: 0, height: 0 }, false);
    this.zoom(part);
  }

  /** Zooms, to a few steps at least. */
  zoom([from, to]) {
    if (to - from >= 3 * (this.range.time ? this.range.step : (this.range.to - this.range.from) / 1000)) this.onZoom([from, to]);
  }

  point(plot) {
    const { left, idx } = plot.cursor;
    this.at = left >= 0 && idx !== null && idx !== undefined ? plot.data[0][idx] : null;
    this.readValues();
  }

  /** Shows the values at the cursor, or else the latest, in the legend or beside the title of a single line. */
  readValues() {
    const texts = this.lines.map((line) => {
      const value = this.at === null ? latest(line.values) : nearest(line, this.at, this.range.step);
      return value === null ? t('none') : this.format(value);
    });
    if (this.lines.length > 1) texts.forEach((text, number) => this.values && this.values.has(number) && setText(this.values.get(number), text));
    const place = this.at === null ? '' : this.range.time ? formatClock(this.at) : formatNumber(this.at);
    setText(this.readout, [place, this.lines.length === 1 ? texts[0] : ''].filter(Boolean).join(' · '));
    return [place, ...this.lines.map((line, number) => `${line.label} ${texts[number]}`)].join(', ');
  }

  /** ← → move the cursor (Shift: further), + and − zoom around it, Esc shows all again. */
  pressed(event) {
    if (!this.plot || event.ctrlKey || event.metaKey || event.altKey) return;
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const closer = { '+': 0.5, '=': 0.5, '-': 2, '−': 2 }[event.key];
    if (move) this.step(move * (event.shiftKey ? 10 : 1));
    else if (closer) this.zoomBy(closer);
    else if (event.key === 'Escape') this.onZoom(null);
    else return;
    event.preventDefault();
  }

  step(by) {
    const [positions] = this.plot.data;
    const inside = (place) => positions[place] >= this.range.from && positions[place] <= this.range.to;
    const now = this.at === null ? positions.length : positions.indexOf(this.at);
    let next = Math.max(0, Math.min(positions.length - 1, now + by));
    while (!inside(next) && next + Math.sign(by) in positions) next += Math.sign(by);
    if (!inside(next)) return;
    this.plot.setCursor({ left: this.plot.valToPos(positions[next], 'x'), top: this.height / 3 }, true, true);
    setText(this.said, this.readValues());
  }

  zoomBy(factor) {
    const { from, to } = this.range;
    const middle = this.at ?? (from + to) / 2;
    this.zoom([middle - (middle - from) * factor, middle + (to - middle) * factor]);
  }
}

/** Data in uPlot's form: a column of positions, and a column of values for each line; null: a gap, undefined: a position of another line. */
function aligned(lines, step) {
  const tables = lines.map(({ at, values }) => {
    const table = [[], []];
    at.forEach((place, number) => {
      if (number && place - at[number - 1] > step * GAP_STEPS) {
        table[0].push((place + at[number - 1]) / 2);
        table[1].push(null);
      }
      table[0].push(place);
      table[1].push(values[number]);
    });
    return table;
  });
  return tables.length === 1 ? tables[0] : Plot.join(tables);
}

function nearest(line, at, step) {
  let best = null;
  let away = step * GAP_STEPS;
  line.at.forEach((place, number) => {
    if (Math.abs(place - at) <= away && line.values[number] !== null) {
      away = Math.abs(place - at);
      best = line.values[number];
    }
  });
  return best;
}

function latest(values) {
  for (let place = values.length - 1; place >= 0; place -= 1) if (values[place] !== null) return values[place];
  return null;
}

function roundUp(high, bytes) {
  const base = bytes ? 2 ** Math.floor(Math.log2(high)) : 10 ** Math.floor(Math.log10(high));
  const steps = bytes ? [1, 1.25, 1.5, 1.75, 2] : [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];
  return base * (steps.find((step) => base * step >= high) || 10);
}

function clock(at, apart) {
  return apart < 60 ? formatClock(at) : formatClock(at).replace(/:\d\d$/, '');
}

/** A sample of the line for the legend. */
function swatch(number) {
  const svg = document.createElementNS(SVG, 'svg');
  svg.setAttribute('viewBox', '0 0 26 8');
  svg.setAttribute('class', `chart-swatch line-${(number % COLOURS) + 1}`);
  svg.setAttribute('aria-hidden', 'true');
  const path = document.createElementNS(SVG, 'path');
  path.setAttribute('d', 'M0 4h26');
  path.setAttribute('stroke-dasharray', DASHES[dashOf(number)].join(' ') || 'none');
  svg.append(path);
  return svg;
}
