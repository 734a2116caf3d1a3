/**
 * A chart of lines over time on a canvas. What it shows stands in a table too (chartpanel.js), and in words in its label. Nothing moves
 * by itself. Colours are the theme's; lines of one chart differ in their dashes as well.
 */

import { framed, h, setAttr, setText, show } from './dom.js';
import { formatClock } from './format.js';
import { t } from './i18n.js';

const HEIGHT = 132;
const LEFT = 62;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 20;
const COLOURS = ['--blue', '--amber', '--sky', '--orange', '--slate'];
const DASHES = [[], [6, 3], [2, 3], [9, 3, 2, 3]];
const GAP_STEPS = 2.5; // points further apart than this many steps are not joined

export class Chart {
  /** `title`; `format(value)`; `ceiling`: the least that the axis reaches to; `bytes`: round steps are powers of two. */
  constructor({ title, format, ceiling = 0, bytes = false }) {
    Object.assign(this, { title, format, ceiling, bytes });
    this.lines = []; // [{label, at, values}]
    this.from = 0;
    this.to = 1;
    this.step = 10;
    this.pointed = null; // a moment that the pointer is at
    this.canvas = h('canvas.chart-canvas', { role: 'img' });
    this.readout = h('span.chart-readout');
    this.legend = h('ul.chart-legend');
    this.node = h('figure.chart', {}, h('figcaption', {}, h('span.chart-title', {}, title), this.readout), this.canvas, this.legend);
    this.draw = framed(() => this.render());
    this.resized = new ResizeObserver(() => this.draw());
    this.resized.observe(this.canvas);
    this.canvas.addEventListener('pointermove', (event) => this.point(event.offsetX));
    this.canvas.addEventListener('pointerleave', () => this.point(null));
  }

  destroy() {
    this.resized.disconnect();
  }

  /** Lines over [from, to] (Unix seconds), measured every `step` seconds. */
  show(lines, { from, to, step }) {
    Object.assign(this, { lines, from, to, step });
    this.legend.replaceChildren(...(lines.length > 1 ? lines.map((line, number) => h('li', { data: { line: number % COLOURS.length } }, line.label)) : []));
    show(this.legend, lines.length > 1);
    setAttr(this.canvas, 'aria-label', this.words());
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

  point(x) {
    const width = this.canvas.clientWidth - LEFT - RIGHT;
    this.pointed = x === null || x < LEFT || width <= 0 ? null : this.from + ((x - LEFT) / width) * (this.to - this.from);
    this.draw();
  }

  /** The moment of the first line that is nearest to the pointer. */
  nearest() {
    if (this.pointed === null) return null;
    let best = null;
    for (const line of this.lines) {
      line.at.forEach((at, place) => {
        const away = Math.abs(at - this.pointed);
        if (away <= this.step * GAP_STEPS && (best === null || away < best.away)) best = { at, place, away };
      });
    }
    return best;
  }

  render() {
    const { canvas } = this;
    const width = canvas.clientWidth;
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(HEIGHT * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(HEIGHT * ratio);
    }
    const style = getComputedStyle(canvas);
    const pen = canvas.getContext('2d');
    pen.setTransform(ratio, 0, 0, ratio, 0, 0);
    pen.clearRect(0, 0, width, HEIGHT);
    pen.font = `11px ${style.fontFamily}`;
    const colour = (name) => style.getPropertyValue(name);
    const area = { left: LEFT, right: width - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM };
    const top = this.top();
    const y = (value) => area.bottom - (value / top) * (area.bottom - area.top);
    const x = (at) => area.left + ((at - this.from) / (this.to - this.from)) * (area.right - area.left);
    this.drawAxes(pen, area, colour, top, y, x);
    this.lines.forEach((line, number) => this.drawLine(pen, line, number, colour, x, y, area));
    this.drawPointed(pen, area, colour, x);
  }

  /** The end of the axis: a round number at or above everything. */
  top() {
    let high = this.ceiling;
    for (const line of this.lines) for (const value of line.values) if (value !== null && value > high) high = value;
    if (high <= this.ceiling && this.ceiling > 0) return this.ceiling;
    const base = this.bytes ? 2 ** Math.floor(Math.log2(high || 1)) : 10 ** Math.floor(Math.log10(high || 1));
    const steps = this.bytes ? [1, 1.25, 1.5, 1.75, 2] : [1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10];
    return base * (steps.find((step) => base * step >= high) || 10);
  }

  drawAxes(pen, area, colour, top, y, x) {
    pen.strokeStyle = colour('--border');
    pen.fillStyle = colour('--muted');
    pen.lineWidth = 1;
    pen.textAlign = 'right';
    pen.textBaseline = 'middle';
    for (const share of [0, 0.5, 1]) {
      const line = Math.round(y(top * share)) + 0.5;
      pen.beginPath();
      pen.moveTo(area.left, line);
      pen.lineTo(area.right, line);
      pen.stroke();
      pen.fillText(this.format(top * share), area.left - 6, line);
    }
    pen.textBaseline = 'top';
    for (const [share, align] of [[0, 'left'], [0.5, 'center'], [1, 'right']]) {
      pen.textAlign = align;
      const at = this.from + (this.to - this.from) * share;
      pen.fillText(formatClock(at).replace(/:\d\d$/, ''), x(at), area.bottom + 5);
    }
  }

  drawLine(pen, line, number, colour, x, y, area) {
    pen.save();
    pen.beginPath();
    pen.rect(area.left, 0, area.right - area.left, HEIGHT);
    pen.clip();
    pen.strokeStyle = colour(COLOURS[number % COLOURS.length]);
    pen.setLineDash(DASHES[Math.floor(number / COLOURS.length) % DASHES.length]);
    pen.lineWidth = 1.6;
    pen.lineJoin = 'round';
    pen.beginPath();
    let last = null;
    line.at.forEach((at, place) => {
      const value = line.values[place];
      if (value === null) {
        last = null;
        return;
      }
      if (last === null || at - last > this.step * GAP_STEPS) {
        pen.moveTo(x(at) - 0.5, y(value)); // one moment alone is a dot
        pen.lineTo(x(at) + 0.5, y(value));
      } else {
        pen.lineTo(x(at), y(value));
      }
      last = at;
    });
    pen.stroke();
    pen.restore();
  }

  drawPointed(pen, area, colour, x) {
    const best = this.nearest();
    if (best !== null) {
      pen.strokeStyle = colour('--border-strong');
      pen.beginPath();
      pen.moveTo(Math.round(x(best.at)) + 0.5, area.top);
      pen.lineTo(Math.round(x(best.at)) + 0.5, area.bottom);
      pen.stroke();
    }
    const values = this.lines.map((line) => {
      const place = best === null ? lastKnown(line.values) : line.at.indexOf(best.at);
      const value = place < 0 ? null : line.values[place];
      const text = value === null || value === undefined ? t('none') : this.format(value);
      return this.lines.length > 1 ? `${line.label} ${text}` : text;
    });
    setText(this.readout, [best === null ? '' : formatClock(best.at), ...values].filter(Boolean).join(' · '));
  }
}

function lastKnown(values) {
  for (let place = values.length - 1; place >= 0; place -= 1) if (values[place] !== null) return place;
  return -1;
}
