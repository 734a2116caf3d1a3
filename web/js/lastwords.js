/** The last lines of an attempt that has ended, as the manager stored them. */

import { pieces } from './ansi.js';
import { get, logPath } from './api.js';
import { errorBox } from './dialogs.js';
import { fill, h } from './dom.js';
import { formatClock } from './format.js';
import { t } from './i18n.js';
import { marked } from './logline.js';

const LINES = 50;
const SHOWN_CHARS = 4000; // of a line

/** An expandable panel; requests the lines when it is opened. */
export function lastWords(worker, attempt) {
  const body = h('div');
  const box = h('details.last-words', {}, h('summary', {}, t('recovery.last_words', { n: LINES })), body);
  let asked = false;
  box.addEventListener('toggle', () => {
    if (box.open && !asked) load();
  });

  async function load() {
    asked = true;
    fill(body, h('p.muted', {}, t('loading')));
    try {
      const answer = await get(logPath(worker, { attempt: String(attempt), tail: String(LINES), format: 'json' }));
      if (answer.lines.length === 0) {
        fill(body, h('p.muted', {}, t('recovery.no_words')));
        return;
      }
      const words = h('div.words', { tabindex: '0', role: 'group', 'aria-label': t('recovery.last_words', { n: LINES }) }, answer.lines.map(wordsLine));
      fill(body, words);
      words.scrollTop = words.scrollHeight; // the last lines are at the end
    } catch (error) {
      asked = false;
      if (error.status !== 401) fill(body, errorBox(error, load));
    }
  }
  return box;
}

function wordsLine(line) {
  const text = h(`span.log-text${line.stream === 'err' ? '.is-err' : ''}`, {}, marked(pieces(line.text.slice(0, SHOWN_CHARS)), null));
  return h('div.words-line', {}, h('time.log-at', {}, line.at ? formatClock(line.at) : ''), text);
}
