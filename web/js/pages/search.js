/** The search of the whole fleet's logs on their hosts; results are shown as hosts answer. */

import { pieces } from '../ansi.js';
import { stream } from '../api.js';
import { completed } from '../completion.js';
import { emptyBox, errorBox } from '../dialogs.js';
import { fill, framed, h, keyed, setAttr, setText, show } from '../dom.js';
import { formatBytes, formatClock, formatDuration, formatMoment } from '../format.js';
import { reasonOf } from '../reasons.js';
import { t } from '../i18n.js';
import { link, replaceQuery } from '../router.js';
import { completions } from '../selector.js';
import { rangePick, rangeQuery, readRange } from '../timerange.js';
import { logTabs, pageHead } from './parts.js';

const LIMIT = 500;
const TIMEOUT_S = 15;
const STREAMS = ['', 'out', 'err'];
const STATUS_GLYPHS = { asked: '…', done: '✓', timeout: '⧖', failed: '✖', no_answer: '✖', away: '?' };

export function searchPage({ store, query }) {
  let chosen = readQuery(query);
  let running = null; // the AbortController of the search in progress
  let lines = [];
  let parts = [];
  let totals = null;
  let fresh = false;

  const pattern = h('input.input.search-pattern', { id: 'pattern', type: 'search', required: true, value: chosen.find, maxlength: '512', spellcheck: 'false', autocomplete: 'off', placeholder: t('search.pattern_hint'), data: { jump: '' } });
  const mode = h('select.input', { 'aria-label': t('search.mode') }, ['text', 'regex'].map((one) => h('option', { value: one, selected: one === chosen.mode }, t(`search.mode_${one}`))));
  const exact = h('input', { type: 'checkbox', id: 'exact', checked: chosen.exact });
  const select = h('input.input', { id: 'select', type: 'text', value: chosen.select, spellcheck: 'false', placeholder: t('search.select_hint') });
  const completion = completed(select, t('workers.filter_suggestions'), (text) => completions(text, () => store.workers.values(), (n) => t('workers.suggested', { n })));
  const streams = h('select.input', { 'aria-label': t('logs.stream') }, STREAMS.map((one) => h('option', { value: one, selected: one === chosen.stream }, t(`logs.stream_${one || 'both'}`))));
  let range = { since: chosen.since, until: chosen.until };
  const ranges = rangePick(range, (next) => {
    range = next;
    ranges.update(next);
  });
  const go = h('button.button.primary', { type: 'submit' }, t('search.go'));
  const stop = h('button.button', { type: 'button', hidden: true, on: { click: () => end() } }, t('search.stop'));
  const form = h(
    'form.search-form',
    { role: 'search', on: { submit: (event) => submitted(event) } },
    h('div.search-what', {}, h('label.hidden-text', { for: 'pattern' }, t('search.pattern')), pattern, go, stop),
    h('div.search-where', {}, mode, h('label.check', { for: 'exact' }, exact, t('search.exact')), h('label.hidden-text', { for: 'select' }, t('search.select')), completion.node, streams, ranges),
  );
  const progress = h('p.search-progress', { role: 'status' });
  const bar = h('progress', { max: '1', value: '0', 'aria-label': t('search.progress_label'), hidden: true });
  const problem = h('div');
  const silent = h('ul.silent-list');
  const silentBox = h('details.silent', { hidden: true }, h('summary'), silent);
  const list = h('ol.found-list');
  const empty = emptyBox(t('search.begin'), h('p', {}, t('search.begin_how')));
  const node = h('div.page', {}, pageHead(t('search.title'), logTabs('search')), form, problem, h('div.search-state', {}, progress, bar), silentBox, empty, list);
  const draw = framed(() => render());

  function submitted(event) {
    event.preventDefault();
    chosen = { find: pattern.value, mode: mode.value, exact: exact.checked, select: select.value.trim(), stream: streams.value, ...range };
    replaceQuery({ ...chosen, ...rangeQuery(chosen), mode: chosen.mode === 'regex' ? 'regex' : '', exact: chosen.exact ? '1' : '' });
    begin();
  }

  async function begin() {
    end();
    [lines, parts, totals] = [[], [], null];
    fill(problem);
    if (!chosen.find) return;
    const own = new AbortController();
    running = own;
    draw();
    const parameters = new URLSearchParams({ [chosen.mode]: chosen.find, select: chosen.select || '*', limit: String(LIMIT), timeout: String(TIMEOUT_S), format: 'jsonl' });
    if (!chosen.exact) parameters.set('ignore_case', '1');
    for (const name of ['since', 'until', 'stream']) if (chosen[name]) parameters.set(name, chosen[name]);
    try {
      await stream(`/api/log-search?${parameters}`, own.signal, (said) => running === own && take(said));
    } catch (error) {
      if (running === own && error.status !== 401) fill(problem, errorBox(error, begin));
    }
    if (running === own) running = null;
    draw();
  }

  function take(said) {
    if (said.t === 'host') {
      parts.push(said);
      lines.push(...said.lines);
      fresh = fresh || said.lines.length > 0;
    } else {
      totals = said;
    }
    draw();
  }

  function end() {
    if (running) running.abort();
    running = null;
    draw();
  }

  function render() {
    if (fresh) {
      lines.sort((a, b) => b.at - a.at);
      lines = lines.slice(0, LIMIT);
      fresh = false;
    }
    show(stop, Boolean(running));
    const asked = totals ? totals.hosts_asked : 0;
    show(bar, Boolean(running));
    setAttr(bar, 'max', Math.max(1, asked));
    setAttr(bar, 'value', parts.length);
    setText(progress, progressText(asked));
    showSilent();
    show(empty, !totals && !running && lines.length === 0 && problem.children.length === 0);
    keyed(list, lines, (line) => `${line.worker_id} ${line.attempt}.${line.stream} ${line.offset}`, foundItem);
  }

  function progressText(asked) {
    if (!totals) return running ? t('search.asking') : '';
    const found = parts.reduce((sum, part) => sum + part.found, 0);
    const bytes = formatBytes(parts.reduce((sum, part) => sum + part.bytes, 0));
    const answered = parts.filter((part) => part.status === 'done').length;
    const values = { n: found, shown: lines.length, answered, asked, bytes };
    if (running) return t('search.running', values);
    if (asked === 0) return t('search.nobody');
    const time = formatDuration(Math.max(0.1, totals.elapsed_s));
    if (totals.t !== 'end') return t('search.stopped', values);
    return found > lines.length ? t('search.done_more', { ...values, d: time }) : t('search.done', { ...values, d: time });
  }

  function showSilent() {
    const others = parts.filter((part) => part.status !== 'done');
    keyed(silent, others, (part) => part.agent, silentItem);
    setText(silentBox.firstChild, t('search.silent', { n: others.length }));
    show(silentBox, others.length > 0);
  }

  function foundItem(line) {
    const [first, rest] = [line.text.slice(0, line.begin), line.text.slice(line.end)];
    const hit = line.text.slice(line.begin, line.end);
    const text = h('span.log-text', {}, shown(first), h('mark', {}, shown(hit)), shown(rest));
    const filter = chosen.mode === 'regex' ? chosen.find : chosen.find.replace(/[.*+?^${}()|[\]\\]/g, '\\$&');
    const place = `${line.attempt}.${line.stream}.${line.offset}`;
    const where = link('logs', '', { w: line.worker_id, at: place, grep: chosen.exact ? filter : filter.toLowerCase() });
    const item = h(
      'li.found',
      {},
      h('div.found-where', {}, h('time', { title: formatMoment(line.at) }, line.at ? formatClock(line.at) : t('none')), h('a.strong', { href: where, title: t('search.open') }, line.worker_id), h('span.muted', {}, line.host), h('span.muted', {}, t('events.attempt', { attempt: String(line.attempt) }))),
      h(`div.found-line${line.stream === 'err' ? '.is-err' : ''}`, {}, text),
    );
    item.update = () => {};
    return item;
  }

  function setQuery(next) {
    chosen = readQuery(next);
    [pattern.value, mode.value, exact.checked, select.value, streams.value] = [chosen.find, chosen.mode, chosen.exact, chosen.select, chosen.stream];
    range = { since: chosen.since, until: chosen.until };
    ranges.update(range);
    begin();
  }

  function started() {
    if (chosen.find) begin();
    else pattern.focus();
    render();
  }

  return { node, title: t('search.title'), topics: [], update: () => {}, setQuery, started, unmount: end };
}

const shown = (text) => pieces(text).map((piece) => piece.text);

function silentItem(part) {
  const item = h('li', {}, h('span.glyph', { 'aria-hidden': 'true' }, STATUS_GLYPHS[part.status] || '?'), ' ', h('strong', {}, part.host), ' ', t(`search.status_${part.status}`), ' ', h('span.muted', {}, reasonOf(part)));
  item.update = () => {};
  return item;
}

function readQuery(query) {
  const read = (name) => query.get(name) || '';
  const stream = STREAMS.includes(read('stream')) ? read('stream') : '';
  return { find: read('find'), mode: read('mode') === 'regex' ? 'regex' : 'text', exact: read('exact') === '1', select: read('select'), stream, ...readRange(query) };
}
