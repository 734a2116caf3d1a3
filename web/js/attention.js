/**
 * Problems grouped by cause: hanging workers first, then silent hosts, then workers that failed, are unknown, or wait
 * for their next start. A cause is a code; a code of a newer manager forms a group of its own, with its own text. Pure.
 */

import { compareNames } from './format.js';
import { hasText, t } from './i18n.js';
import { reasonOf } from './reasons.js';
import { STATES } from './status.js';

const PROOF = 'exit.proof'; // a reason with a cause and the line that proves it
const HANG = 'hang';
const HEALTH = 'health';

/** {key, title}: why a worker needs attention. */
export function causeOf(worker) {
  if (worker.suspect) return { key: HANG, title: t('cause.hang') };
  if (worker.health && worker.health.status === 'failing' && worker.state === 'running') return { key: HEALTH, title: t('cause.health') };
  const reason = worker.reason && worker.reason.code ? worker.reason : null;
  if (!reason) return { key: `state ${worker.state}`, title: reasonOf(worker) || t(`state.${worker.state}`) };
  const all = [reason, ...(Array.isArray(reason.params.also) ? reason.params.also : [])];
  const proof = all.find((one) => one && one.code === PROOF && one.params && one.params.cause);
  if (proof) {
    const { cause } = proof.params;
    return { key: `cause ${cause.code || cause}`, title: reasonOf({ reason: cause.code ? cause : String(cause) }) };
  }
  const { code, params } = reason;
  if (code === 'exit.code') return { key: `${code} ${params.code}`, title: t('cause.exit_code', { code: String(params.code) }) };
  if (code === 'exit.signal') return { key: `${code} ${params.signal}`, title: t('cause.signal', { signal: String(params.signal), name: String(params.name || '') }) };
  const known = `cause.${code.replace('exit.', '')}`;
  return { key: code, title: hasText(known) ? t(known) : reasonOf({ reason: { code, params: { ...params, also: [] } } }) };
}

const RANK = { [HANG]: -2, [HEALTH]: -1 };

function rankOf(key, worker) {
  return RANK[key] ?? STATES.indexOf(worker.state);
}

/** Workers as groups {key, title, state, workers}, the most urgent first, the largest first among equals. */
export function byCause(workers) {
  const groups = new Map();
  for (const worker of workers) {
    const { key, title } = causeOf(worker);
    const own = RANK[key] === undefined ? `${worker.state} ${key}` : key;
    if (!groups.has(own)) groups.set(own, { key: own, title, rank: rankOf(key, worker), workers: [] });
    groups.get(own).workers.push(worker);
  }
  for (const group of groups.values()) group.workers.sort((a, b) => compareNames(a.worker_id, b.worker_id));
  return [...groups.values()].sort((a, b) => a.rank - b.rank || b.workers.length - a.workers.length || compareNames(a.key, b.key));
}
