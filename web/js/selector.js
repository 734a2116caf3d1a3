/**
 * Selectors as the manager reads them (procguard/fleet/workers/selectors.py): `state=failed|exited,host!=gpu03,!train-7`.
 * Here they narrow what is shown; what is acted on is always selected by the manager itself. Pure.
 */

const FIELDS = { state: 'state', host: 'host', group: 'group', agent: 'agent', desired: 'desired', id: 'worker_id', worker_id: 'worker_id' };
const MAGIC = /[*?[]/;

/** Whether a typed word is a condition and no mere text: `host!=gpu03`, `!train-7`. */
export function isCondition(word) {
  return /^!?[\w./-]+!?=[^=,|][^=,]*$/.test(word) || /^![\w.*?[\]-]+$/.test(word);
}

/** The conditions of a selector that is known to be well formed. */
export function parseSelector(text) {
  return text.split(',').map((part) => part.trim()).filter(Boolean).map(condition);
}

function condition(part) {
  const found = /^(!?)([^=!]*)(!?=)(.*)$/.exec(part);
  const name = found ? found[2].trim().replace(/^label\./, '') : 'id';
  const excluded = found ? found[1] === '!' || found[3] === '!=' : part.startsWith('!');
  const values = (found ? found[4] : part.replace(/^!/, '')).split('|').map((value) => value.trim());
  return { name, excluded, values: values.map((value) => (MAGIC.test(value) ? glob(value) : value)) };
}

function glob(text) {
  const source = text.replace(/\[(!?)([^\]]+)\]|[\\^$.|+(){}[\]]|\*|\?/g, (whole, not, inside) => {
    if (inside) return `[${not ? '^' : ''}${inside.replaceAll('\\', '\\\\')}]`;
    return { '*': '.*', '?': '.' }[whole] || `\\${whole}`;
  });
  return new RegExp(`^(?:${source})$`, 's');
}

/** Conditions on one field: any of them; what is excluded is excluded. */
export function selectorMatches(conditions, worker) {
  const wanted = new Map();
  for (const one of conditions) {
    const held = holds(one, worker);
    if (one.excluded && held) return false;
    const field = FIELDS[one.name] || `label.${one.name}`;
    if (!one.excluded) wanted.set(field, wanted.get(field) || held);
  }
  return [...wanted.values()].every(Boolean);
}

function holds({ name, values }, worker) {
  const value = FIELDS[name] ? worker[FIELDS[name]] : (worker.labels || {})[name];
  if (value === null || value === undefined || value === '') return false;
  return values.some((one) => (one instanceof RegExp ? one.test(String(value)) : one === String(value)));
}

/** One condition from a name and exact values; a character that selectors use themselves becomes "any one". */
export function conditionText(name, values, excluded = false) {
  return `${name}${excluded ? '!=' : '='}${values.map((value) => value.replace(/[,|=!*?[\]]/g, '?')).join('|')}`;
}
