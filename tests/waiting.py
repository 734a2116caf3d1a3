"""Waits for a condition with a deadline, instead of sleeping for a fixed time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Stopwatch:
    """How long something took, without the time in which this thread, or the main thread of one of the processes that
    it is about, was ready to run and other work had the processors: a bound in seconds then holds on a busy machine."""

    def __init__(self, *pids: int) -> None:
        self._tasks = ("thread-self", *pids)
        self._began, self._kept_waiting_s = self._now()

    @property
    def seconds(self) -> float:
        now, kept_waiting_s = self._now()
        waits = zip(kept_waiting_s, self._kept_waiting_s, strict=True)
        return now - self._began - sum(max(0.0, after - before) for after, before in waits)

    def _now(self) -> tuple[float, list[float]]:
        """Both clocks at one moment: read again where this thread was kept waiting in between."""
        for _ in range(100):
            before = kept_waiting_s("thread-self")
            now, waits = time.monotonic(), [kept_waiting_s(task) for task in self._tasks]
            if kept_waiting_s("thread-self") == before:
                break
        return now, waits


def kept_waiting_s(task: int | str) -> float:
    """Of a process's main thread, since its start; 0.0 where it has ended, or the kernel does not count it."""
    try:
        with open(f"/proc/{task}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


# A look often asks a manager, and takes milliseconds of processor time on both sides: the longer one has waited, the
# less it matters to see at once what has come about.
SHORTEST_S, LONGEST_S, OF_THE_WAIT = 0.01, 0.05, 0.05


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 10.0, what: str = "condition", every_s: float | None = None
) -> T:
    """Return the first true value of `predicate()`; fail naming `what` after `timeout_s`. `every_s`: between two looks;
    without it 10 ms at first, 50 ms from the first second on."""
    began = time.monotonic()
    while True:
        value = predicate()
        if value:
            return value
        waited_s = time.monotonic() - began
        if waited_s > timeout_s:
            raise AssertionError(f"not within {timeout_s} s: {what} (last: {value!r})")
        time.sleep(every_s or min(LONGEST_S, max(SHORTEST_S, waited_s * OF_THE_WAIT)))
