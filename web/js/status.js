/** Renders a state: glyph, word and a colour on the blue–orange axis, so that no information depends on colour alone. */

import { attrWriter, h, setAttr, setClass, setText, textWriter } from './dom.js';
import { ageS, formatDuration, formatSince, serverNowMs } from './format.js';
import { reasonOf } from './reasons.js';
import { t } from './i18n.js';

/** In the order of attention: states that need attention first. */
export const STATES = ['failed', 'unknown', 'backoff', 'starting', 'stopping', 'running', 'exited', 'stopped'];

export const GLYPHS = {
  running: '●',
  starting: '▷',
  stopping: '◁',
  stopped: '■',
  backoff: '↻',
  exited: '✓',
  failed: '✖',
  unknown: '?',
};

export const AGENT_GLYPHS = { connected: '●', suspect: '◐', unreachable: '✖', pending: '…', never: '○', ended: '■' };

/** The state that a word names, in the API or in this language; '' if there is none. */
export function stateNamed(word) {
  const low = word.toLowerCase();
  return STATES.find((state) => state === low || stateName(state).toLowerCase() === low) || '';
}

export function stateName(state) {
  return t(`state.${state}`);
}

/** A chip for a worker's state; `.update(worker)` refreshes it. */
export function stateChip() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span.word');
  const extra = h('span.extra');
  const chip = h('span.chip', {}, glyph, word, extra);
  const [writeGlyph, writeWord, writeExtra] = [glyph, word, extra].map(textWriter);
  const [writeClass, writeTitle] = ['class', 'title'].map((name) => attrWriter(chip, name));
  chip.update = (worker) => {
    writeClass(`chip is-${worker.state}${worker.suspect ? ' is-suspect' : ''}`); // a hanging worker is marked in every state
    writeGlyph(GLYPHS[worker.state] || '?');
    writeWord(stateName(worker.state));
    writeExtra(stateExtra(worker));
    writeTitle(stateTitle(worker));
  };
  return chip;
}

function stateExtra(worker) {
  if (worker.state === 'unknown') {
    const age = ageS(worker.last_seen);
    return age === null ? '' : formatDuration(age, 1);
  }
  if (worker.state === 'backoff') {
    const left = nextStartS(worker);
    return left === null ? '' : formatDuration(left, 1);
  }
  return '';
}

/** Seconds until the next automatic start; null when none is planned. */
export function nextStartS(worker) {
  if (typeof worker.next_start_at === 'number') return Math.max(0, worker.next_start_at - serverNowMs() / 1000);
  if (typeof worker.next_start_in_s !== 'number') return null;
  return Math.max(0, worker.next_start_in_s - (Date.now() - worker.receivedMs) / 1000);
}

function stateTitle(worker) {
  if (worker.suspect) return t('worker.suspect');
  if (worker.state !== 'unknown') return '';
  const last = worker.last_known_state ? stateName(worker.last_known_state) : t('never');
  return t('worker.unknown_title', { state: last, d: formatSince(worker.last_seen) });
}

export function agentChip() {
  const glyph = h('span.glyph', { 'aria-hidden': 'true' });
  const word = h('span.word');
  const chip = h('span.chip', {}, glyph, word);
  chip.update = (state) => {
    setClass(chip, `chip agent-${state}`);
    setText(glyph, AGENT_GLYPHS[state] || '?');
    setText(word, t(`agent.${state}`));
    setAttr(chip, 'title', t(`agent.${state}`));
  };
  return chip;
}

/** Whether the worker needs attention. */
export function isProblem(worker) {
  if (['failed', 'unknown', 'backoff'].includes(worker.state)) return true;
  return Boolean(worker.suspect || (worker.health && worker.health.status === 'failing'));
}

const SIGNALS = {
  1: 'SIGHUP', 2: 'SIGINT', 3: 'SIGQUIT', 4: 'SIGILL', 6: 'SIGABRT', 7: 'SIGBUS', 8: 'SIGFPE', 9: 'SIGKILL',
  11: 'SIGSEGV', 13: 'SIGPIPE', 14: 'SIGALRM', 15: 'SIGTERM', 24: 'SIGXCPU', 25: 'SIGXFSZ', 31: 'SIGSYS',
}; // prettier-ignore

export function signalName(number) {
  return SIGNALS[number] || t('exit.signal_number', { number: String(number) });
}

/** The end of an attempt as text. */
export function exitInWords(exit) {
  if (!exit) return t('exit.none');
  const text = endInWords(exit);
  if (!exit.left) return text;
  const names = (exit.left_names || []).join(', ');
  return t('exit.with_hint', { text, hint: t('exit.left', { n: exit.left, names: names || '?' }) });
}

function endInWords(exit) {
  const d = formatDuration(exit.duration_s || 0);
  if (exit.oom) return t('exit.oom', { d });
  if (exit.cause === 'time_limit' && !exit.line) return reasonOf(exit);
  const proof = proofOf(exit);
  if (exit.signal) {
    const killed = t('exit.signal', { number: String(exit.signal), name: signalName(exit.signal), d });
    return proof ? t('exit.with_hint', { text: killed, hint: proof }) : killed;
  }
  if (exit.code === 0) return t('exit.zero', { d });
  if (exit.code === null || exit.code === undefined) return reasonOf(exit) || t('exit.unclear');
  const known = { 126: 'exit.code_126', 127: 'exit.code_127', 137: 'exit.code_137', 143: 'exit.code_143' }[exit.code];
  const text = t('exit.code', { code: String(exit.code), d });
  if (proof) return t('exit.with_hint', { text, hint: proof });
  return known ? t('exit.with_hint', { text, hint: t(known) }) : text;
}

/** The cause of a failure with the line that proves it; '' if unknown. */
function proofOf(exit) {
  const also = (exit.reason_params && exit.reason_params.also) || [];
  const proof = also.find((one) => one && (one.code === 'exit.proof' || String(one.code).startsWith('failure.')));
  return proof ? reasonOf({ reason: proof }) : '';
}
