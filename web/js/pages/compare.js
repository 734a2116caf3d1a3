/** One measurement of several workers in one chart, over time or over their steps. The address contains the workers and the measurement. */

import { Chart, loadPlots } from '../chart.js';
import { kindNamed, kindsOfWorker, linesOf, metricsOf, titleOf } from '../chartkinds.js';
import { SpanChoice, onTheme, tryAgain } from '../chartpanel.js';
import { chartTable } from '../charttable.js';
import { emptyBox, errorBox, notify } from '../dialogs.js';
import { fill, h, keyed, setAttr, setText, show } from '../dom.js';
import { t } from '../i18n.js';
import { icon } from '../icons.js';
import { Measurements } from '../measurements.js';
import { workerPicker } from '../picker.js';
import { link, replaceQuery } from '../router.js';
import { MAX_COMPARED } from '../selection.js';
import { pageHead } from './parts.js';

const HEIGHT = 340;
const AT_ONCE = 4; // concurrent requests
const STEP = 'step'; // the metric that may replace time on the axis

/** The default measurement: a loss if there is one, otherwise the first that is not a number of steps. */
function usual(kinds) {
  return kinds.find((kind) => /loss/i.test(kind.metric || '')) || kinds.find((kind) => kind.metric !== STEP) || kinds[0];
}

export function comparePage({ store, query }) {
  let { ids, what, over } = readQuery(query);
  let zoom = null;
  let gone = false;
  let turn = 0;
  let chart = null;
  const measured = new Map(); // id -> Measurements

  const picker = workerPicker({ workers: () => store.workers.values(), taken: () => ids, onPick: (picked) => add(picked) });
  const chips = h('ul.chosen', { 'aria-label': t('compare.chosen') });
  const count = h('span.count', { role: 'status' });
  const spans = new SpanChoice(() => load(true), query.get('span'));
  const kinds = h('select.input', { 'aria-label': t('compare.of'), on: { change: () => choose({ what: kinds.value }) } });
  const axes = ['time', STEP].map((name) => h('button.button.small', { type: 'button', data: { over: name }, on: { click: () => choose({ over: name }) } }, t(`compare.${name}`)));
  const along = h('div.chart-spans', { role: 'group', 'aria-label': t('compare.over') }, axes);
  const all = h('button.button.small', { type: 'button', hidden: true, on: { click: () => zoomTo(null) } }, t('chart.all'));
  const tableButton = h('button.button.small', { type: 'button', 'aria-pressed': 'false', on: { click: toggleTable } }, t('chart.as_table'));
  const problem = h('div');
  const nothing = h('p.muted', { hidden: true }, t('compare.nothing'));
  const area = h('div.compare-area');
  const table = chartTable();
  const panel = h('section.panel.chart-panel', { 'aria-label': t('chart.title') }, h('div.chart-bar', {}, kinds, spans.node, along, all, h('span.spring'), tableButton), problem, nothing, area, table);
  const hint = emptyBox(t('compare.choose'), h('p', {}, t('compare.choose_how', { most: MAX_COMPARED })));
  const node = h('div.page', {}, pageHead(t('compare.title'), count), h('div.toolbar', {}, picker, chips), hint, panel);
  const forgetTheme = onTheme(() => chart && chart.recolour());

  function write() {
    replaceQuery({ w: ids.join(','), m: what, span: spans.span, over: over === 'time' ? '' : over });
  }

  function choose(changes) {
    ({ ids, what, over } = { ids, what, over, ...changes });
    zoom = null;
    write();
    load();
  }

  function add(picked) {
    const wanted = [...new Set([...ids, ...picked])];
    if (wanted.length > MAX_COMPARED) notify(t('compare.count', { n: MAX_COMPARED, most: MAX_COMPARED }));
    choose({ ids: wanted.slice(0, MAX_COMPARED) });
  }

  function remove(id) {
    choose({ ids: ids.filter((one) => one !== id) });
    (chips.querySelector('button') || picker.querySelector('input')).focus();
  }

  /** Loads missing measurements; `again`: all. A removed worker has no measurements and is not in the chart. */
  async function load(again = false) {
    const mine = (turn += 1);
    if (again) {
      measured.clear();
      zoom = null;
      write();
    }
    const wanted = ids.filter((id) => !measured.has(id));
    const { span } = spans;
    const one = async () => {
      for (let id = wanted.shift(); id !== undefined; id = wanted.shift()) {
        const found = new Measurements(`/api/measurements/workers/${encodeURIComponent(id)}`);
        try {
          await found.load(span);
          if (mine === turn) measured.set(id, found);
        } catch (error) {
          if (error.status !== 404) throw error;
        }
      }
    };
    try {
      await Promise.all([loadPlots(), ...Array.from({ length: AT_ONCE }, one)]);
      if (gone || mine !== turn) return;
      fill(problem);
    } catch (error) {
      if (gone || mine !== turn) return;
      if (error.status !== 401) fill(problem, errorBox(error, () => tryAgain(error, load)));
    }
    draw();
  }

  function zoomTo(part) {
    zoom = part;
    draw();
  }

  function toggleTable() {
    show(table, table.hidden);
    show(area, table.hidden);
    setAttr(tableButton, 'aria-pressed', table.hidden ? 'false' : 'true');
    draw();
  }

  function draw() {
    const known = ids.filter((id) => measured.has(id));
    const offered = new Map(known.flatMap((id) => kindsOfWorker(measured.get(id).data).filter((kind) => linesOf(kind, measured.get(id).data).length)).map((kind) => [kind.name, kind]));
    const kind = offered.get(what) || (what ? kindNamed(what) : null) || usual([...offered.values()]);
    keyed(kinds, kind && !offered.has(kind.name) ? [...offered.values(), kind] : [...offered.values()], (one) => one.name, kindOption);
    if (kind) kinds.value = kind.name;
    const stepped = known.some((id) => (measured.get(id).data.metrics || []).some((metric) => metric.name === STEP));
    const byStep = over === STEP && stepped;
    show(along, stepped);
    for (const button of axes) setAttr(button, 'aria-pressed', (button.dataset.over === STEP) === byStep ? 'true' : 'false');
    const lines = kind ? known.flatMap((id) => linesOf(kind, measured.get(id).data).map((line) => ({ ...line, label: id }))) : [];
    const shown = byStep ? lines.map((line) => overSteps(line, measured.get(line.label).data)).filter((line) => line.at.length) : lines;
    keyed(chips, ids, (id) => id, () => chip(remove));
    setText(count, t('compare.count', { n: ids.length, most: MAX_COMPARED }));
    show(hint, ids.length === 0);
    show(panel, ids.length > 0);
    show(all, zoom !== null);
    show(nothing, known.length > 0 && shown.length === 0);
    if (!shown.length) {
      if (chart) show(chart.node, false);
      return;
    }
    place(kind);
    show(chart.node, true);
    const range = byStep ? rangeOf(shown) : measured.get(known[0]).range();
    if (zoom) [range.from, range.to] = zoom;
    chart.show(shown, range);
    if (!table.hidden) table.update([{ title: titleOf(kind), format: kind.format, lines: shown }], !byStep);
  }

  /** One chart for each kind, which determines its axis and texts. */
  function place(kind) {
    if (chart && chart.of === kind.name) return;
    if (chart) chart.destroy();
    chart = new Chart({ ...kind, title: titleOf(kind), height: HEIGHT, onZoom: zoomTo });
    chart.of = kind.name;
    fill(area, chart.node);
  }

  function update() {
    let drawn = false;
    for (const id of ids) {
      const worker = store.workers.get(id);
      const found = measured.get(id);
      if (!found) continue;
      const came = found.add(worker && worker.usage, worker ? metricsOf(worker) : {});
      if (came === 'ask') found.load(spans.span).then(() => !gone && draw(), () => {}); // retried at the next step
      drawn ||= came === 'added';
    }
    if (drawn) draw();
  }

  function setQuery(next) {
    ({ ids, what, over } = readQuery(next));
    zoom = null;
    load();
  }

  function unmount() {
    gone = true;
    forgetTheme();
    if (chart) chart.destroy();
  }

  draw();
  return { node, title: t('compare.title'), topics: ['workers'], update, setQuery, started: load, unmount };
}

function readQuery(query) {
  const ids = [...new Set((query.get('w') || '').split(',').filter(Boolean))].slice(0, MAX_COMPARED);
  return { ids, what: query.get('m') || '', over: query.get('over') === STEP ? STEP : 'time' };
}

/** The same values by the step that was read at the same time; the latest value if a step occurs twice. */
function overSteps(line, data) {
  const steps = (data.metrics || []).find((metric) => metric.name === STEP);
  if (!steps || !steps.series.value) return { ...line, at: [], values: [] };
  const stepAt = new Map(steps.at.map((at, place) => [at, steps.series.value[place]]));
  const byStep = new Map();
  line.at.forEach((at, place) => {
    const step = stepAt.get(at);
    if (typeof step === 'number' && line.values[place] !== null) byStep.set(step, line.values[place]);
  });
  const at = [...byStep.keys()].sort((a, b) => a - b);
  return { ...line, at, values: at.map((step) => byStep.get(step)) };
}

/** The range of steps. Their distances vary, so that lines over steps have no gaps. */
function rangeOf(lines) {
  const from = lines.reduce((low, line) => Math.min(low, line.at[0]), Infinity);
  const to = lines.reduce((high, line) => Math.max(high, line.at[line.at.length - 1]), -Infinity);
  return { from, to: to > from ? to : from + 1, step: Infinity, time: false };
}

function kindOption(kind) {
  const option = h('option', { value: kind.name }, titleOf(kind));
  option.update = () => {};
  return option;
}

function chip(remove) {
  const name = h('a');
  const close = h('button.icon-button', { type: 'button' }, icon('close'));
  const item = h('li.chosen-worker', {}, name, close);
  item.update = (id) => {
    setText(name, id);
    setAttr(name, 'href', link('worker', id));
    setAttr(close, 'aria-label', t('compare.remove', { worker: id }));
    close.onclick = () => remove(id);
  };
  return item;
}
