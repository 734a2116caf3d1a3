/** Renders one line of a log: its time, its worker, its text with colours and highlighted matches. Text nodes and classes only. */

import { pieces, printable } from './ansi.js';
import { showText } from './dialogs.js';
import { fill, h, setAttr, setClass, setText } from './dom.js';
import { formatBytes, formatClock, formatDuration, formatMoment } from './format.js';
import { formatNumber, t } from './i18n.js';

export const MAX_SHOWN_CHARS = 16 * 1024; // a longer line is truncated, with "show all"
const MAX_MARKS = 200; // per line

/**
 * The element of a line; `.update({line, top, view})`, with `top` in px. `view`: { who(worker) -> class or null, pattern, version,
 * current, linkTo(line) -> address, onLink(line)}: the current state of the view.
 */
export function lineNode() {
  const time = h('time');
  let lastUpdate = null; // {line, view} as last updated
  const at = h('a.log-at', { tabindex: '-1', on: { click: (event) => clicked(event) } }, time); // not in the tab order, because there are thousands
  const who = h('span.log-who');
  const text = h('span.log-text');
  const node = h('div.log-line', {}, at, who, text);
  let shown = {};

  function clicked(event) {
    if (event.metaKey || event.ctrlKey || !lastUpdate || lastUpdate.line.marker) return;
    event.preventDefault();
    lastUpdate.view.onLink(lastUpdate.line);
  }

  node.update = ({ line, top, view }) => {
    lastUpdate = { line, view };
    const moved = `translateY(${top}px)`;
    if (node.style.transform !== moved) node.style.transform = moved;
    const now = { text: line.marker ? markerText(line) : line.text, version: view.version, current: view.current === line };
    if (now.text === shown.text && now.version === shown.version && now.current === shown.current) return;
    shown = now;
    setClass(node, classOf(line, now.current));
    const hue = line.worker ? view.who(line.worker) : null;
    setClass(who, hue ? `log-who ${hue}` : 'log-who');
    setText(who, hue ? line.worker : '');
    setAttr(who, 'title', hue ? line.worker : null);
    if (line.marker) {
      setText(time, '');
      setAttr(at, 'href', null);
      setText(text, now.text);
      return;
    }
    setText(time, line.at ? formatClock(line.at) : '');
    setAttr(at, 'href', view.linkTo(line));
    setAttr(at, 'title', t('logs.link_title', { at: line.at ? formatMoment(line.at) : '–' }));
    fill(text, lineContent(line, view.pattern));
  };
  return node;
}

function classOf(line, current) {
  if (line.marker) return 'log-line is-marker';
  return `log-line${line.stream === 'err' ? ' is-err' : ''}${current ? ' is-current' : ''}`;
}

function lineContent(line, pattern) {
  const content = marked(pieces(line.text.slice(0, MAX_SHOWN_CHARS)), pattern);
  if (line.text.length <= MAX_SHOWN_CHARS) return content;
  const all = h('button.show-all', { type: 'button' }, t('logs.show_all', { size: formatBytes(line.text.length) }));
  all.addEventListener('click', () => showText(t('logs.whole_line', { n: line.text.length }), printable(line.text)));
  return [content, ' ', all];
}

/** The pieces of a line as nodes, with the matches of `pattern` (a global RegExp, or null) in <mark>. */
export function marked(parts, pattern) {
  const spans = pattern ? matches(parts.map((part) => part.text).join(''), pattern) : [];
  if (!spans.length && parts.length === 1 && !parts[0].style) return [parts[0].text];
  const nodes = [];
  let offset = 0;
  for (const { text, style } of parts) {
    let from = 0;
    for (const [begin, end] of spans) {
      const first = Math.max(0, begin - offset);
      const last = Math.min(text.length, end - offset);
      if (first >= last) continue;
      nodes.push(piece(text.slice(from, first), style), h('mark', {}, piece(text.slice(first, last), style)));
      from = last;
    }
    nodes.push(piece(text.slice(from), style));
    offset += text.length;
  }
  return nodes;
}

function piece(text, style) {
  if (!text) return null;
  return style ? h(`span.${style.replaceAll(' ', '.')}`, {}, text) : text;
}

function matches(text, pattern) {
  const found = [];
  pattern.lastIndex = 0;
  while (found.length < MAX_MARKS) {
    const match = pattern.exec(text);
    if (!match) break;
    if (match[0]) found.push([match.index, match.index + match[0].length]);
    else pattern.lastIndex += 1;
  }
  return found;
}

function markerText(line) {
  if (line.marker === 'said') return line.text;
  if (line.marker === 'attempt' || line.marker === 'rotated') return t(`logs.marker_${line.marker}`, { attempt: String(line.attempt) });
  if (line.marker === 'lost') {
    const values = { at: formatClock(line.at), d: line.until ? formatDuration(line.until - line.at) : '' };
    return t(line.until ? 'logs.marker_lost' : 'logs.marker_losing', values);
  }
  return t('logs.marker_gap', { size: formatBytes(line.bytes), n: formatNumber(line.bytes) });
}
