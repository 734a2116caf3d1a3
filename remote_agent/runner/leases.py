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

# Goes on while the machine sleeps, and no clock setting changes it.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
TFD_NONBLOCK, TFD_CLOEXEC, TFD_TIMER_ABSTIME = 0o4000, 0o2000000, 1
LONGEST_LEASE_S = 366 * 86400.0
AWAITS_LEASE = because("lease.awaits")


def boottime_ns() -> int:
    return time.clock_gettime_ns(_CLOCK)


def until_ns(lease_s: object, asked_ns: int) -> int:
    """When a lease of `lease_s` ends that answers what was sent at `asked_ns`; 0 where it is none."""
    if isinstance(lease_s, bool) or not isinstance(lease_s, (int, float)) or not lease_s > 0 or asked_ns <= 0:
        return 0
    return asked_ns + int(min(float(lease_s), LONGEST_LEASE_S) * 1e9)


class WorkerLeases:
    """Those of the current epoch, and of higher ones that were granted before the assignment came that names them."""

    def __init__(self) -> None:
        self._until_ns: dict[int, int] = {}

    def grant(self, epoch: int, until: int) -> bool:
        """Whether this is news: later than what was known."""
        if until <= self._until_ns.get(epoch, 0):
            return False
        self._until_ns[epoch] = until
        return True

    def until(self, epoch: int) -> int:
        """0: none was granted."""
        return self._until_ns.get(epoch, 0)

    def forget_below(self, epoch: int) -> None:
        """A higher epoch is known: what was granted before it counts no more."""
        self._until_ns = {known: until for known, until in self._until_ns.items() if known >= epoch}

    def give_back(self) -> None:
        """Nothing runs any more. What follows needs a lease that was asked for after that: the manager may have heard
        of the end and given the right to another host."""
        self._until_ns.clear()


class Alarm:
    """A descriptor that is readable from a moment on. poll()'s own timeout stands still while the machine sleeps; this
    ends the wait at once when it wakes up. `fileno()` is -1 where the kernel has none: then poll must do."""

    def __init__(self) -> None:
        self._at_ns = 0
        self._fd = -2  # not made yet: most workers never need one

    def fileno(self) -> int:
        return self._fd if self._at_ns and self._fd >= 0 else -1

    def set(self, at_ns: int) -> None:
        """0: never. The descriptor stays readable until it is set to another moment."""
        if at_ns == self._at_ns:
            return
        if self._fd == -2:
            self._fd = self._make()
        self._at_ns = at_ns
        if self._fd < 0:
            return
        # struct itimerspec: interval, then the moment; each seconds and nanoseconds.
        value = (libc.c_long * 4)(0, 0, at_ns // 1_000_000_000, at_ns % 1_000_000_000)
        processes.libc().timerfd_settime(self._fd, TFD_TIMER_ABSTIME, value, None)

    def _make(self) -> int:
        try:
            return int(processes.libc().timerfd_create(_CLOCK, TFD_NONBLOCK | TFD_CLOEXEC))
        except AttributeError:
            return -1
