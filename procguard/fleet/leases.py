"""Leases granted to fenced workers, and whether an instance is confirmed stopped.

Owns the manager's half of fencing (DESIGN §6); remote_agent owns the host's half. Pure: `now` is passed in, nothing
here is durable. Reads the fleet's tables, changes none.

Two copies of one job are worse than none. These rules ensure that there is at most one instance:

1. A lease is granted to one agent only while no other agent can hold a lease for that worker (`grants`).
2. A granted lease counts from the time of the manager's reply, even if the reply was lost. The host counts from the
   time at which it *sent* its heartbeat, which was earlier: the manager's lease always ends later than the host's.
3. After a start of the manager, every fenced worker counts as leased for one whole lease: all leases of the previous
   manager were granted earlier.
4. A lease is valid evidence only if the host has reported that it holds the instance by the lease
   (`WorkerRecord.leased`). An agent or runner of an older release, or one that has not received the fence yet, does
   not.
5. Without proof an instance is not considered stopped: in doubt, `is_confirmed_stopped` returns "".
"""

from __future__ import annotations

from typing import NamedTuple

from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import WorkerRecord, fenced, settled
from procguard.fleet.state import FleetState
from procguard.i18n.reasons import NONE, Reason, because
from remote_agent.protocol import messages, states

GONE_MARGIN_S = 2.0  # added to the end of lease and stop grace: delays of scheduling and of SIGKILL
CLOCK_DRIFT = 0.001  # drift between two clocks, each slewed by NTP by at most 500 ppm; relevant for leases of hours


class InstanceStatus(NamedTuple):
    """Whether an instance is confirmed stopped. `wait_s`: time until its lease has certainly ended; None: never.
    `by_time`: confirmed by the end of the lease, not by a report."""

    gone: bool
    reason: Reason
    wait_s: float | None = None
    by_time: bool = False


class _GrantedLease(NamedTuple):
    agent_id: str
    gone_at: float  # monotonic; with the stop grace and every margin


class Leases:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._granted: dict[str, _GrantedLease] = {}

    def restore(self, now: Now) -> None:
        """Called at the manager's start: the leases granted by its predecessor are unknown, so all possible ones are
        assumed. A predecessor that lost its database may have renewed leases for its grace period."""
        grace_s = self._state.leadership.grace_s
        for worker in self._state.workers_by_id.values():
            if fenced(worker):
                self._note(worker, now, grace_s + max(_longest_s(worker.spec), worker.lease_bound_s))

    # ------------------------------------------------------------------------------------------ granting

    def grants(self, agent_id: str, now: Now) -> list[messages.Lease]:
        """The leases for the reply to this agent's heartbeat. They are granted by this call."""
        found: list[messages.Lease] = []
        leadership = self._state.leadership
        if not leadership.may_renew():
            return found
        only_renew = not leadership.may_direct()
        for worker in self._state.workers_of(agent_id):
            if only_renew and not self._holds(worker, now):
                continue
            if fenced(worker) and self._may_run(worker) and not self._held_elsewhere(worker, now):
                self._note(worker, now, _longest_s(worker.spec))
                found.append(messages.Lease(worker.worker_id, worker.epoch, worker.spec.lease_s))
        return found

    def _holds(self, worker: WorkerRecord, now: Now) -> bool:
        """Whether this manager granted the worker's agent a lease that may still be valid."""
        granted = self._granted.get(worker.worker_id)
        return granted is not None and granted.agent_id == worker.agent_id and now.monotonic <= granted.gone_at

    def _may_run(self, worker: WorkerRecord) -> bool:
        """Whether the lease is renewed. A worker being stopped keeps its lease, so that it stops in the ordinary
        way."""
        if worker.assigned_state == "running":
            return True
        report = self._state.worker_status[worker.worker_id].report
        return report is not None and not settled(report.state)

    def _held_elsewhere(self, worker: WorkerRecord, now: Now) -> bool:
        granted = self._granted.get(worker.worker_id)
        return granted is not None and granted.agent_id != worker.agent_id and now.monotonic <= granted.gone_at

    def _note(self, worker: WorkerRecord, now: Now, longest_s: float) -> None:
        """Record a grant. Never shortens an earlier one, because the host may still use an earlier specification with a
        longer lease."""
        gone_at = now.monotonic + longest_s * (1 + CLOCK_DRIFT) + GONE_MARGIN_S
        before = self._granted.get(worker.worker_id)
        if before is not None:
            gone_at = max(gone_at, before.gone_at)
        self._granted[worker.worker_id] = _GrantedLease(worker.agent_id, gone_at)

    def ended(self, worker_id: str) -> None:
        """Forget the leases of an instance that is confirmed stopped and whose worker has moved to another agent."""
        self._granted.pop(worker_id, None)

    # ------------------------------------------------------------------------------------------ confirmation

    def is_confirmed_stopped(self, worker_id: str, now: Now) -> Reason:
        """The reason why no instance of this worker can be running anywhere; "" while that is not proven."""
        instance = self.judge(worker_id, now)
        return instance.reason if instance.gone else NONE

    def judge(self, worker_id: str, now: Now) -> InstanceStatus:
        """The status of the worker's instance: confirmed stopped with the reason, or why not and for how long."""
        worker = self._state.workers_by_id[worker_id]
        ended = self._reported_ended(worker)
        if ended:
            return InstanceStatus(True, ended)
        if not fenced(worker):
            return InstanceStatus(False, because("lease.keep", host=worker.host))
        if not worker.leased:
            return InstanceStatus(False, because("lease.unconfirmed", host=worker.host))
        granted = self._granted.get(worker_id)
        if granted is None:  # leased without a known grant, which proves nothing
            return InstanceStatus(False, because("lease.not_known", host=worker.host))
        wait_s = granted.gone_at - now.monotonic
        if wait_s >= 0:
            return InstanceStatus(False, because("lease.may_last", host=worker.host, wait_s=wait_s), wait_s)
        return InstanceStatus(True, because("lease.over", host=worker.host), by_time=True)

    def _reported_ended(self, worker: WorkerRecord) -> Reason:
        """The reason, if the connected agent's newest heartbeat reports that the instance of the current epoch has
        ended.

        `stopped` is final only if the desired state is stopped; otherwise the worker may be starting now. `exited` and
        `failed` are final for their generation: only a new generation starts such a worker again.
        """
        observed, here = self._state.agent_status.get(worker.agent_id), self._state.worker_status[worker.worker_id]
        if observed is None or observed.state != "connected":
            return NONE
        if here.plain:  # a launcher in any language, with one worker
            report = here.report
        else:  # reports of an earlier process of this agent do not count
            named = observed.heartbeat.workers if observed.heartbeat else ()
            report = next((one for one in named if one.worker_id == worker.worker_id), None)
        if report is None or report.epoch != worker.epoch or report.generation != worker.generation:
            return NONE
        final = states.SETTLED if worker.assigned_state != "running" else (states.EXITED, states.FAILED)
        return because("lease.reported", host=worker.host, state=report.state) if report.state in final else NONE


def _longest_s(spec: messages.WorkerSpec) -> float:
    """The longest time in seconds from a grant until the last process has been killed."""
    return spec.lease_s + spec.stop_grace_s


def replace_spec(worker: WorkerRecord, spec: messages.WorkerSpec) -> None:
    """Replace the worker's specification. Its host may use the previous one until it has received the new one: a longer
    lease or grace still counts, and an instance that was just fenced must be confirmed again."""
    if fenced(worker) and (worker.gang or spec.on_partition == "fence"):
        worker.lease_bound_s = max(worker.lease_bound_s, _longest_s(worker.spec))
    else:
        worker.leased, worker.lease_bound_s = False, 0.0
    worker.spec = spec
