"""Workers that may have to move: those of lost hosts, and those that failed.

Carries out the decisions of `recovery.decide_task` through `PlacementService.reassign`, which alone reassigns a
worker and verifies that no instance is left. Owns the open cases; the next manager rebuilds them from the state.
Everything that counts (moves, withdrawn assignments, epochs) is durable with the records.

Worker, epoch and withdrawal are one commit, for a manager that dies during a reassignment. Before the commit the
worker is where it was; after it, the spare finds the worker among its assignments, and the old host receives the
removal.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from procguard.errors import Conflict
from procguard.fleet.fleet import Fleet
from procguard.fleet.leases import InstanceStatus
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import RecoveryStatus, WorkerRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery import policy as recovery
from procguard.fleet.recovery.policy import RecoveryPolicy, TaskCase, TaskDecision
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import Reason, because, of_message
from remote_agent.protocol import states

NO_SPARE_AGAIN_S = 2.0  # interval of retries: a host may return, a cordon be lifted, a GPU become free
NOT_WANTED_AGAIN_S = 1.0
NEVER_S = 1e9
ACTOR = "failure handler"
ALERTS = {"gave_up": "task_gave_up", "no_spare": "no_spare"}

Cause = Literal["failed", "host_lost"]
AgentComing = Callable[[str, Now], float]


class Reassignment:
    def __init__(self, fleet: Fleet, settings: FleetSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._cases: dict[str, Cause] = {}
        self._due: dict[str, float] = {}  # monotonic time of the next check of a case
        self._healthy_since: dict[str, tuple[int, float]] = {}  # of moved workers: (attempt, running since)
        self._moved: set[str] = set()
        if settings.task_reassignment:
            for worker in fleet.state.workers_by_id.values():
                if worker.last_state == states.FAILED and worker.desired == "running":
                    self.failed(worker.worker_id)
                if worker.moves:
                    self._moved.add(worker.worker_id)

    # ------------------------------------------------------------------------------------------ cases

    def failed(self, worker_id: str) -> None:
        """Open a case, except for a member of a gang: a failed gang requires an operator, and moving one member would
        not help."""
        worker = self._fleet.state.workers_by_id.get(worker_id)
        if worker is not None and not worker.gang:
            self._open(worker_id, "failed")

    def host_lost(self, agent_id: str) -> None:
        for worker in self._fleet.state.workers_of(agent_id):
            if self._cases.get(worker.worker_id) != "failed":
                self._open(worker.worker_id, "host_lost")

    def _open(self, worker_id: str, cause: Cause) -> None:
        if self._settings.task_reassignment:
            self._cases[worker_id] = cause
            self._due[worker_id] = 0.0

    def due_in_s(self, now: Now) -> float:
        """Seconds until the next check of a case."""
        return max(0.0, min(self._due.values(), default=now.monotonic + NEVER_S) - now.monotonic)

    # ------------------------------------------------------------------------------------------ rounds

    def tick(self, policy: RecoveryPolicy, agent_coming_s: AgentComing, now: Now) -> None:
        for worker_id, cause in list(self._cases.items()):
            worker = self._fleet.state.workers_by_id.get(worker_id)
            if worker is None:
                self._close(worker_id)
            elif self._is_due(worker, cause, now):
                self._carry_out(worker, self._decide(worker, cause, policy, agent_coming_s, now), cause, now)
        self._give_moves_back(now)

    def _is_due(self, worker: WorkerRecord, cause: Cause, now: Now) -> bool:
        """Whether a case is due, by time or because it is over: a worker that is back or stopped must not wait."""
        status = self._fleet.state.worker_status[worker.worker_id].recovery_status
        over = self._well(worker, cause) or (status is not None and worker.desired != "running")
        return over or now.monotonic >= self._due[worker.worker_id]

    def _decide(
        self, worker: WorkerRecord, cause: Cause, policy: RecoveryPolicy, agent_coming_s: AgentComing, now: Now
    ) -> TaskDecision:
        case = TaskCase(
            cause=cause,
            wanted=worker.desired == "running",
            well=self._well(worker, cause),
            by_hand=self._fleet.state.agent(worker.agent_id).kind == "launcher",
            instance=self._instance(worker, now),
            moves=worker.moves,
            agent_coming_s=agent_coming_s(worker.agent_id, now) if cause == "host_lost" else 0.0,
        )
        return recovery.decide_task(case, policy)

    def _instance(self, worker: WorkerRecord, now: Now) -> InstanceStatus:
        """Whether the instance is stopped. A member of a gang is moved only while its gang is held, so that its new
        host does not start it alone."""
        if worker.gang and not worker.held:
            return InstanceStatus(False, because("lease.gang_runs"), wait_s=0.5)
        return self._fleet.leases.judge(worker.worker_id, now)

    def _well(self, worker: WorkerRecord, cause: Cause) -> bool:
        """Whether its own host runs it again, because the host is back or the worker was restarted."""
        if cause == "host_lost":
            return self._fleet.state.agent_status[worker.agent_id].state == "connected"
        report = self._fleet.state.worker_status[worker.worker_id].report
        if report is None or report.generation != worker.generation:
            return worker.last_state != states.FAILED
        return report.state != states.FAILED

    def _carry_out(self, worker: WorkerRecord, decision: TaskDecision, cause: Cause, now: Now) -> None:
        if decision.action == "drop":
            if cause == "failed" or self._well(worker, cause):
                self._close(worker.worker_id)
            else:  # stopped by an operator while its host is lost: it may be started again
                self._due[worker.worker_id] = now.monotonic + NOT_WANTED_AGAIN_S
            self._emit_event(worker, None, now)
        elif decision.action == "reassign":
            self._reassign(worker, decision.reason, now)
        else:
            self._due[worker.worker_id] = now.monotonic + (decision.delay_s if decision.action == "wait" else 1.0)
            self._emit_event(worker, RecoveryStatus(decision.state, decision.reason), now)

    def _reassign(self, worker: WorkerRecord, why: Reason, now: Now) -> None:
        found = self._fleet.placement.choose(worker, now)
        self._due[worker.worker_id] = now.monotonic + NO_SPARE_AGAIN_S
        if not found.agent_id:
            self._emit_event(worker, RecoveryStatus("no_spare", why.then(found.reason)), now)
            return
        try:
            with self._later(now) as tx:
                reason = why.then(found.reason)
                self._fleet.placement.reassign(tx, worker, found.agent_id, reason, actor=ACTOR, counts=True)
        except Conflict as exc:  # the situation changed after the decision: the next check decides again
            self._emit_event(worker, RecoveryStatus("waiting", of_message(exc.message)), now)
            return
        self._close(worker.worker_id)
        self._moved.add(worker.worker_id)

    def _close(self, worker_id: str) -> None:
        self._cases.pop(worker_id, None)
        self._due.pop(worker_id, None)

    def _emit_event(self, worker: WorkerRecord, status: RecoveryStatus | None, now: Now) -> None:
        """Show the decision; emit an event only if its state has changed, not every second."""
        observed = self._fleet.state.worker_status[worker.worker_id]
        before, observed.recovery_status = observed.recovery_status, status
        if before == status:
            return
        with self._later(now) as tx:
            tx.show("workers", worker.worker_id)
            if status is not None and (before is None or before.state != status.state):
                tx.event(
                    ALERTS.get(status.state, "task_waiting"),
                    worker_id=worker.worker_id,
                    host=worker.host,
                    reason=status.reason,
                    cause="reassigned",
                )

    def _later(self, now: Now) -> Transaction:
        return self._fleet.state.transaction(now, ACTOR, wait="nothing")

    # ------------------------------------------------------------------------------------------ health

    def _give_moves_back(self, now: Now) -> None:
        """Reset the count of moves of a worker that this manager has observed running for healthy_after_s."""
        for worker_id in list(self._moved):
            worker = self._fleet.state.workers_by_id.get(worker_id)
            if worker is None or not worker.moves:
                self._moved.discard(worker_id)
                self._healthy_since.pop(worker_id, None)
                continue
            report = self._fleet.state.worker_status[worker_id].report
            connected = self._fleet.state.agent_status[worker.agent_id].state == "connected"
            if report is None or report.state != states.RUNNING or not connected:
                self._healthy_since.pop(worker_id, None)
                continue
            attempt, since = self._healthy_since.get(worker_id, (-1, 0.0))
            if attempt != report.attempt:
                self._healthy_since[worker_id] = (report.attempt, now.monotonic)
            elif now.monotonic - since >= worker.spec.restart.healthy_after_s:
                with self._later(now) as tx:
                    tx.edit(worker).moves = 0
