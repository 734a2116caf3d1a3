"""Ownership of workers: assigned to an agent, withdrawn, adopted from an agent's report, dropped.

Owns the effects of such a change on the records of both sides. The caller has verified that no instance is left
(placement_service.py, leases.py), or an agent has proved it (agents/heartbeat.py).
"""

from __future__ import annotations

from procguard.fleet.model.records import AgentRecord, Withdrawal, WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import Reason, because

HIGHEST_GENERATION = (
    2**31
)  # the highest generation that a report may claim; real ones rise by one with each start or stop


def transfer(state: FleetState, tx: Transaction, worker: WorkerRecord, agent_id: str, host: str) -> None:
    """Assign the worker to another agent, under a new epoch, to be started there. Called by PlacementService.transfer
    only."""
    before = worker.agent_id
    state.give_to(tx, worker, agent_id, host)
    if before != agent_id:
        worker.attempts_before = worker.attempt
    worker.epoch, worker.generation, worker.desired = state.next_epoch(tx), worker.generation + 1, "running"
    worker.leased, worker.lease_bound_s = False, 0.0  # the worker has not run there yet
    worker.event_seq = (
        0  # sequence numbers start at the host's clock, and the new host's clock may be behind the old one's
    )
    worker.moving = None
    worker.last_state, worker.last_reason = "stopped", because("task.given", host=host)


def adopt(
    state: FleetState, tx: Transaction, worker: WorkerRecord, agent: AgentRecord, epoch: int, generation: int
) -> None:
    """Adopt a worker from an agent's report that is newer than the state, which has lost changes."""
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
    """Instruct the agent, now or when it reconnects, to drop a worker that it no longer owns."""
    known = worker.worker_id in state.workers_by_id
    gone = Withdrawal(worker.spec.command, worker.generation + 1, worker.epoch, worker.attempt if known else -1)
    tx.edit(agent).withdrawn = {**agent.withdrawn, worker.worker_id: gone}


def confirm(tx: Transaction, agent: AgentRecord, worker_id: str) -> None:
    """The agent has confirmed the withdrawal."""
    if worker_id in agent.withdrawn:
        tx.edit(agent).withdrawn = {key: one for key, one in agent.withdrawn.items() if key != worker_id}


def drop_worker(
    state: FleetState, tx: Transaction, worker: WorkerRecord, reason: Reason, *, forgotten: bool = False
) -> None:
    """Remove a worker from the fleet. `forgotten`: the agent may still have it and is instructed to drop it."""
    tx.remove(worker)
    agent = state.agents_by_id.get(worker.agent_id)
    if agent is not None and agent.kind == "launcher":
        drop_agent(tx, agent)
    elif agent is not None and forgotten:
        withdraw(state, tx, agent, worker)
    tx.event("worker_removed", worker_id=worker.worker_id, host=worker.host, reason=reason)


def drop_agent(tx: Transaction, agent: AgentRecord) -> None:
    tx.remove(agent)
