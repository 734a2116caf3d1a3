"""Workers: declaration, commands and removal.

Owns how a command changes the desired state of a worker. command_queue.py delivers commands; members of a gang are
commanded together (fleet/gangs/controller.py). A method marked "durable" returns when its change is on disk.
"""

from __future__ import annotations

from procguard.errors import Conflict, UsageError
from procguard.fleet.gangs.controller import Asked, Gangs
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord, settled
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import ownership
from procguard.fleet.workers.deployed import Declaration
from procguard.fleet.workers.deployment import Deployment
from procguard.fleet.workers.placement_service import PlacementService
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from procguard.json_types import Json
from remote_agent.protocol import messages, states


class WorkerService:
    def __init__(self, state: FleetState, leases: Leases, placement: PlacementService, gangs: Gangs) -> None:
        self._state = state
        self._leases = leases
        self._placement = placement
        self._gangs = gangs

    def deploy(self, request: Json, actor: str, now: Now) -> Declaration:
        """Declare hosts and their workers (deployment.py); durable."""
        return Deployment(self._state, self._leases, self._placement, self._gangs, request).carry_out(actor, now)

    def command(
        self, worker_id: str, verb: str, actor: str, now: Now, reason: str = "", origin: str = ""
    ) -> CommandRecord:
        """Accept a start, stop, restart or kill; durable. start and stop set the desired state; restart and kill apply
        to the attempt that is running now. `origin`: the source of the request, for the history."""
        with self._state.transaction(now, actor) as tx:
            return self.accept(tx, worker_id, verb, reason, origin=origin)

    def accept(
        self,
        tx: Transaction,
        worker_id: str,
        verb: str,
        reason: str = "",
        operation_id: str = "",
        origin: str = "",
    ) -> CommandRecord:
        """Like `command`, within the caller's transaction: an operation accepts a hundred commands in one commit."""
        worker = self._state.find(worker_id)
        if verb not in messages.VERBS:
            raise UsageError(
                f"unknown command {verb!r} for {worker_id}",
                f"use one of {', '.join(messages.VERBS)}",
                code="bad_command",
            )
        if worker.desired == "removed":
            raise Conflict(f"{worker_id} is being removed", "deploy it again to use it", code="being_removed")
        report = self._state.worker_status[worker_id].report
        state = report.state if report else worker.last_state
        attempt = report.attempt if report else worker.attempt
        tx.show("workers", worker_id)
        if worker.gang:
            asked = Asked(verb, attempt, reason, operation_id, origin)
            record = self._gangs.accept(tx, worker, asked)
            if verb in ("start", "restart") and self._state.stopped_by:
                self._state.hold_stopped(tx, NONE)
            self._state.command_event(tx, record)
            return record
        if verb == "restart" and (settled(state) or worker.desired == "stopped"):
            verb = "start"  # nothing is running: a restart becomes a start
        if verb in ("start", "stop", "kill"):
            desired: messages.Desired = "running" if verb == "start" else "stopped"
            tx.edit(worker).set_desired(desired, by=tx.actor, cause="operator", now=tx.now)
            worker.generation += 1
            if verb == "start":  # cancels the operator's move; after a stop the move completes with the worker stopped
                worker.moving = None
                if self._state.stopped_by:
                    self._state.hold_stopped(tx, NONE)  # an operator wants work to continue
            else:
                worker.stop_moving_on()
        record = self._state.command_queue.add(
            tx,
            worker,
            verb,  # type: ignore[arg-type]
            attempt,
            reason=reason,
            operation_id=operation_id,
            origin=origin,
        )
        if verb == "kill" and settled(state):
            self._state.command_queue.finish(tx, record, "done", because("command.stays_stopped", state=state))
        self._state.command_event(tx, record)
        return record

    def stop_all(self, tx: Transaction, reason: Reason) -> int:
        """Apply recovery.stop_all_on_failure: stop every worker, and declare new workers stopped until an operator
        starts one. Returns the number of workers that were stopped."""
        count = 0
        self._state.hold_stopped(tx, reason)
        for worker in self._state.workers_by_id.values():
            if worker.desired == "running":
                tx.edit(worker).set_desired("stopped", by="failure handler", cause="stop_all", now=tx.now)
                worker.generation += 1
                worker.stop_moving_on()
                count += 1
        tx.event("stop_all", reason=reason, actor="failure handler")
        return count

    def set_suspect(self, worker_id: str, evidence: Reason, now: Now) -> None:
        """Store the monitor's evidence that a worker looks hung; "" clears it. Raises alerts, stops nothing."""
        worker = self._state.workers_by_id[worker_id]
        self._state.worker_status[worker_id].suspect = evidence
        kind, reason = ("worker_suspect", evidence) if evidence else ("worker_clear", because("worker.clear"))
        with self._state.transaction(now, "monitor", wait="nothing") as tx:
            tx.event(kind, worker_id=worker_id, host=worker.host, reason=reason, source=worker.agent_id)
            tx.show("workers", worker_id)

    def acknowledge(self, worker_id: str, note: str, actor: str, now: Now) -> None:
        """Record that an operator has seen the problem; shown to everyone in the history and in `explain`."""
        worker = self._state.find(worker_id)
        with self._state.transaction(now, actor) as tx:
            tx.event(
                "acknowledged",
                worker_id=worker_id,
                host=worker.host,
                attempt=worker.attempt,
                reason=reason_of(note) or because("worker.acknowledged"),
            )

    # ------------------------------------------------------------------------------------------ leaving

    def forget(self, worker_id: str, actor: str, now: Now) -> None:
        """Remove a worker that is settled or whose agent is gone; durable."""
        with self._state.transaction(now, actor) as tx:
            self.take_out(tx, worker_id)

    def take_out(self, tx: Transaction, worker_id: str) -> None:
        """Like `forget`, within the caller's transaction: a purge removes a hundred workers in one commit."""
        worker = self._state.find(worker_id)
        view = self._state.worker(worker_id)
        if view["state"] not in (*states.SETTLED, states.UNKNOWN):
            raise Conflict(
                f"{worker_id} is {view['state']} on {worker.host}", f"stop it first: invoke stop {worker_id}"
            )
        outcome = self._leases.judge(worker_id, tx.now)
        if not outcome.gone and outcome.wait_s is not None:
            raise Conflict(
                f"{worker_id} cannot be forgotten yet: {outcome.reason}", f"try again in {outcome.wait_s:.0f} s"
            )
        ownership.drop_worker(self._state, tx, worker, because("worker.forgotten"), forgotten=True)
