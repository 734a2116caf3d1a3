/** The attempts of a worker: start, duration, end and cause of each, its log, and its log as a file. */

import { logPath } from '../api.js';
import { h, show } from '../dom.js';
import { formatDuration, formatMoment, toMs } from '../format.js';
import { EventHistory } from '../history.js';
import { t } from '../i18n.js';
import { icon } from '../icons.js';
import { reasonOf } from '../reasons.js';
import { link } from '../router.js';
import { exitInWords, stateName } from '../status.js';
import { Table, fixedCell, textCell } from '../table.js';
import { ALWAYS } from '../timerange.js';

/** `.update(worker)`; `.start()` requests the stored events, once. */
export function attemptsPanel(id, store) {
  const history = new EventHistory(store, () => draw());
  const none = h('p.muted');
  const more = h('button.button', { type: 'button', hidden: true, on: { click: () => history.more() } }, t('events.load_older'));
  const table = new Table({ label: t('attempts.title'), kind: 'attempts-table', columns: columns(id), keyOf: (attempt) => attempt.number });
  const node = h('section.panel.attempts', { 'aria-label': t('attempts.title') }, history.problem, none, table.node, more);
  let worker = null;

  function draw() {
    const events = history.within(ALWAYS, (event) => event.worker_id === id && event.kind === 'worker_state');
    const attempts = worker ? attemptsOf(events, worker) : [];
    table.setItems(attempts);
    show(none, attempts.length === 0);
    none.textContent = t(history.loaded ? 'attempts.none' : 'loading');
    show(more, history.loaded && !history.complete);
  }

  return {
    node,
    start: () => history.load({ worker: id, kind: 'worker_state' }),
    update(next) {
      worker = next;
      draw();
    },
  };
}

/** {number, began, ended, exit, reason, cause, now}, newest first; times only if they are stored. Pure. */
export function attemptsOf(events, worker) {
  const found = new Map();
  const of = (number) => {
    if (!found.has(number)) found.set(number, { number, began: null, exit: null, ended: null, stopped: false, reason: null, now: null });
    return found.get(number);
  };
  for (const event of events) {
    if (!event.attempt) continue;
    const exit = event.evidence && event.evidence.exit;
    if (exit) {
      const attempt = of(exit.attempt || event.attempt);
      attempt.exit = exit;
      attempt.ended = exit.at || event.at;
      attempt.reason = event;
      if (!attempt.began && exit.at && exit.duration_s) attempt.began = exit.at - exit.duration_s;
    } else if (['starting', 'running'].includes(event.after)) {
      const attempt = of(event.attempt);
      attempt.began = attempt.began || event.at;
      const before = found.get(event.attempt - 1);
      if (before && !before.ended) before.ended = event.at; // restarted at once
    } else if (event.after === 'stopped') {
      Object.assign(of(event.attempt), { ended: event.at, stopped: true });
    }
  }
  if (worker.last_exit && worker.last_exit.attempt) {
    const attempt = of(worker.last_exit.attempt);
    attempt.exit = attempt.exit || worker.last_exit;
    attempt.ended = attempt.ended || worker.last_exit.at;
    if (!attempt.began && worker.last_exit.at) attempt.began = worker.last_exit.at - worker.last_exit.duration_s;
  }
  if (worker.attempt) {
    const newest = of(worker.attempt);
    if (['starting', 'running', 'stopping'].includes(worker.state)) Object.assign(newest, { now: worker.state, ended: null });
  }
  return [...found.values()].sort((a, b) => b.number - a.number);
}

function lasted({ began, ended, exit, now }) {
  if (exit && exit.duration_s) return formatDuration(exit.duration_s);
  const begin = toMs(began);
  if (begin === null || (!now && !ended)) return t('none');
  return formatDuration(((now ? Date.now() : toMs(ended)) - begin) / 1000);
}

/** The end of an attempt, with the cause if the manager knows more than the exit status. */
function endText({ exit, reason, now, stopped }) {
  if (now) return stateName(now);
  if (!exit) return stopped ? stateName('stopped') : t('attempts.unknown_end');
  const words = exitInWords(exit);
  const why = reason ? reasonOf(reason) : reasonOf(exit);
  if (!why || why === words) return words;
  return why.startsWith(words) ? why : t('attempts.end', { words, why });
}

function columns(id) {
  return [
    { name: 'number', label: t('logs.attempt'), make: textCell(({ number }) => String(number), { selector: 'strong' }) },
    { name: 'began', label: t('attempts.began'), make: textCell(({ began }) => (began ? formatMoment(began) : t('attempts.not_on_record')), { selector: 'time' }) },
    { name: 'lasted', label: t('attempts.lasted'), make: textCell(lasted) },
    { name: 'end', label: t('attempts.how'), make: textCell(endText) },
    { name: 'log', label: t('worker.tab_log'), make: ({ number }) => fixedCell(h('a', { href: link('worker', id, { attempt: String(number) }) }, t('attempts.log'))) },
    {
      name: 'file',
      label: t('logs.download'),
      make: ({ number }) => fixedCell(h('a', { href: logPath(id, { attempt: String(number), download: '1' }), download: true, 'aria-label': t('attempts.download', { attempt: String(number) }), title: t('attempts.download', { attempt: String(number) }) }, icon('down'))),
    },
  ];
}
