/** Stored settings of this browser. If storage is disabled (private mode, policy), nothing is stored. */

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
    /* not stored */
  }
}
