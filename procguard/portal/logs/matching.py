"""Matches expressions against logs on the manager: in threads, in bounded time, with a share for each caller.

RE2 releases the interpreter lock while it matches; reading expressions and iterating over lines alternate with the
event loop. Owns these threads and their shares; knows no HTTP and no files.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

import gevent.threadpool

from procguard import expression
from procguard.errors import LimitExceeded, UsageError
from procguard.expression import Expression
from procguard.portal.logs.reader import LogLine, line_filter

MAX_SCANS, MAX_SCANS_OF_ONE = 4, 2
MAX_FOLLOWS, MAX_FOLLOWS_OF_ONE = 64, 16
SLICE_S = 0.1  # time slice of one follower in the thread
T = TypeVar("T")


class Matching:
    def __init__(self) -> None:
        self._reading = gevent.threadpool.ThreadPool(1)
        self._scanning = gevent.threadpool.ThreadPool(1)
        self._following = gevent.threadpool.ThreadPool(1)
        self._scans: Counter[str] = Counter()  # keyed by caller
        self._follows: Counter[str] = Counter()

    def read(self, text: str, ignore_case: bool = False) -> Expression:
        """`expression.read`, off the event loop, because a hostile expression takes about 30 ms. Raises UsageError."""
        found: Expression | UsageError = self._reading.apply(_read, (text, ignore_case))
        if isinstance(found, UsageError):
            raise found
        return found

    def scan(self, caller: str, steps: Generator[None, None, T]) -> T:
        """Run a scan of stored logs, sharing the thread with others. Raises LimitExceeded above the limit."""
        with _share(self._scans, caller, MAX_SCANS, MAX_SCANS_OF_ONE, "searches with regex= are in progress"):
            while True:
                done, result = self._scanning.apply(_step, (steps,))
                if done:
                    found: T = result
                    return found

    def follow(self, caller: str) -> contextlib.AbstractContextManager[None]:
        """Hold a slot while a log is followed with an expression. Raises LimitExceeded."""
        return _share(self._follows, caller, MAX_FOLLOWS, MAX_FOLLOWS_OF_ONE, "logs are followed with regex=")

    def matching(self, wanted: Expression, lines: Sequence[LogLine], go_on: Callable[[], bool]) -> list[LogLine]:
        """The matching `lines`, computed in time slices while `go_on()` is true."""
        found: list[LogLine] = []
        begin = 0
        while begin < len(lines) and go_on():
            begin, more = self._following.apply(_slice, (wanted, lines, begin))
            found += more
        return found


def _step(steps: Generator[None, None, Any]) -> tuple[bool, Any]:
    try:
        next(steps)
    except StopIteration as end:
        return True, end.value
    return False, None


def _read(text: str, ignore_case: bool) -> Expression | UsageError:
    """Return refusals instead of raising them, because gevent prints tracebacks of its threads."""
    try:
        return expression.read(text, ignore_case)
    except UsageError as exc:
        return exc


def _slice(wanted: Expression, lines: Sequence[LogLine], begin: int) -> tuple[int, list[LogLine]]:
    """Returns (position reached, matches before it)."""
    until, matches, found = time.monotonic() + SLICE_S, line_filter(wanted), []
    while begin < len(lines):
        if matches(lines[begin]):
            found.append(lines[begin])
        begin += 1
        if time.monotonic() > until:
            break
    return begin, found


@contextlib.contextmanager
def _share(used: Counter[str], caller: str, in_all: int, of_one: int, what: str) -> Iterator[None]:
    if used[caller] >= of_one or used.total() >= in_all:
        number = f"{of_one} of your own" if used[caller] >= of_one else str(in_all)
        raise LimitExceeded.for_now(f"{number} {what} already", "wait until one has ended", 5)
    used[caller] += 1
    try:
        yield
    finally:
        used[caller] -= 1
        if not used[caller]:
            del used[caller]
