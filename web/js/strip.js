/** The number of events over time, as a strip of bars. The numbers are in the list below it. */

import { h, setAttr, setText } from './dom.js';
import { formatClock, formatMoment, toMs } from './format.js';
import { t } from './i18n.js';

const BARS = 60;

/** `.update(events, startMs, endMs, isBad)` with events oldest first. */
export function timeStrip() {
  const bars = Array.from({ length: BARS }, () => h('span.strip-bar', {}, h('span.strip-bad'), h('span.strip-rest')));
  const from = h('span');
  const to = h('span');
  const row = h('div.strip-bars', { role: 'img' }, bars);
  const node = h('div.strip', {}, row, h('div.strip-ends', { 'aria-hidden': 'true' }, from, to));
  node.update = (events, startMs, endMs, isBad) => {
    const first = events.length ? toMs(events[0].at) ?? endMs : endMs;
    const begin = Math.max(startMs, Math.min(first, endMs - 60000)); // there is nothing to show before the first event
    const step = Math.max(1, (endMs - begin) / BARS);
    const counts = bars.map(() => [0, 0]);
    for (const event of events) {
      const index = Math.min(BARS - 1, Math.max(0, Math.floor((toMs(event.at) - begin) / step)));
      counts[index][isBad(event) ? 0 : 1] += 1;
    }
    const most = Math.max(1, ...counts.map(([bad, rest]) => bad + rest));
    bars.forEach((bar, index) => {
      const [bad, rest] = counts[index];
      bar.firstChild.style.height = share(bad, most);
      bar.lastChild.style.height = share(rest, most);
      setAttr(bar, 'title', bad + rest ? t('strip.bar', { n: bad + rest, at: formatMoment((begin + index * step) / 1000) }) : null);
    });
    setText(from, formatClock(begin / 1000));
    setText(to, formatClock(endMs / 1000));
    setAttr(row, 'aria-label', t('strip.label', { n: events.length, from: formatMoment(begin / 1000), to: formatMoment(endMs / 1000) }));
  };
  return node;
}

function share(n, most) {
  return n ? `${Math.max(8, (100 * n) / most)}%` : '0';
}
