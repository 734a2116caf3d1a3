"""Group commit: one writes for all. A refusing disk or a killed waiter loses nothing and blocks no other."""

from __future__ import annotations

import errno
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from procguard.fleet.store.group_commit import RECHECK_S, GroupCommit
from procguard.fleet.store.interface import run_here
from tests.waiting import wait_until

Run = Callable[[Callable[[], None]], None]


class Killed(BaseException):
    pass


class Log:
    """`written`: one list for each write."""

    def __init__(self, run: Run = run_here) -> None:
        self.written: list[list[int]] = []
        self.error: OSError | None = None
        self.problem: OSError | None = None
        self.group = GroupCommit[int](self._prepare, run, lambda: self.problem)

    def _prepare(self, batch: list[int]) -> Callable[[], None]:
        def write() -> None:
            if self.error:
                raise self.error
            self.written.append(batch)

        return write

    def append(self, number: int) -> None:
        self.group.submit(number)
        self.group.flush()

    @property
    def numbers(self) -> list[int]:
        return [number for batch in self.written for number in batch]


def test_nobody_waits_longer_than_for_two_writes() -> None:
    """Changes that arrive during a write are written by the next waiter in the queue."""
    may_go, begun = threading.Event(), []

    def run(task: Any) -> None:
        begun.append(1)
        if len(begun) == 1:
            may_go.wait(10)
        task()

    log = Log(run)
    threads = [threading.Thread(target=log.append, args=(number,)) for number in range(41)]
    threads[0].start()
    wait_until(lambda: bool(begun), 5, "the first write has begun")
    alone: list[int] = []
    threads.append(threading.Thread(target=log.group.alone, args=(lambda: alone.append(len(log.written)),)))
    for number, thread in enumerate(threads[1:]):
        thread.start()
        wait_until(lambda most=number: len(log.group._waiters) > most, 5, "it waits")
    began = time.monotonic()
    may_go.set()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < RECHECK_S  # they were woken, and did not just look again
    assert sorted(log.numbers) == list(range(41)) and len(log.written) <= 3 and len(alone) == 1


@pytest.mark.parametrize("what", ["error", "problem"])
def test_what_was_refused_follows_in_order_when_the_disk_takes_it_again(what: str) -> None:
    log = Log()
    log.append(1)
    setattr(log, what, OSError(errno.ENOSPC, "full"))
    for number in (2, 3):
        with pytest.raises(OSError, match="full"):
            log.append(number)
    log.written.clear()
    setattr(log, what, None)
    log.append(4)
    assert log.numbers == [2, 3, 4]


def test_a_waiter_that_is_killed_while_it_writes_holds_nobody_up() -> None:
    """A greenlet may be killed at any moment, also the one that writes for all the others."""
    threads: list[threading.Thread] = []
    kill = [True]

    def in_a_thread(task: Any) -> None:
        threads.append(threading.Thread(target=task))
        threads[-1].start()
        if kill:
            kill.clear()
            raise Killed
        threads[-1].join(10)

    log = Log(in_a_thread)
    with pytest.raises(Killed):
        log.append(1)
    log.append(2)
    assert log.numbers == [1, 2]


def test_a_waiter_that_is_killed_before_its_write_began_takes_nothing_along() -> None:
    late: list[Any] = []

    def never_begun(task: Any) -> None:
        if not late:
            late.append(task)
            raise Killed
        task()

    log = Log(never_begun)
    with pytest.raises(Killed):
        log.append(1)
    log.append(2)
    late[0]()  # the thread that was to write gets its turn at last
    assert log.numbers == [1, 2]
