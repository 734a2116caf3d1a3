"""Ownership of workers: assigned to an agent, withdrawn, adopted from an agent's report, dropped.

Owns the effects of such a change on the records of both sides. The caller has verified that no instance is left
(placement_service.py, leases.py), or an agent has proved it (agents/heartbeat.py).
"""

from __future__ import annotations

from procguard.fleet.model.records import AgentRecord, Withdrawal, WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import Reason, because

HIGHEST_GENERATION = 2**31  # that a report may raise a worker's to: it rises by one with each start or stop


def transfer(state: FleetState, tx: Transaction, worker: WorkerRecord, agent_id: str, host: str) -> None:
    """PlacementService.transfer's half, which alone calls it: under a new epoch, to be started there."""
    before = worker.agent_id
    state.give_to(tx, worker, agent_id, host)
    if before != agent_id:
        worker.attempts_before = worker.attempt
    worker.epoch, worker.generation, worker.desired = state.next_epoch(tx), worker.generation + 1, "running"
    worker.leased, worker.lease_bound_s = False, 0.0  # it has not run there yet
    worker.event_seq = 0  # the new host's clock, from which its numbers begin, may be behind the old one's
    worker.moving = None
    worker.last_state, worker.last_reason = "stopped", because("task.given", host=host)


def adopt(
    state: FleetState, tx: Transaction, worker: WorkerRecord, agent: AgentRecord, epoch: int, generation: int
) -> None:
    """What an agent has of a worker is newer than what the state says: the state lost it. The agent is right."""
    state.rise_above(tx, epoch)
    tx.edit(worker)
    if worker.agent_id != agent.agent_id:
        before = state.agents_by_id.get(worker.agent_id)
        if before is not None:
            withdraw(state, tx, before, worker)
        state.give_to(tx, worker, agent.agent_id, agent.host)
        confirm(tx, agent, worker.worker_id)
        worker.event_seq = 0
    worker.epoch = epoch
    if generation <= HIGHEST_GENERATION:
        worker.generation = max(worker.generation, generation)


def withdraw(state: FleetState, tx: Transaction, agent: AgentRecord, worker: WorkerRecord) -> None:
    """Tell the agent, now or when it returns, to drop a worker that is no longer its own."""
    known = worker.worker_id in state.workers_by_id
    gone = Withdrawal(worker.spec.command, worker.generation + 1, worker.epoch, worker.attempt if known else -1)
    tx.edit(agent).withdrawn = {**agent.withdrawn, worker.worker_id: gone}


def confirm(tx: Transaction, agent: AgentRecord, worker_id: str) -> None:
    """Nothing of it is to be dropped there any more."""
    if worker_id in agent.withdrawn:
        tx.edit(agent).withdrawn = {key: one for key, one in agent.withdrawn.items() if key != worker_id}


def drop_worker(
    state: FleetState, tx: Transaction, worker: WorkerRecord, reason: Reason, *, forgotten: bool = False
) -> None:
    """Out of the fleet. `forgotten`: its agent may have it still, and is told to drop it."""
    tx.remove(worker)
    agent = state.agents_by_id.get(worker.agent_id)
    if agent is not None and agent.kind == "launcher":
        drop_agent(tx, agent)
    elif agent is not None and forgotten:
        withdraw(state, tx, agent, worker)
    tx.event("worker_removed", worker_id=worker.worker_id, host=worker.host, reason=reason)


def drop_agent(tx: Transaction, agent: AgentRecord) -> None:
    tx.remove(agent)
