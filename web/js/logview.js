/**
 * A log to read: of one worker, or of several merged by time; live, follow or paused, one attempt or all, stdout or stderr,
 * highlighted or filtered. Only the lines in sight exist in the page; worker output enters as text and nothing else.
 */

import { printable } from './ansi.js';
import { logPath } from './api.js';
import { copyText } from './clipboard.js';
import { errorBox, notify } from './dialogs.js';
import { debounced, fill, framed, h, keyed, setAttr, setText, show } from './dom.js';
import { serverNowMs, toMs } from './format.js';
import { t } from './i18n.js';
import { icon } from './icons.js';
import { lineNode } from './logline.js';
import { LogModel } from './logmodel.js';
import { LogSource, TAIL } from './logsource.js';
import { readPattern } from './pattern.js';
import { link } from './router.js';

const REACHES = [200, 5000]; // lines to each side of an address; the second once somebody asks for more
const TAILS = [TAIL, 50000]; // lines of each worker; the second once somebody asks for older ones
const OVERSCAN = 20;
const ATTEMPTS_LISTED = 50;
const SEARCHED_CHARS = 16 * 1024; // of a line
const SLOW_LINE_MS = 500; // an expression that takes so long on one line is given up
const HUES = 6;
const MIDDLE = null; // of the view, however high that is

export class LogView {
  /**
   * `workers`: ids, fixed unless `setWorkers` is used; `merged`: their names stand beside their lines; `chosen`: {attempt,
   * stream, grep, only, at} to begin with; `onChoose(chosen)` after each choice of the reader's. `at`: the address of a line
   * (`3.out.73014`) or a time; of one worker, the lines around it are shown, and stand still.
   */
  constructor({ live, workers, merged = false, chosen = {}, onChoose = () => {} }) {
    this.live = live;
    this.merged = merged;
    this.chosen = { attempt: '', stream: '', grep: '', only: false, at: '', ...chosen };
    this.onChoose = onChoose;
    this.model = new LogModel({ merged });
    this.sources = new Map();
    this.problems = new Map(); // worker -> the error of its last load
    this.known = new Map(); // worker -> what the page knows of it
    this.hues = new Map();
    this.tail = TAILS[0];
    this.reach = REACHES[0];
    this.gone = false; // the manager does not hold the line at `at`
    this.following = true;
    this.seen = 0; // lines ever made when the reader paused
    this.anchor = null; // paused: {line, above}: what the reader looks at stays where it is
    this.shown = [];
    this.version = 0; // of how lines look
    this.current = null; // the match that was jumped to
    this.lost = null; // the marker of a connection that is lost now
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
    this.grep = h('input.input.log-grep', { type: 'search', 'aria-label': t('logs.grep'), placeholder: t('logs.grep_hint'), value: chosen.grep, spellcheck: 'false', autocomplete: 'off', data: { jump: '' } });
    const typed = debounced(() => this.takeTyped(), 150);
    this.grep.addEventListener('input', typed);
    this.grep.addEventListener('keydown', (event) => this.grepKey(event));
    this.onlyButton = h('button.button', { type: 'button', 'aria-pressed': 'false', title: t('logs.only_title'), on: { click: () => this.chooseGrep({ only: !this.chosen.only }) } }, t('logs.only'));
    this.grepProblem = h('span.log-problem', { role: 'status' });
    this.followButton = h('button.button', { type: 'button', 'aria-pressed': 'true', on: { click: () => this.toggleFollow() } }, t('logs.follow'));
    this.olderButton = h('button.button', { type: 'button', data: { what: 'older' }, on: { click: () => this.loadOlder() } });
    this.linkButton = h('button.button', { type: 'button', on: { click: () => this.copyLink(this.current) } }, icon('copy'), t('logs.copy_link'));
    this.moment = h('input.input.log-moment', { type: 'datetime-local', step: '1', 'aria-label': t('logs.go_to'), title: t('logs.go_to'), on: { change: () => this.goTo() } });
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
      h('div.log-bar', {}, h('h2', {}, t('logs.title')), this.attemptPick, this.streamPick, find, this.count, h('span.spring'), this.linkButton, this.moment, this.olderButton, this.download, this.followButton),
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

  /** What the page knows of the workers now: a new attempt enters the list. And whether the connection holds. */
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

  /** The connection that was lost leaves its mark where it was; what came meanwhile follows it. */
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
    this.attemptPick.replaceChildren(...options);
    this.attemptPick.value = this.chosen.attempt;
  }

  /** What is typed counts at once, also where the pause after typing is not over. */
  take(changes) {
    Object.assign(this.chosen, { grep: this.grep.value }, changes);
    this.onChoose(this.chosen);
    this.readGrep();
  }

  choose(changes) {
    this.take({ at: '', ...changes });
    this.linkDownload();
    this.reloadFromStart();
  }

  /** As the address says now. */
  setChosen({ attempt, stream, grep, only, at = '' }) {
    const other = attempt !== this.chosen.attempt || stream !== this.chosen.stream || at !== this.chosen.at;
    Object.assign(this.chosen, { attempt, stream, grep, only, at });
    this.attemptPick.value = attempt;
    this.streamPick.value = stream;
    if (this.grep.value !== grep) this.grep.value = grep;
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
    if (this.place()) this.following = false;
    else this.follow();
    if (this.started) for (const source of this.sources.values()) source.start();
  }

  // ------------------------------------------------------------------------------------------ one place of a log

  /** The address or the time whose surroundings are shown; '' where the newest lines are. */
  place() {
    return this.sources.size === 1 ? this.chosen.at : '';
  }

  /** The line that was asked for, or null where the manager does not hold it. */
  showTarget(target) {
    this.following = false;
    this.gone = !target;
    this.current = target && this.model.lines.find((line) => line.attempt === target.attempt && line.stream === target.stream && line.offset === target.offset);
    this.anchor = this.current ? { line: this.current, above: MIDDLE } : null;
    this.version += 1;
    this.draw();
    requestAnimationFrame(() => requestAnimationFrame(this.draw)); // in the first frame there may be nothing to scroll yet
  }

  goTo() {
    const moment = new Date(this.moment.value); // the reader's own time zone
    if (this.moment.value && !Number.isNaN(moment.getTime())) this.choose({ at: moment.toISOString() });
  }

  toNewest() {
    if (this.place()) this.choose({});
    else this.follow();
  }

  linkTo(line) {
    return link('logs', '', { w: line.worker, at: `${line.attempt}.${line.stream}.${line.offset}` });
  }

  async copyLink(line) {
    const url = new URL(this.linkTo(line), location.href).href;
    notify(t((await copyText(url)) ? 'logs.link_copied' : 'copy_failed'));
  }

  chooseGrep(changes) {
    this.take(changes);
    this.draw();
  }

  /** Once: what Enter has used already does not move the reader again. */
  takeTyped() {
    if (this.grep.value !== this.chosen.grep) this.chooseGrep({});
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

  /** Enter goes to the match before, Shift-Enter to the one after; Escape leaves nothing to look for. */
  grepKey(event) {
    if (event.key === 'Enter') {
      event.preventDefault();
      this.takeTyped();
      this.jump(event.shiftKey ? 1 : -1);
    } else if (event.key === 'Escape' && this.grep.value) {
      event.preventDefault();
      this.grep.value = '';
      this.chooseGrep({});
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

  /** The expression held this page up on one line: the next may take minutes. The text stays, for its author to change. */
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

  /** Of several workers the page makes the file: the lines that are here, each with its time and its worker. */
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
    else setText(this.empty, loaded ? t('logs.empty') : t('loading'));
  }

  // ------------------------------------------------------------------------------------------ follow and pause

  toggleFollow() {
    if (this.following) this.pause();
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
    else if (!this.following && !this.place() && atEnd && scrollTop > this.lastTop) this.follow();
    else if (!this.following && scrollTop !== this.lastTop) this.keepPlace();
    this.lastTop = scrollTop;
    this.draw();
  }

  keepPlace() {
    const height = this.lineHeight();
    const index = Math.min(this.shown.length - 1, Math.floor(this.scroller.scrollTop / height));
    this.anchor = index < 0 ? null : { line: this.shown[index], above: index * height - this.scroller.scrollTop };
  }

  // ------------------------------------------------------------------------------------------ drawing

  lineHeight() {
    return parseFloat(getComputedStyle(this.scroller).lineHeight) || 18;
  }

  /** The lines to show, and how many of them match. */
  select() {
    const { lines } = this.model;
    if (!this.pattern) return [lines, null];
    if (this.chosen.only) {
      const found = lines.filter((line) => this.hits(line));
      return [found, found.length];
    }
    return [lines, lines.reduce((sum, line) => sum + (this.hits(line) ? 1 : 0), 0)];
  }

  render() {
    const height = this.lineHeight();
    const [lines, matching] = this.select();
    this.shown = lines;
    this.space.style.height = `${lines.length * height}px`;
    this.settle(lines, height);
    this.lastTop = this.scroller.scrollTop;
    const first = Math.max(0, Math.floor(this.scroller.scrollTop / height) - OVERSCAN);
    const last = Math.min(lines.length, first + Math.ceil(this.scroller.clientHeight / height) + 2 * OVERSCAN);
    const view = { height, pattern: this.pattern, version: this.version, current: this.current, who: (worker) => (this.merged ? this.hues.get(worker) : null), linkTo: (line) => this.linkTo(line), onLink: (line) => this.copyLink(line) };
    const visible = [];
    for (let index = first; index < last; index += 1) visible.push({ line: lines[index], index, view });
    keyed(this.space, visible, (entry) => entry.line.id, lineNode);
    this.renderState(matching);
    for (const source of this.sources.values()) source.credit();
  }

  settle(lines, height) {
    if (this.following) {
      this.scroller.scrollTop = lines.length * height;
    } else if (this.anchor) {
      // a line that has left the ring, or does not match, gives way to the next one that is here
      const { line, above } = this.anchor;
      const index = lines.findIndex((one) => one.order > line.order || (one.order === line.order && one.id >= line.id));
      if (index >= 0) this.scroller.scrollTop = index * height - (above === MIDDLE ? (this.scroller.clientHeight - height) / 2 : above);
    }
  }

  renderState(matching) {
    setAttr(this.followButton, 'aria-pressed', this.following ? 'true' : 'false');
    const place = this.place();
    show(this.paused, !this.following && (!place || !this.gone));
    setText(this.paused, place ? t('logs.to_newest') : t('logs.paused', { n: this.model.made - this.seen }));
    show(this.linkButton, Boolean(this.current));
    show(this.moment, this.sources.size === 1);
    setText(this.olderButton, t(place ? 'logs.more_around' : 'logs.older'));
    const n = this.model.lines.length;
    setText(this.count, matching === null ? t('logs.count', { n }) : t('logs.matching', { some: matching, n }));
    const most = [...this.sources.keys()].length * this.tail;
    show(this.olderButton, place ? n > 0 && this.reach !== REACHES[1] : this.tail !== TAILS[1] && n > 0 && n >= Math.min(most, TAIL));
    this.showEmpty();
  }
}
