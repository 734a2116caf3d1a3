/** Acknowledgements of workers' problems (until the next attempt), for one worker or many, and mutes of their alerts. */

import { post, workerPath } from './api.js';
import { confirmAction, notify, notifyError } from './dialogs.js';
import { EventHistory } from './history.js';
import { t } from './i18n.js';
import { icon } from './icons.js';
import { h, setAttr, setText, show } from './dom.js';
import { actorName, reasonOf } from './reasons.js';
import { acts } from './rights.js';
import { go } from './router.js';
import { ALWAYS } from './timerange.js';

export const KIND = 'acknowledged';
const AT_ONCE = 6;
const MOST = 500; // workers per click
const MAX_SELECTOR_CHARS = 3500;

export class Acknowledgements {
  constructor(store, changed) {
    this.history = new EventHistory(store, changed);
    this.known = null;
    this.newest = new Map();
  }

  /** `worker`: only those of one worker; '': of all. */
  load(worker = '') {
    this.history.load({ kind: KIND, worker });
  }

  /** The event that acknowledges this attempt; null if there is none. */
  of(worker) {
    const events = this.history.within(ALWAYS, (event) => event.kind === KIND);
    if (events !== this.known) {
      this.known = events;
      this.newest = new Map(events.map((event) => [event.worker_id, event]));
    }
    const event = this.newest.get(worker.worker_id);
    return event && event.attempt === worker.attempt ? event : null;
  }
}

/** "Seen by li: more memory is ordered"; '' without an acknowledgement. */
export function seenText(event) {
  return event ? t('ack.seen', { actor: actorName(event.actor), note: reasonOf(event) }) : '';
}

export async function acknowledge(workers) {
  const some = workers.slice(0, MOST);
  const answer = await confirmAction({
    title: some.length === 1 ? t('ack.title_one', { worker: some[0].worker_id }) : t('ack.title', { n: some.length }),
    detail: [t('ack.detail')],
    action: t('ack.action'),
    withReason: true,
  });
  if (!answer) return;
  const waiting = some.map((worker) => worker.worker_id);
  let done = 0;
  let trouble = null;
  const work = async () => {
    while (waiting.length && !trouble) {
      try {
        await post(`${workerPath(waiting.shift())}/acknowledge`, { note: answer.reason });
        done += 1;
      } catch (error) {
        if (error.status !== 404) trouble = error; // a removed worker needs no attention
      }
    }
  };
  await Promise.all(Array.from({ length: AT_ONCE }, work));
  if (trouble) notifyError(trouble, t('ack.failed', { n: some.length - done }));
  else notify(t('ack.done', { n: done }));
}

/** Opens the form with a selector for these workers; without one if there are too many names for a selector. */
export function muteFor(names) {
  const selector = names.join('|');
  go('admin', 'notifications', { mute: selector.length > MAX_SELECTOR_CHARS ? '' : selector });
}

/** Two buttons for the workers passed to `.update(workers, event)`; `labelled`: with text. */
export function attentionButtons({ labelled = false } = {}) {
  let now = [];
  const make = (name, run) => h(labelled ? 'button.button.small' : 'button.icon-button', { type: 'button', title: t(`ack.${name}`), on: { click: () => run(now) } }, icon(name), labelled ? t(`ack.${name}`) : null);
  const seen = make('action', acknowledge);
  const mute = make('mute', (workers) => muteFor(workers.map((worker) => worker.worker_id)));
  const group = acts(h('div.actions.attention', { role: 'group', 'aria-label': t('ack.group') }, seen, mute));
  group.update = (workers, acknowledged) => {
    now = workers;
    show(seen, !acknowledged);
    const name = workers.length === 1 ? workers[0].worker_id : String(workers.length);
    if (!labelled) for (const [button, word] of [[seen, 'action'], [mute, 'mute']]) setAttr(button, 'aria-label', t('ack.on', { action: t(`ack.${word}`), worker: name }));
  };
  return group;
}

/** A line that names who has acknowledged the problem. */
export function seenLine() {
  const line = h('span.seen', { hidden: true });
  line.update = (event) => {
    setText(line, seenText(event));
    show(line, Boolean(event));
  };
  return line;
}
