/**
 * How serious a line of a log is, by what it says of itself: programs write levels in many ways, and a traceback in none.
 * Pure.
 */

/** What can be asked for: lines that are at least so serious. */
export const LEVELS = ['warning', 'error'];

const ERROR = 2;
const WARNING = 1;
const OTHER = 0; // it says that it is neither
const UNSAID = null;

const HEAD_CHARS = 200; // a level stands at the beginning
const RANKS = { fatal: ERROR, critical: ERROR, panic: ERROR, emerg: ERROR, alert: ERROR, error: ERROR, err: ERROR, severe: ERROR, warning: WARNING, warn: WARNING, notice: OTHER, info: OTHER, debug: OTHER, trace: OTHER };
const NAMES = Object.keys(RANKS).sort((a, b) => b.length - a.length).join('|');
const NAMED = new RegExp(`(?:^|[^A-Za-z])(${NAMES.toUpperCase()})(?![A-Za-z])`);
const KEYED = new RegExp(`(?:level|lvl|severity|levelname)["']?\\s{0,4}[=:]\\s{0,4}["']?(${NAMES})\\b`, 'i');
const FIRST = new RegExp(`^\\W{0,4}(${NAMES})\\s{0,4}[:\\]]`, 'i');
const GLOG = /^([FEWID])\d{4} \d\d:/;
const OF_GLOG = { F: ERROR, E: ERROR, W: WARNING, I: OTHER, D: OTHER };
const TRACEBACK = /^\s*Traceback \(most recent call last\)/;
const RAISED = /^(?:[A-Za-z_][\w.]{0,80}\.)?[A-Z]\w{0,60}(?:Error|Exception|Interrupt)\b(?::|$)/;
const DIED = /\b(?:CUDA error|CUDA out of memory|Segmentation fault|core dumped|NCCL (?:error|timeout))\b/;

function own(text) {
  const head = text.slice(0, HEAD_CHARS);
  if (TRACEBACK.test(head) || RAISED.test(head) || DIED.test(head)) return ERROR;
  const glog = GLOG.exec(head);
  if (glog) return OF_GLOG[glog[1]];
  const found = KEYED.exec(head) || NAMED.exec(head) || FIRST.exec(head);
  return found ? RANKS[found[1].toLowerCase()] : UNSAID;
}

/**
 * The lines (in their order, of several streams) that are at least as serious as `level`. What belongs to a serious line and is
 * written below it goes with it: the indented rest, and a traceback up to what was raised.
 */
export function atLeast(lines, level, textOf) {
  const least = level === 'error' ? ERROR : WARNING;
  const above = new Map(); // stream -> {rank, traceback} of the line above
  return lines.filter((line) => {
    if (line.marker) return false;
    const stream = `${line.worker} ${line.attempt}.${line.stream}`;
    if (line.rankOf !== line.text) {
      line.rank = own(textOf(line));
      line.rankOf = line.text;
    }
    const before = above.get(stream);
    let { rank } = line;
    let traceback = rank === ERROR && TRACEBACK.test(line.text.slice(0, HEAD_CHARS));
    if (before && rank === UNSAID && (/^[\s|}\])]/.test(line.text) || before.traceback)) {
      rank = before.rank;
      traceback = before.traceback && /^\s/.test(line.text);
    }
    above.set(stream, { rank: rank ?? OTHER, traceback });
    return rank !== UNSAID && rank >= least;
  });
}
