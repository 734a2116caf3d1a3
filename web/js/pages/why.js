/** The explanation of a worker's state: the manager's sentences in the page's language, reloaded after changes. */

import { get, workerPath } from '../api.js';
import { errorBox } from '../dialogs.js';
import { debounced, fill, h, keyed, setText, show } from '../dom.js';
import { reasonOf } from '../reasons.js';
import { currentLanguage, t } from '../i18n.js';
import { nextStartS } from '../status.js';

const SETTLE_MS = 400; // a burst of changes causes two requests: at its beginning and after its end
const TICK_MS = 1000;
const REFRESH_TICKS = 15; // because sentences contain durations
const COUNTED_S = 3600; // a restart within this time is announced with its seconds: the explanation is requested every second

export function whyPanel(id) {
  const headline = h('p.why-headline');
  const sentences = h('ul.why-list');
  const steps = h('ul.why-steps');
  const problem = h('div');
  const node = h('section.panel.why', { 'aria-labelledby': 'worker-why', hidden: true }, h('h2', { id: 'worker-why' }, t('worker.why')), problem, headline, sentences, steps);
  let asked = '';
  let askedMs = -Infinity; // time of the last change
  let requests = 0;
  let pending = 0; // requests without a response yet
  let ticks = 0; // since the last request
  let counts = false; // whether a sentence counts the seconds until a restart
  let failed = false; // whether the last request failed
  let gone = false;

  async function load() {
    if (gone) return;
    const request = (requests += 1);
    const outdated = () => gone || request !== requests;
    ticks = 0;
    pending += 1;
    try {
      const said = await get(`${workerPath(id)}/explain?lang=${encodeURIComponent(currentLanguage())}`);
      failed = false;
      if (outdated()) return;
      fill(problem);
      setText(headline, said.headline);
      lines(sentences, said.sentences.map((one) => one.text));
      lines(steps, said.next_steps);
      show(node, true);
    } catch (error) {
      failed = true;
      // a worker that was just removed has its own notice on the page
      if (!outdated() && error.status !== 401 && error.status !== 404) {
        fill(problem, errorBox(error, load));
        show(node, true);
      }
    } finally {
      pending -= 1;
    }
  }

  const soon = debounced(load, SETTLE_MS);
  const timer = setInterval(() => {
    ticks += 1;
    if (!document.hidden && (ticks >= REFRESH_TICKS || (counts && !failed && pending === 0))) load();
  }, TICK_MS);

  /** Requests the explanation again only if the data of its sentences has changed. */
  node.update = (worker, host) => {
    const left = worker.state === 'backoff' ? nextStartS(worker) : null;
    counts = left !== null && left > 0 && left < COUNTED_S;
    const parts = [worker.state, reasonOf(worker), worker.desired, worker.attempt, worker.restarts, worker.restart_pending, worker.undeclared, reasonOf(worker, 'suspect')];
    parts.push(worker.health && worker.health.status, worker.last_exit && worker.last_exit.attempt, host && host.agent_state, host && reasonOf(host));
    const now = JSON.stringify(parts);
    if (now === asked) return;
    asked = now;
    const before = askedMs;
    askedMs = performance.now();
    if (askedMs - before > SETTLE_MS) load();
    else soon();
  };
  node.destroy = () => {
    gone = true;
    soon.cancel();
    clearInterval(timer);
  };
  return node;
}

function lines(list, texts) {
  keyed(list, texts.map((text, place) => ({ text, place })), (one) => one.place, sentence);
  show(list, texts.length > 0);
}

function sentence() {
  const item = h('li');
  item.update = (one) => setText(item, one.text);
  return item;
}
