/**
 * Events as rows: the events of one batch operation are one expandable row. Pure.
 *
 * An event names its operation, or follows from a command that does: a worker that is stopped by an operation reports
 * "stopping" and "stopped" without naming it. Failures during an operation are separate rows.
 */

const EXPECTED = ['stopping', 'stopped', 'starting', 'running'];
const SETTLED = ['stopped', 'running'];

export function operationId(event) {
  return (event.evidence && event.evidence.operation_id) || '';
}

/** `events` oldest first; rows newest first: {key, event} or {key, operation, events, count, last, actor}, unfolded ones followed by their events. */
export function operationRows(events, open, mostUnfolded) {
  const rows = [];
  const operations = new Map();
  const acting = new Map(); // worker -> the operation that acts on it
  for (const event of events) {
    const operation = ownerOf(event, acting);
    if (!operation) {
      rows.push({ key: event.seq, event });
      continue;
    }
    let row = operations.get(operation);
    if (!row) {
      row = { key: `operation ${operation}`, operation, events: [], count: 0, last: event, actor: event.actor };
      operations.set(operation, row);
    }
    row.events.push(event);
    row.count += 1;
    row.last = event;
  }
  const all = [...rows, ...operations.values()].sort((a, b) => (b.event || b.last).seq - (a.event || a.last).seq);
  return all.flatMap((row) => (row.operation && open.has(row.operation) ? [row, ...unfolded(row, mostUnfolded)] : [row]));
}

function unfolded({ operation, events }, most) {
  return events.slice(-most).reverse().map((event) => ({ key: event.seq, event, operation }));
}

function ownerOf(event, acting) {
  const own = operationId(event);
  const worker = event.worker_id;
  if (event.kind === 'command') {
    if (event.after === 'accepted') acting.set(worker, own);
    return own;
  }
  if (own || event.kind !== 'worker_state') return own;
  const operation = acting.get(worker);
  if (!operation) return '';
  const expected = EXPECTED.includes(event.after);
  if (!expected || SETTLED.includes(event.after)) acting.delete(worker);
  return expected ? operation : '';
}
