"""Samples the processor time of this process's descendants during a measurement.

The time between the last sample of a process and its end is lost: a few ms, under load less.
"""

from __future__ import annotations

import os
import threading
from collections import defaultdict
from collections.abc import Callable
from types import TracebackType

POLL_INTERVAL_S = 0.03


class Spending:
    """Processor seconds by kind of process within a `with` block. `kind`: maps a command line to the kind."""

    def __init__(self, kind: Callable[[list[str]], str]) -> None:
        self._kind = kind
        self._before: dict[int, float] = {}
        self._spent: dict[int, float] = {}
        self._kinds: dict[int, str] = {}
        self._descends: dict[int, bool] = {os.getpid(): True}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Spending:
        self._before = {pid: spent_s(pid) for pid in self._mine()}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        self._sample()

    def by_kind(self) -> dict[str, float]:
        totals: defaultdict[str, float] = defaultdict(float)
        for pid, seconds in self._spent.items():
            totals[self._kinds[pid]] += seconds - self._before.get(pid, 0.0)
        return dict(totals)

    def _run(self) -> None:
        while not self._over.wait(POLL_INTERVAL_S):
            self._sample()

    def _sample(self) -> None:
        for pid in self._mine():
            seconds = spent_s(pid)
            if seconds > self._spent.get(pid, self._before.get(pid, 0.0)):
                self._spent[pid] = seconds
                self._kinds[pid] = self._kind(command_line(pid)) or self._kinds.get(pid, "")

    def _mine(self) -> list[int]:
        found = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        return [pid for pid in found if pid != os.getpid() and self._is_mine(pid)]

    def _is_mine(self, pid: int) -> bool:
        if pid not in self._descends:
            above = parent(pid)
            self._descends[pid] = above > 0 and self._is_mine(above)
        return self._descends[pid]


def parent(pid: int) -> int:
    """The pid of the parent; 0 if there is none, or if the process has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[1])
    except (OSError, IndexError):
        return 0


def spent_s(pid: int) -> float:
    """Processor seconds of all threads of a process so far; 0 if it has ended."""
    total = 0
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/schedstat", "rb") as file:
                total += int(file.read().split()[0])
    except (OSError, IndexError):
        pass
    return total / 1e9


def command_line(pid: int) -> list[str]:
    """The command line of a process; [] if it has ended, or for a kernel thread."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return [os.fsdecode(word) for word in file.read().split(b"\0")[:-1]]
    except OSError:
        return []
