/**
 * The level of a line of a log, derived from its text: programs write levels in many ways, and tracebacks have none.
 * Pure.
 */

/** The available minimum levels. */
export const LEVELS = ['warning', 'error'];

const ERROR = 2;
const WARNING = 1;
const OTHER = 0; // a lower level
const UNSAID = null;

const HEAD_CHARS = 200; // levels are at the beginning of a line
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
 * The lines (in order, of several streams) with at least `level`, including the lines that belong to one of them and follow
 * it: indented lines, and a traceback up to its exception.
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
