/** Remembered choices of this browser. Storage may be off (private mode, policy): then nothing is remembered. */

const PREFIX = 'procguard.';

export function recall(name) {
  try {
    return localStorage.getItem(PREFIX + name);
  } catch {
    return null;
  }
}

export function remember(name, value) {
  try {
    if (value === null) localStorage.removeItem(PREFIX + name);
    else localStorage.setItem(PREFIX + name, value);
  } catch {
    /* not remembered */
  }
}
