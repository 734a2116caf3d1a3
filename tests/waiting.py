"""Waiting for what a test expects: a condition with a deadline, never a sleep that hopes."""

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
        self._kept_waiting_s = [kept_waiting_s(task) for task in self._tasks]
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        took_s = time.monotonic() - self._began
        waits = zip(self._tasks, self._kept_waiting_s, strict=True)
        return took_s - sum(max(0.0, kept_waiting_s(task) - before) for task, before in waits)


def kept_waiting_s(task: int | str) -> float:
    """Of a process's main thread, since its start; 0.0 where it has ended, or the kernel does not count it."""
    try:
        with open(f"/proc/{task}/schedstat", encoding="ascii") as file:
            return int(file.read().split()[1]) / 1e9
    except (OSError, IndexError):
        return 0.0


def wait_until(
    predicate: Callable[[], T], timeout_s: float = 10.0, what: str = "condition", every_s: float = 0.01
) -> T:
    """Return the first true value of `predicate()`; fail naming `what` after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        value = predicate()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what} (last: {value!r})")
        time.sleep(every_s)
