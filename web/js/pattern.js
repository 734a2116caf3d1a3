/** A regular expression entered by the user, for highlighting and filtering in the page. Pure. */

// A repetition of a repetition or of alternatives: matching could take exponential time and block the page.
const RUNS_AWAY = /\((?:[^()\\]|\\.)*(?:[*+}|])(?:[^()\\]|\\.)*\)\s*(?:[*+]|\{\d+,\d*\})|\\[1-9]/;

/** {pattern, error}: a global RegExp or null, and the reason if there is none ('' if nothing was typed). */
export function readPattern(text) {
  if (!text) return { pattern: null, error: '' };
  if (RUNS_AWAY.test(text)) return { pattern: null, error: 'logs.pattern_runs_away' };
  try {
    return { pattern: new RegExp(text, text === text.toLowerCase() ? 'gi' : 'g'), error: '' };
  } catch {
    return { pattern: null, error: 'logs.pattern_bad' };
  }
}
