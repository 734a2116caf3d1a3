"""The leases of one worker in its agent: what the manager granted, and what may be started under it.

The runner enforces the lease (runner/lease_guard.py); this module takes the manager's replies, passes them on and
reports the status. Knows no process; only the agent's main loop uses it.
"""

from __future__ import annotations

from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import Assignment, Lease
from remote_agent.protocol.states import SETTLED, STOPPED
from remote_agent.runner.leases import WorkerLeases, boottime_ns, until_ns
from remote_agent.system.processes import boot_id


class LeaseHolder:
    def __init__(self) -> None:
        self._leases = WorkerLeases()
        self._ended: Any = None  # (attempt, event_seq) at which all processes had last ended
        self._ended_ns = 0  # when that became known (CLOCK_BOOTTIME)

    def take(self, lease: Lease, asked_ns: int) -> int:
        """Apply a granted lease. Returns its end (CLOCK_BOOTTIME, ns) if that has changed, else 0.

        `asked_ns`: when the request was sent. A lease requested before the process's end was known is ignored, since
        the manager may assign the worker elsewhere once it learns of that end.
        """
        until = until_ns(lease.lease_s, asked_ns)
        return until if asked_ns > self._ended_ns and self._leases.grant(lease.epoch, until) else 0

    def heed(self, status: dict[str, Any]) -> None:
        """Apply the status from state.json or the runner, by which a newly started agent learns of a lease that a
        runner of this boot holds. Once all processes have ended, no lease is held."""
        state = status.get("state") or STOPPED
        if state not in SETTLED or status.get("in_hand"):
            if status.get("lease_epoch") and status.get("boot_id") == boot_id():
                self._leases.grant(int(status.get("lease_epoch") or 0), int(status.get("lease_until_ns") or 0))
            return
        ended = (status.get("attempt"), status.get("event_seq"))
        if ended != self._ended:
            self._ended, self._ended_ns = ended, boottime_ns()
            self._leases.give_back()

    def now(self, assignment: Optional[Assignment]) -> Optional[tuple[int, int]]:
        """(epoch, until_ns) of the lease under which it may run now; None if there is none."""
        if assignment is None or assignment.lease_s is None:
            return None
        until = self._leases.until(assignment.epoch)
        return (assignment.epoch, until) if until > boottime_ns() else None

    def may_start(self, assignment: Optional[Assignment]) -> bool:
        """Whether leases permit a start."""
        return assignment is None or assignment.lease_s is None or self.now(assignment) is not None

    def left_s(self, assignment: Optional[Assignment], status: dict[str, Any], nothing_runs: bool) -> Optional[float]:
        """Remaining seconds, for the report. None: not fenced, or not in effect yet, because a process that was started
        unfenced is running and no lease has reached its runner."""
        if assignment is None or assignment.lease_s is None or not (nothing_runs or status.get("fenced")):
            return None
        held = self.now(assignment)
        return round((held[1] - boottime_ns()) / 1e9, 3) if held else 0.0
