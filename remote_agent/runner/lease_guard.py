"""Fencing of one worker in its runner: whether a child may run now, and the deadline by which it must have ended.

A fenced worker runs only while it holds a lease of its current epoch. A child that was started before the worker was
fenced is bound from its first lease on, so that switching a worker to `fence` never stops it. Pure except for its
leases: no clock, no process; task/task_runner.py acts. Seconds are those of attempt.now_s, on CLOCK_BOOTTIME.
"""

from __future__ import annotations

from remote_agent.protocol.reasons import Reason, because
from remote_agent.runner.leases import WorkerLeases

NEVER = float("inf")


class LeaseGuard:
    def __init__(self) -> None:
        self.leases = WorkerLeases()
        self.lease_s: float | None = None  # None: kept, not fenced
        self.epoch = 0
        self._bound = True  # False: a child that was started unfenced is running, and no lease has arrived yet
        self._before_ns = 0  # end of the previous epoch's lease: its child may still be ending

    @property
    def holds(self) -> bool:
        """Whether the worker is fenced and its live processes are bound to a lease."""
        return self.lease_s is not None and self._bound

    def assign(self, lease_s: object, epoch: int, child_is_there: bool) -> None:
        """Apply the assignment. `child_is_there`: processes of the worker are alive."""
        was_fenced = self.lease_s is not None
        number = isinstance(lease_s, (int, float)) and not isinstance(lease_s, bool)
        self.lease_s = float(str(lease_s)) if number else None
        if self.lease_s is not None and not was_fenced:
            self._bound = not child_is_there
        if epoch > self.epoch:
            self._before_ns = self.leases.until(self.epoch)
            self.epoch = epoch
            self.leases.forget_below(epoch)

    def grant(self, epoch: int, until_ns: int) -> bool:
        """Accept a lease. Returns whether it ends later than the known one. Leases of lower epochs are ignored."""
        if epoch < self.epoch or not self.leases.grant(epoch, until_ns):
            return False
        if epoch == self.epoch:
            self._bound = True
        return True

    def give_back(self) -> None:
        """No process of the worker is left."""
        self.leases.give_back()
        self._before_ns = 0
        self._bound = True

    @property
    def until_ns(self) -> int:
        return self.leases.until(self.epoch)

    @property
    def keeps_until_ns(self) -> int:
        """The time until which running processes may continue. The former epoch's lease remains valid for them, but not
        for new ones."""
        return max(self.until_ns, self._before_ns)

    def open(self, now: float) -> bool:
        """Whether a child may be started."""
        return self.lease_s is None or self.until_ns / 1e9 > now

    def ended(self, now: float) -> bool:
        """Whether the lease has ended, so that no child may be running."""
        return self.holds and self.keeps_until_ns / 1e9 <= now

    def gone_at(self, grace_s: float) -> float:
        """The time by which the last process must be gone, however late the end of the lease was noticed."""
        return self.keeps_until_ns / 1e9 + grace_s

    def due(self, now: float, grace_s: float) -> float:
        """The time of the next check."""
        if not self.holds:
            return NEVER
        if not self.ended(now):
            return self.keeps_until_ns / 1e9
        gone_at = self.gone_at(grace_s)
        return gone_at if gone_at > now else NEVER

    def why_ended(self) -> Reason:
        return because("lease.ended", lease_s=self.lease_s or 0.0)
