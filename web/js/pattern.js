/** A regular expression that a person types, for highlighting and filtering in the page. Pure. */

// A repeat of something that repeats, or that offers a choice: matching could take exponential time and block the page.
const RUNS_AWAY = /\((?:[^()\\]|\\.)*(?:[*+}|])(?:[^()\\]|\\.)*\)\s*(?:[*+]|\{\d+,\d*\})|\\[1-9]/;

/** {pattern, error}: a global RegExp or null, and why there is none ('' where nothing was typed). */
export function readPattern(text) {
  if (!text) return { pattern: null, error: '' };
  if (RUNS_AWAY.test(text)) return { pattern: null, error: 'logs.pattern_runs_away' };
  try {
    return { pattern: new RegExp(text, text === text.toLowerCase() ? 'gi' : 'g'), error: '' };
  } catch {
    return { pattern: null, error: 'logs.pattern_bad' };
  }
}
