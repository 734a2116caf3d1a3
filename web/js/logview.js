/**
 * The view of a log: of one worker, or of several merged by time; live, following or paused, one attempt or all, stdout or stderr,
 * highlighted or filtered, wrapped or not. Only visible lines exist in the page; worker output is inserted only as text.
 */

import { printable } from './ansi.js';
import { logPath } from './api.js';
import { copyText } from './clipboard.js';
import { errorBox, notify } from './dialogs.js';
import { debounced, fill, framed, h, keyed, setAttr, setClass, setText, show } from './dom.js';
import { fromInput, serverNowMs, toMs, zoneName } from './format.js';
import { t } from './i18n.js';
import { icon } from './icons.js';
import { evenRows, wrappedRows } from './logrows.js';
import { LEVELS, atLeast } from './loglevel.js';
import { MAX_SHOWN_CHARS, lineNode } from './logline.js';
import { LogModel } from './logmodel.js';
import { LogSource, TAIL } from './logsource.js';
import { readPattern } from './pattern.js';
import { popover } from './popover.js';
import { link } from './router.js';
import { isOpen, rangePick, readRange } from './timerange.js';

const REACHES = [200, 5000]; // lines to each side of an address; the second on request
const TAILS = [TAIL, 50000]; // lines of each worker; the second on request
const OVERSCAN = 20;
const ATTEMPTS_LISTED = 50;
const SEARCHED_CHARS = 16 * 1024; // per line
const SLOW_LINE_MS = 500; // an expression that takes longer on one line is cancelled
const HUES = 6;
const MIDDLE = null; // of the view, independent of its height
const NARROW = '(max-width: 760px)'; // lines wrap there by default
const MEASURES = 3; // maximum number of passes to measure visible wrapped lines
const NOTHING_CHOSEN = { attempt: '', stream: '', level: '', since: '', until: '', grep: '', only: false, at: '', wrap: '' };

/** The settings of a log in an address; the inverse of `logQuery`. */
export function readChosen(query, attempts = /^\d{1,9}$/) {
  const read = (name) => query.get(name) || '';
  const oneOf = (name, values) => (values.includes(read(name)) ? read(name) : '');
  const range = readRange(query);
  return {
    attempt: attempts.test(read('attempt')) ? read('attempt') : '',
    stream: oneOf('stream', ['out', 'err']),
    level: oneOf('level', LEVELS),
    since: range.since,
    until: range.until,
    grep: read('grep'),
    only: read('only') === '1',
    at: read('at'),
    wrap: oneOf('wrap', ['0', '1']),
  };
}

export function logQuery(chosen) {
  return { ...chosen, only: chosen.only ? '1' : '' };
}

export class LogView {
  /**
   * `workers`: ids, fixed unless `setWorkers` is used; `merged`: their names stand beside their lines; `chosen`: as `readChosen`
   * has it, to begin with; `onChoose(chosen)` after each choice of the reader's; `kept`: what `keep` of an earlier view returned.
   * `at`: the address of a line (`3.out.73014`) or a time; of one worker, the lines around it are shown, and stand still.
   */
  constructor({ live, workers, merged = false, chosen = {}, onChoose = () => {}, kept = null }) {
    this.live = live;
    this.merged = merged;
    this.chosen = { ...NOTHING_CHOSEN, ...chosen };
    this.onChoose = onChoose;
    this.kept = kept; // the reader's position, until the lines are loaded
    this.narrow = window.matchMedia(NARROW);
    this.layout = evenRows(0, 1);
    this.model = new LogModel({ merged });
    this.sources = new Map();
    this.problems = new Map(); // worker -> the error of its last load
    this.known = new Map(); // worker -> its data on the page
    this.hues = new Map();
    this.tail = kept ? kept.tail : TAILS[0];
    this.reach = REACHES[0];
    this.gone = false; // the manager does not have the line at `at`
    this.following = !kept;
    this.seen = 0; // number of created lines when the reader paused
    this.anchor = null; // while paused: {line, above}, the line that keeps its position
    this.shown = [];
    this.version = 0; // of the appearance of lines
    this.current = null; // the current match
    this.lost = null; // the marker of a lost connection
    this.started = false;
    this.draw = framed(() => this.render());
    this.build();
    this.readGrep();
    this.setWorkers(workers);
  }

  build() {
    const { chosen } = this;
    this.attemptPick = h('select.input', { 'aria-label': t('logs.attempt'), on: { change: () => this.choose({ attempt: this.attemptPick.value }) } });
    this.streamPick = h('select.input', { 'aria-label': t('logs.stream'), on: { change: () => this.choose({ stream: this.streamPick.value }) } });
    for (const stream of ['', 'out', 'err']) this.streamPick.append(h('option', { value: stream, selected: stream === chosen.stream }, t(`logs.stream_${stream || 'both'}`)));
    this.levelPick = h('select.input', { 'aria-label': t('logs.level'), on: { change: () => this.chooseShown({ level: this.levelPick.value }) } });
    for (const level of ['', ...LEVELS]) this.levelPick.append(h('option', { value: level, selected: level === chosen.level }, t(`logs.level_${level || 'any'}`)));
    this.rangePick = rangePick(chosen, (range) => this.choose(range));
    this.wrapButton = h('button.button', { type: 'button', 'aria-pressed': 'false', on: { click: () => this.chooseShown({ wrap: this.wraps() ? '0' : '1' }) } }, t('logs.wrap'));
    this.everywhere = h('a.log-everywhere', { title: t('logs.search_all_title') }, t('logs.search_all'));
    this.grep = h('input.input.log-grep', { type: 'search', 'aria-label': t('logs.grep'), placeholder: t('logs.grep_hint'), value: chosen.grep, spellcheck: 'false', autocomplete: 'off', data: { jump: '' } });
    const typed = debounced(() => this.takeTyped(), 150);
    this.grep.addEventListener('input', typed);
    this.grep.addEventListener('keydown', (event) => this.grepKey(event));
    this.onlyButton = h('button.button', { type: 'button', 'aria-pressed': 'false', title: t('logs.only_title'), on: { click: () => this.chooseShown({ only: !this.chosen.only }) } }, t('logs.only'));
    this.grepProblem = h('span.log-problem', { role: 'status' });
    this.followButton = h('button.button', { type: 'button', 'aria-pressed': 'true', on: { click: () => this.toggleFollow() } }, t('logs.follow'));
    this.olderButton = h('button.button', { type: 'button', data: { what: 'older' }, on: { click: () => this.loadOlder() } });
    this.linkButton = h('button.button', { type: 'button', on: { click: () => this.copyLink(this.current) } }, icon('copy'), t('logs.copy_link'));
    this.moment = h('input.input', { type: 'datetime-local', step: '1', 'aria-label': t('logs.moment', { zone: zoneName() }), on: { change: () => this.goTo() } });
    this.moments = popover({ label: t('logs.go_to'), kind: 'log-moment', content: [this.moment, h('p.muted', {}, zoneName())], onOpen: () => this.moment.focus() });
    this.download = h('a.button', { download: true, on: { click: (event) => this.downloadMerged(event) } }, icon('down'), t('logs.download'));
    this.count = h('span.muted.log-count');
    this.problem = h('div');
    this.space = h('div.log-space');
    this.scroller = h('div.log-scroll', { tabindex: '0', role: 'log', 'aria-live': 'off' }, this.space);
    this.scroller.addEventListener('scroll', () => this.scrolled(), { passive: true });
    this.paused = h('button.paused', { type: 'button', hidden: true, on: { click: () => this.toNewest() } });
    this.empty = h('p.log-empty', { hidden: true });
    const find = h('span.log-find', {}, this.grep, this.onlyButton, this.grepProblem);
    this.node = h(
      this.merged ? 'section.log.is-merged' : 'section.log',
      { 'aria-label': t('logs.title') },
      h('div.log-bar', {}, h('h2', {}, t('logs.title')), this.attemptPick, this.streamPick, this.levelPick, this.rangePick, find, this.count, this.everywhere, h('span.spring'), this.linkButton, this.moments.node, this.olderButton, this.wrapButton, this.download, this.followButton),
      this.problem,
      h('div.log-frame', {}, this.scroller, this.empty, this.paused),
    );
    this.resized = new ResizeObserver(this.draw);
    this.resized.observe(this.scroller);
  }

  start() {
    this.started = true;
    for (const source of this.sources.values()) source.start();
  }

  destroy() {
    this.resized.disconnect();
    for (const source of this.sources.values()) source.destroy();
    this.sources.clear();
  }

  // ------------------------------------------------------------------------------------------ whose log

  setWorkers(workers) {
    for (const [worker, source] of this.sources) {
      if (workers.includes(worker)) continue;
      source.destroy();
      this.sources.delete(worker);
      this.problems.delete(worker);
      this.model.forget(worker);
    }
    for (const worker of workers) if (!this.sources.has(worker)) this.addSource(worker);
    this.hues = new Map([...this.sources.keys()].map((worker, index) => [worker, `who-${index % HUES}`]));
    this.version += 1;
    const [first] = workers;
    setAttr(this.scroller, 'aria-label', workers.length === 1 ? t('logs.of', { worker: first }) : t('logs.of_many', { n: workers.length }));
    this.fillAttempts();
    this.linkDownload();
    this.showProblem();
    this.draw();
  }

  addSource(worker) {
    const source = new LogSource({
      worker,
      live: this.live,
      model: this.model,
      chosen: () => ({ ...this.chosen, at: this.place(), tail: this.tail, reach: this.reach }),
      changed: this.draw,
      onProblem: (from, error) => this.noteProblem(from, error),
      onExcerpt: (target) => this.showTarget(target),
    });
    source.newest = (this.known.get(worker) || {}).attempt || 0;
    this.sources.set(worker, source);
    if (this.started) source.start();
  }

  /** Updates the workers' data, adds new attempts to the list, and checks the connection. */
  update(workers) {
    for (const worker of workers) {
      this.known.set(worker.worker_id, worker);
      const source = this.sources.get(worker.worker_id);
      if (!source || source.newest === worker.attempt) continue;
      source.newest = worker.attempt;
      if (this.chosen.attempt === 'newest') this.reload(source);
      this.fillAttempts();
    }
    this.markConnection();
    this.showEmpty();
  }

  reload(source) {
    this.model.forget(source.worker);
    if (this.started) source.start();
  }

  /** Inserts a marker where the connection was lost; later output follows it. */
  markConnection() {
    const gone = this.live.state === 'reconnecting';
    if (gone && !this.lost && this.model.lines.length) {
      this.lost = this.model.mark({ marker: 'lost', at: (this.live.lastFrameMs + serverNowMs() - Date.now()) / 1000, until: null });
      this.draw();
    } else if (!gone && this.lost) {
      this.lost.until = serverNowMs() / 1000;
      this.lost = null;
      this.draw();
    }
  }

  // ------------------------------------------------------------------------------------------ choosing

  fillAttempts() {
    const [only] = this.sources.values();
    const options = [h('option', { value: '' }, t('logs.all_attempts'))];
    if (this.merged) {
      options.push(h('option', { value: 'newest' }, t('logs.newest_attempt')));
    } else if (only) {
      for (let n = only.newest; n > Math.max(0, only.newest - ATTEMPTS_LISTED); n -= 1) {
        options.push(h('option', { value: n }, t(n === only.newest ? 'logs.attempt_now' : 'logs.attempt_n', { attempt: String(n) })));
      }
    }
    const { attempt } = this.chosen;
    if (attempt && !options.some((option) => option.value === attempt)) options.push(h('option', { value: attempt }, t('logs.attempt_n', { attempt })));
    this.attemptPick.replaceChildren(...options);
    this.attemptPick.value = this.chosen.attempt;
  }

  /** Applies changes at once, including text that was typed just before. */
  take(changes) {
    Object.assign(this.chosen, { grep: this.grep.value }, changes);
    this.onChoose(this.chosen);
    this.readGrep();
  }

  choose(changes) {
    this.take({ at: '', ...changes });
    this.rangePick.update(this.chosen);
    this.linkDownload();
    this.reloadFromStart();
  }

  /** Applies the settings in the address. */
  setChosen(chosen) {
    const other = ['attempt', 'stream', 'at', 'since', 'until'].some((name) => chosen[name] !== this.chosen[name]);
    Object.assign(this.chosen, chosen);
    this.attemptPick.value = chosen.attempt;
    this.streamPick.value = chosen.stream;
    this.levelPick.value = chosen.level;
    this.rangePick.update(chosen);
    if (this.grep.value !== chosen.grep) this.grep.value = chosen.grep;
    this.readGrep();
    if (other) this.reloadFromStart();
    this.draw();
  }

  loadOlder() {
    if (this.place()) this.reach = REACHES[1];
    else this.tail = TAILS[1];
    this.reloadFromStart();
  }

  reloadFromStart() {
    this.model.clear();
    this.lost = null;
    this.current = null;
    this.gone = false;
    if (this.place() || this.kept) this.following = false;
    else this.follow();
    if (this.started) for (const source of this.sources.values()) source.start();
  }

  // ------------------------------------------------------------------------------------------ one place of a log

  /** The address or the time whose surroundings are shown; '' for the newest lines. */
  place() {
    return this.sources.size === 1 ? this.chosen.at : '';
  }

  /** Whether new output is shown. */
  isLive() {
    return !this.place() && isOpen(this.chosen);
  }

  // ------------------------------------------------------------------------------------------ coming back

  /** The reader's position, for a view created on return; null while following. */
  keep() {
    if (this.following || this.place() || !this.anchor) return null;
    const { line, above } = this.anchor;
    return line.marker ? null : { line: { worker: line.worker, attempt: line.attempt, stream: line.stream, offset: line.offset }, above, tail: this.tail };
  }

  /** Restores the reader's position once the lines are loaded, if that line is still among them. */
  comeBack() {
    const { kept } = this;
    if (!kept || ![...this.sources.values()].every((source) => source.loaded)) return;
    this.kept = null;
    const same = (line) => ['worker', 'attempt', 'stream', 'offset'].every((name) => line[name] === kept.line[name]);
    const line = this.model.lines.find(same);
    if (!line) {
      this.follow();
      return;
    }
    this.seen = this.model.made;
    this.anchor = { line, above: kept.above };
  }

  /** Shows the requested line; null if the manager does not have it. */
  showTarget(target) {
    this.following = false;
    this.gone = !target;
    this.current = target && this.model.lines.find((line) => line.attempt === target.attempt && line.stream === target.stream && line.offset === target.offset);
    this.anchor = this.current ? { line: this.current, above: MIDDLE } : null;
    this.version += 1;
    this.draw();
    requestAnimationFrame(() => requestAnimationFrame(this.draw)); // in the first frame there may be nothing to scroll
  }

  goTo() {
    const moment = fromInput(this.moment.value);
    if (!moment) return;
    this.moments.close();
    this.choose({ at: moment, since: '', until: '' });
  }

  toNewest() {
    if (!this.isLive()) this.choose({ until: '' });
    else this.follow();
  }

  linkTo(line) {
    return link('logs', '', { w: line.worker, at: `${line.attempt}.${line.stream}.${line.offset}` });
  }

  async copyLink(line) {
    const url = new URL(this.linkTo(line), location.href).href;
    notify(t((await copyText(url)) ? 'logs.link_copied' : 'copy_failed'));
  }

  /** Changes the selection and the appearance of the loaded lines. */
  chooseShown(changes) {
    this.take(changes);
    this.draw();
  }

  /** Applies typed text once, so that text already applied by Enter does not move the reader again. */
  takeTyped() {
    if (this.grep.value !== this.chosen.grep) this.chooseShown({});
  }

  readGrep() {
    const { pattern, error } = readPattern(this.chosen.grep);
    this.pattern = pattern;
    this.version += 1;
    this.current = null;
    setAttr(this.onlyButton, 'aria-pressed', this.chosen.only ? 'true' : 'false');
    setAttr(this.grep, 'aria-invalid', error ? 'true' : null);
    setText(this.grepProblem, error ? t(error) : '');
  }

  /** Enter goes to the previous match, Shift-Enter to the next one; Escape clears the search. */
  grepKey(event) {
    if (event.key === 'Enter') {
      event.preventDefault();
      this.takeTyped();
      this.jump(event.shiftKey ? 1 : -1);
    } else if (event.key === 'Escape' && this.grep.value) {
      event.preventDefault();
      this.grep.value = '';
      this.chooseShown({});
    }
  }

  jump(step) {
    if (!this.pattern) return;
    const from = this.current ? this.shown.indexOf(this.current) : step < 0 ? this.shown.length : -1;
    for (let index = from + step; index >= 0 && index < this.shown.length; index += step) {
      if (!this.hits(this.shown[index])) continue;
      this.current = this.shown[index];
      this.pause();
      this.anchor = { line: this.current, above: MIDDLE };
      this.draw();
      return;
    }
  }

  hits(line) {
    if (line.marker || !this.pattern) return false;
    if (line.hitOf !== this.pattern) {
      const began = performance.now();
      this.pattern.lastIndex = 0;
      line.hit = this.pattern.test(printable(line.text.slice(0, SEARCHED_CHARS)));
      line.hitOf = this.pattern;
      if (performance.now() - began > SLOW_LINE_MS) this.stopGrep();
    }
    return line.hit;
  }

  /** Cancels an expression that was slow on one line, because the next may take minutes. The text is kept for correction. */
  stopGrep() {
    this.pattern = null;
    this.version += 1;
    setAttr(this.grep, 'aria-invalid', 'true');
    setText(this.grepProblem, t('logs.pattern_slow'));
    requestAnimationFrame(() => this.draw());
  }

  // ------------------------------------------------------------------------------------------ downloading

  linkDownload() {
    const [only] = this.sources.values();
    show(this.download, Boolean(only));
    if (only) this.download.href = this.merged ? '#' : logPath(only.worker, { ...only.parameters(), download: '1' });
  }

  /** Downloads the loaded lines of several workers as a file created by the page, each with its time and worker. */
  downloadMerged(event) {
    if (!this.merged) return;
    event.preventDefault();
    const lines = this.shown.filter((line) => !line.marker).map((line) => `${line.at ? new Date(toMs(line.at)).toISOString() : '-'} ${line.worker} ${line.text}\n`);
    const url = URL.createObjectURL(new Blob(lines, { type: 'text/plain' }));
    h('a', { href: url, download: 'merged.log' }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10000);
  }

  // ------------------------------------------------------------------------------------------ what went wrong

  noteProblem(source, error) {
    if (error) this.problems.set(source.worker, error);
    else this.problems.delete(source.worker);
    this.showProblem();
  }

  showProblem() {
    const [first] = this.problems;
    if (!first) {
      fill(this.problem);
      return;
    }
    const [worker, error] = first;
    const retry = () => this.sources.get(worker) && this.sources.get(worker).load();
    fill(this.problem, this.merged ? h('p.log-whose', {}, worker) : null, errorBox(error, retry));
  }

  showEmpty() {
    const nothing = this.shown.length === 0;
    show(this.empty, nothing);
    if (!nothing) return;
    const sources = [...this.sources.values()];
    if (this.place() && this.gone) {
      setText(this.empty, t('logs.at_gone'));
      return;
    }
    const never = sources.length > 0 && sources.every((source) => this.known.has(source.worker) && !source.newest);
    const loaded = sources.every((source) => source.loaded);
    if (never) setText(this.empty, t('logs.never_started'));
    else if (this.model.lines.length) setText(this.empty, t('logs.no_match', { n: this.model.lines.length }));
    else setText(this.empty, loaded ? t(this.chosen.since || this.chosen.until ? 'logs.empty_range' : 'logs.empty') : t('loading'));
  }

  // ------------------------------------------------------------------------------------------ follow and pause

  toggleFollow() {
    if (this.following && this.isLive()) this.pause();
    else this.toNewest();
  }

  pause() {
    if (!this.following) return;
    this.following = false;
    this.seen = this.model.made;
    this.keepPlace();
    this.draw();
  }

  follow() {
    this.following = true;
    this.anchor = null;
    this.draw();
  }

  /** Scrolling up pauses; reaching the end follows again. */
  scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    const atEnd = scrollHeight - scrollTop - clientHeight < 4;
    if (this.following && !atEnd && scrollTop < this.lastTop) this.pause();
    else if (!this.following && this.isLive() && atEnd && scrollTop > this.lastTop) this.follow();
    else if (!this.following && scrollTop !== this.lastTop) this.keepPlace();
    this.lastTop = scrollTop;
    this.draw();
  }

  keepPlace() {
    const index = this.layout.at(this.scroller.scrollTop);
    this.anchor = index < 0 ? null : { line: this.shown[index], above: this.layout.top(index) - this.scroller.scrollTop };
  }

  // ------------------------------------------------------------------------------------------ drawing

  lineHeight() {
    return parseFloat(getComputedStyle(this.scroller).lineHeight) || 18;
  }

  wraps() {
    return this.chosen.wrap ? this.chosen.wrap === '1' : this.narrow.matches;
  }

  /** The lines to show, the number of matches, and the number of lines searched. */
  select() {
    const { stream, level, only } = this.chosen;
    let { lines } = this.model;
    if (stream && this.place()) lines = lines.filter((line) => line.stream === stream || line.marker); // around a line, both streams are loaded
    const all = lines.length;
    if (level) lines = atLeast(lines, level, (line) => printable(line.text.slice(0, SEARCHED_CHARS)));
    if (!this.pattern) return { lines, matching: level ? lines.length : null, all };
    const found = lines.filter((line) => this.hits(line));
    return { lines: only ? found : lines, matching: found.length, all };
  }

  render() {
    this.comeBack();
    const height = this.lineHeight();
    const selected = this.select();
    const { lines } = selected;
    this.shown = lines;
    const wraps = this.wraps();
    setClass(this.node, `log${this.merged ? ' is-merged' : ''}${wraps ? ' is-wrapped' : ''}`);
    for (let measured = 0; measured < MEASURES; measured += 1) {
      this.layout = wraps ? wrappedRows(lines, height, this.columns(), MAX_SHOWN_CHARS) : evenRows(lines.length, height);
      this.space.style.height = `${this.layout.total}px`;
      this.settle(lines);
      this.lastTop = this.scroller.scrollTop;
      const visible = this.drawLines(lines);
      if (!wraps || !this.measure(visible, height)) break;
    }
    this.renderState(selected);
    for (const source of this.sources.values()) source.credit();
  }

  drawLines(lines) {
    const { layout } = this;
    const first = Math.max(0, layout.at(this.scroller.scrollTop) - OVERSCAN);
    const last = Math.min(lines.length, layout.at(this.scroller.scrollTop + this.scroller.clientHeight) + 1 + OVERSCAN);
    const view = { pattern: this.pattern, version: this.version, current: this.current, who: (worker) => (this.merged ? this.hues.get(worker) : null), linkTo: (line) => this.linkTo(line), onLink: (line) => this.copyLink(line) };
    const visible = [];
    for (let index = first; index < last; index += 1) visible.push({ line: lines[index], top: layout.top(index), view });
    keyed(this.space, visible, (entry) => entry.line.id, lineNode);
    return visible;
  }

  /** The number of characters per row of a wrapped line. */
  columns() {
    this.probe ??= this.scroller.appendChild(h('span.log-probe', { 'aria-hidden': 'true' }, '0'.repeat(100)));
    const text = this.space.querySelector('.log-line:not(.is-marker) .log-text');
    const width = text ? text.clientWidth : this.scroller.clientWidth - 100;
    return Math.max(8, Math.floor(width / (this.probe.getBoundingClientRect().width / 100 || 8)));
  }

  /** Measures the heights of visible lines; returns whether one differs from its estimate. */
  measure(visible, height) {
    let wrong = false;
    for (const { line } of visible) {
      const rows = Math.max(1, Math.round(this.space.keyedNodes.get(line.id).offsetHeight / height));
      if (rows === line.rows) continue;
      line.rows = rows;
      wrong = true;
    }
    return wrong;
  }

  settle(lines) {
    if (this.following) {
      this.scroller.scrollTop = this.layout.total;
    } else if (this.anchor) {
      // a line that has left the ring, or does not match, is replaced by the next available one
      const { line, above } = this.anchor;
      const index = lines.findIndex((one) => one.order > line.order || (one.order === line.order && one.id >= line.id));
      if (index < 0) return;
      const room = this.scroller.clientHeight - (this.layout.top(index + 1) - this.layout.top(index));
      this.scroller.scrollTop = this.layout.top(index) - (above === MIDDLE ? room / 2 : above);
    }
  }

  renderState({ matching, all }) {
    setAttr(this.followButton, 'aria-pressed', this.following && this.isLive() ? 'true' : 'false');
    setAttr(this.wrapButton, 'aria-pressed', this.wraps() ? 'true' : 'false');
    const place = this.place();
    show(this.paused, !(this.following && this.isLive()) && (!place || !this.gone));
    setText(this.paused, this.isLive() ? t('logs.paused', { n: this.model.made - this.seen }) : t('logs.to_newest'));
    show(this.linkButton, Boolean(this.current));
    show(this.moments.node, this.sources.size === 1);
    setText(this.olderButton, t(place ? 'logs.more_around' : 'logs.older'));
    const whole = !place && [...this.sources.values()].every((source) => source.complete);
    setText(this.count, this.countText(matching, all, whole));
    this.linkEverywhere(matching !== null && !whole);
    const most = [...this.sources.keys()].length * this.tail;
    show(this.olderButton, place ? all > 0 && this.reach !== REACHES[1] : this.tail !== TAILS[1] && all > 0 && all >= Math.min(most, TAIL));
    this.showEmpty();
  }

  /** The number of loaded lines, with a note if there are more. */
  countText(matching, all, whole) {
    if (matching === null) return t(whole ? 'logs.count' : 'logs.count_part', { n: all });
    return t(whole ? 'logs.matching' : 'logs.matching_part', { some: matching, n: all });
  }

  /** A link to the search of the whole log on all hosts. */
  linkEverywhere(wanted) {
    const { grep, since, until, stream } = this.chosen;
    show(this.everywhere, Boolean(wanted && this.pattern));
    const select = [...this.sources.keys()].join('|');
    if (wanted) setAttr(this.everywhere, 'href', link('search', '', { find: grep, mode: 'regex', exact: /[A-Z]/.test(grep) ? '1' : '', select, since, until, stream }));
  }
}
