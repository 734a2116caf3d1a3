"""The leases of one fenced worker: until when it may run under which epoch, on a clock that also runs during sleep.

A lease is the manager's guarantee that the worker runs nowhere else. It starts when the acknowledged heartbeat was
sent, on CLOCK_BOOTTIME, and expires without any message. Leases are never revoked: of two for one epoch the later one
is valid, in any order of arrival. A lease is invalid after a reboot, when the clock starts again. Used by agent and
runner; knows no process and no socket.
"""

from __future__ import annotations

import time

from remote_agent.protocol.reasons import because
from remote_agent.system import libc, processes

# Continues while the machine sleeps and is not affected by clock changes.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
LONGEST_LEASE_S = 366 * 86400.0
AWAITS_LEASE = because("lease.awaits")


def boottime_ns() -> int:
    return time.clock_gettime_ns(_CLOCK)


def until_ns(lease_s: object, asked_ns: int) -> int:
    """The end of a lease of `lease_s` for a request sent at `asked_ns`; 0 if there is no lease."""
    if isinstance(lease_s, bool) or not isinstance(lease_s, (int, float)) or not lease_s > 0 or asked_ns <= 0:
        return 0
    return asked_ns + int(min(float(lease_s), LONGEST_LEASE_S) * 1e9)


class WorkerLeases:
    """Leases of the current epoch, and of higher ones that arrived before their assignment."""

    def __init__(self) -> None:
        self._until_ns: dict[int, int] = {}

    def grant(self, epoch: int, until: int) -> bool:
        """Store a lease. Returns whether it ends later than the known one."""
        if until <= self._until_ns.get(epoch, 0):
            return False
        self._until_ns[epoch] = until
        return True

    def until(self, epoch: int) -> int:
        """The end of the lease; 0 if none was granted."""
        return self._until_ns.get(epoch, 0)

    def forget_below(self, epoch: int) -> None:
        """Discard leases below this epoch."""
        self._until_ns = {known: until for known, until in self._until_ns.items() if known >= epoch}

    def give_back(self) -> None:
        """Return the lease after the last process has ended. The next start needs a lease that was requested later,
        because the manager may have assigned the worker to another host meanwhile."""
        self._until_ns.clear()


class Alarm:
    """A descriptor that becomes readable at a given time. poll()'s own timeout pauses while the machine sleeps,
    whereas this ends the wait at wake-up. `fileno()` is -1 if the kernel lacks it; poll's timeout then applies."""

    def __init__(self) -> None:
        self._at_ns = 0
        self._fd = -2  # created on demand: most workers never need it

    def fileno(self) -> int:
        return self._fd if self._at_ns and self._fd >= 0 else -1

    def set(self, at_ns: int) -> None:
        """Set the time; 0: never. The descriptor stays readable until another time is set."""
        if at_ns == self._at_ns:
            return
        if self._fd == -2:
            self._fd = self._make()
        self._at_ns = at_ns
        if self._fd < 0:
            return
        # struct itimerspec: interval, then time; each in seconds and nanoseconds.
        value = (libc.c_long * 4)(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        processes.libc().timerfd_settime(self._fd, TFD_TIMER_ABSTIME, value, None)

    def _make(self) -> int:
        try:
            return int(processes.libc().timerfd_create(_CLOCK, TFD_NONBLOCK | TFD_CLOEXEC))
        except AttributeError:
            return -1
