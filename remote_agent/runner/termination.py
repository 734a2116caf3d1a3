"""Ends a process tree in steps: stop signal, grace period, SIGKILL, repeated until empty. Owns no clock, no state.

`find` returns the live members, `is_empty` reports that none can be left, `kill_group` makes the kernel kill all
members atomically. The caller invokes `step(now)` at `due` and after a child was reaped, until it returns true.
"""

from __future__ import annotations

from remote_agent.system import processes
from remote_agent.system.processes import Identity
from remote_agent.system.signals import signal

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Callable

FIRST_POLL_S = 0.01
LONGEST_POLL_INTERVAL_S = 0.5
UNKILLABLE_AFTER_S = 5.0


class ProcessTreeTerminator:
    def __init__(
        self,
        find: Callable[[], list[Identity]],
        is_empty: Callable[[], bool],
        kill_group: Callable[[], None],
        to_ask: Callable[[], list[Identity]] | None = None,
    ) -> None:
        """`to_ask`: returns the processes that receive the stop signal; by default all that `find` returns."""
        self._find = find
        self._to_ask = to_ask or find
        self._is_empty = is_empty
        self._kill_group = kill_group
        self.kill_at: float | None = None
        self.due: float | None = None
        self.active = False
        self.reached = 0  # processes that received the stop signal
        self.killed = False  # SIGKILL was needed or requested
        self._pause_s = FIRST_POLL_S
        self._kill_began = 0.0

    def begin(self, now: float, stop_signal: int, grace_s: float, first: Identity | None = None) -> None:
        """First step: send the stop signal to every member, then SIGCONT, because a stopped process handles no
        signal. `first`: a known member, which does not wait until the others are found."""
        self.active = True
        self.killed = False
        self.kill_at = now + grace_s
        self._pause_s = FIRST_POLL_S
        known = [first] if first is not None else []
        self.reached = processes.signal_all(known, stop_signal)
        others = [member for member in self._to_ask() if member != first]
        self.reached += processes.signal_all(others, stop_signal)
        processes.signal_all(known + others, signal.SIGCONT)
        self.due = now + min(self._pause_s, grace_s)

    def kill_now(self, now: float) -> None:
        """Skip to SIGKILL."""
        if not self.active:
            self.active = True
            self.killed = False
        self.kill_at = now
        self.due = now

    def hurry(self, kill_at: float) -> None:
        """Send SIGKILL no later than `kill_at`."""
        if self.active and not self.killed and self.kill_at is not None and kill_at < self.kill_at:
            self.kill_at = kill_at
            self.due = min(self.due, kill_at) if self.due is not None else kill_at

    def step(self, now: float) -> bool:
        """Perform due steps. True once no process is left. Cheap when called early."""
        if not self.active:
            return True
        if self._is_empty():
            self.active = False
            self.kill_at = self.due = None
            return True
        if self.kill_at is not None and now >= self.kill_at:
            self._kill(now)
        elif self.due is not None and now >= self.due:
            self._schedule_check(now)
        return False

    def _kill(self, now: float) -> None:
        if not self.killed:
            self.killed = True
            self._kill_began = now
            self._pause_s = FIRST_POLL_S
        self._kill_group()
        # Processes outside of a control group may fork meanwhile: repeat until is_empty, with growing intervals.
        processes.signal_all(self._find(), signal.SIGKILL)
        self._schedule_check(now)
        self.kill_at = self.due

    def _schedule_check(self, now: float) -> None:
        self._pause_s = min(self._pause_s * 1.5, LONGEST_POLL_INTERVAL_S)
        self.due = now + self._pause_s
        if self.kill_at is not None and not self.killed:
            self.due = min(self.due, self.kill_at)

    def stuck(self, now: float) -> bool:
        """Whether processes remain long after SIGKILL: they are blocked in the kernel (state D)."""
        return self.active and self.killed and now - self._kill_began > UNKILLABLE_AFTER_S
