/**
 * Selectors in the manager's syntax (procguard/fleet/workers/selectors.py): `state=failed|exited,host!=gpu03,!train-7`.
 * Here they only filter the display; the manager itself selects the workers of a command. Pure.
 */

const FIELDS = { state: 'state', host: 'host', group: 'group', agent: 'agent', desired: 'desired', id: 'worker_id', worker_id: 'worker_id' };
const MAGIC = /[*?[]/;

const STATES = ['failed', 'unknown', 'backoff', 'starting', 'stopping', 'running', 'exited', 'stopped'];
const KNOWN = { state: STATES, desired: ['running', 'stopped', 'removed'] };
const NAMES = ['state', 'host', 'group', 'agent', 'desired', 'id'];
const MAX_VALUES = 50; // values of a field that are used for completion

/** Whether a typed word is a condition rather than text: `host!=gpu03`, `!train-7`, `train-*`. */
export function isCondition(word) {
  return /^!?[\w./-]+!?=[^=,|][^=,]*$/.test(word) || /^![\w.*?[\]-]+$/.test(word) || /^[\w.-]*[*?[][\w.*?[\]!-]*$/.test(word);
}

/** The selectors and the words in the typed text: `state=failed,group=finetune crash`. `stateOf(word)`: the state that it names, or ''. */
export function readTyped(text, stateOf = () => '') {
  const conditions = [];
  const words = [];
  for (const word of text.replace(/\s*,\s*/g, ',').split(/\s+/).filter(Boolean)) {
    const parts = word.split(',').filter(Boolean);
    const several = parts.length > 1 && parts.every((part) => isCondition(part) || /^[\w.-]+$/.test(part));
    if (several || (parts.length === 1 && isCondition(parts[0]))) conditions.push(...parts);
    else if (stateOf(word)) conditions.push(`state=${stateOf(word)}`);
    else words.push(word.toLowerCase());
  }
  return { conditions, words };
}

/** A condition that matches nothing, because its value does not exist: `state=faild` -> {name, value}; null if there is none. */
export function impossible(conditions) {
  for (const { name, values } of conditions) {
    const wrong = KNOWN[name] && values.find((value) => typeof value === 'string' && !KNOWN[name].includes(value));
    if (wrong) return { name, value: wrong };
  }
  return null;
}

/** Completions of the condition that is being typed: [{text, label, hint}]. `workers()`: the workers whose values are suggested. */
export function completions(text, workers, countText) {
  const [, before, part] = /^(.*?)([^\s,]*)$/s.exec(text);
  const found = /^(!?)([\w./-]+)(!?=)(.*)$/.exec(part);
  if (!found) return part ? namesLike(part, before, workers()) : [];
  const [, not, name, sign, typed] = found;
  const [, others, value] = /^(.*\|)?([^|]*)$/.exec(typed);
  const counts = new Map((KNOWN[name] || []).map((one) => [one, 0]));
  const field = FIELDS[name];
  for (const worker of workers()) {
    const one = field ? worker[field] : (worker.labels || {})[name.replace(/^label\./, '')];
    if (one) counts.set(String(one), (counts.get(String(one)) || 0) + 1);
  }
  const low = value.toLowerCase();
  const fits = [...counts].filter(([one]) => one.toLowerCase().startsWith(low) && one !== value && !/[\s,|=!*?[\]]/.test(one));
  fits.sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1));
  return fits.slice(0, MAX_VALUES).map(([one, n]) => ({ text: `${before}${not}${name}${sign}${others || ''}${one}`, label: one, hint: countText(n) }));
}

function namesLike(part, before, workers) {
  const [, not, typed] = /^(!?)(.*)$/.exec(part);
  const low = typed.toLowerCase();
  const labels = new Set();
  for (const worker of workers) for (const name of Object.keys(worker.labels || {})) labels.add(name);
  const names = [...NAMES, ...[...labels].filter((name) => !NAMES.includes(name)).sort()];
  return names.filter((name) => name.toLowerCase().startsWith(low)).map((name) => ({ text: `${before}${not}${name}=`, label: `${name}=`, hint: '' }));
}

/** The conditions of a well-formed selector. */
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

/** Whether a worker matches: any of the conditions on each field, and no exclusion. */
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

/** A condition from a name and exact values; a character with a meaning in selectors becomes a wildcard. */
export function conditionText(name, values, excluded = false) {
  return `${name}${excluded ? '!=' : '='}${values.map((value) => value.replace(/[,|=!*?[\]]/g, '?')).join('|')}`;
}
