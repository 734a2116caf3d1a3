"""Group commit: many callers submit writes, and one caller at a time writes for all.

Owns the order and the waiting. `write` is passed in and runs off the event loop.
"""

from __future__ import annotations

import errno
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from procguard.fleet.store.interface import RunBlocking

RECHECK_S = 5.0  # a waiter checks again after this time, in case it was not woken
Item = TypeVar("Item")


class _Waiter:
    """`mine`: the number of the item it waits for; None: its turn to lead. `woken` is released once."""

    __slots__ = ("mine", "woken")

    def __init__(self, mine: int | None) -> None:
        self.mine = mine
        self.woken = threading.Lock()
        self.woken.acquire()


class GroupCommit(Generic[Item]):
    """`prepare` runs in the caller and returns the task that `run_blocking` runs off the event loop.

    The task raises OSError if the items were not written; they stay pending and are written first the next time. The
    same applies if `problem`, which is called after each write, returns one.
    """

    def __init__(
        self,
        prepare: Callable[[list[Item]], Callable[[], None]],
        run_blocking: RunBlocking,
        problem: Callable[[], OSError | None] = lambda: None,
    ) -> None:
        self._prepare = prepare
        self._run_blocking = run_blocking
        self._problem = problem
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()  # roughly in the order of the items that they wait for
        self._pending: list[Item] = []
        self._submitted = 0  # total number of items submitted
        self._durable = 0  # total number of items written
        self._writing = False

    def submit(self, item: Item) -> None:
        with self._lock:
            self._pending.append(item)
            self._submitted += 1

    def flush(self) -> None:
        """Write everything queued so far; it is durable on return. Raises OSError."""
        mine = self._submitted
        while self._durable < mine:
            if self._lead_or_wait(mine):
                self._lead()

    def alone(self, task: Callable[[], None]) -> None:
        """Run `task` off the event loop, excluding writes. Raises OSError."""
        while not self._lead_or_wait(None):
            pass
        self._run([], task)

    def _lead_or_wait(self, mine: int | None) -> bool:
        """Returns True if nobody writes and the caller must lead now; False after waiting until item `mine` may be
        durable or the caller is the next leader. Only affected callers are woken, because hundreds may wait for one
        write."""
        with self._lock:
            if mine is not None and self._durable >= mine:
                return False
            if not self._writing:
                self._writing = True
                return True
            waiter = _Waiter(mine)
            self._waiters.append(waiter)
        try:
            waiter.woken.acquire(timeout=RECHECK_S)
        except BaseException:  # the caller ended while waiting: if it was to lead, the next one leads
            with self._lock:
                self._forget(waiter)
                self._wake()
            raise
        with self._lock:
            self._forget(waiter)
        return False

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        """Wake all callers whose item is durable and, if nobody writes, the next leader."""
        waiters = self._waiters
        while waiters and waiters[0].mine is not None and waiters[0].mine <= self._durable:
            waiters.popleft().woken.release()
        if waiters and not self._writing:
            waiters.popleft().woken.release()

    def _lead(self) -> None:
        with self._lock:
            batch, self._pending = self._pending, []
        self._run(batch, None)

    def _run(self, batch: list[Item], task: Callable[[], None] | None) -> None:
        """Write `batch`, or run `task`, for all waiters. Only the caller that has set `_writing` may call it.

        If the caller is killed here (a greenlet), the write continues in its thread and is completed: no other caller
        may write in the meantime, and every wait must end.
        """
        outcome: list[OSError | None] = []
        begun: list[bool] = []
        given_up: list[bool] = []

        def run() -> None:
            begun.append(True)
            try:
                if given_up:
                    raise OSError(errno.EAGAIN, "the request is no longer waiting")
                work()
                outcome.append(None)
            except OSError as exc:
                outcome.append(exc)
            except BaseException as exc:
                outcome.append(OSError(errno.EIO, f"{type(exc).__name__}: {exc}"))
                raise

        try:
            work = task if task is not None else self._prepare(batch)
            self._run_blocking(run)
        finally:
            given_up.append(True)  # set before checking: a task either sees the flag, or is seen to have begun
            while begun and not outcome:
                time.sleep(0.002)
            error = outcome[0] if outcome else OSError(errno.EAGAIN, "no thread could be started")
            if error is None and batch:
                error = self._problem()
            with self._lock:
                if error is None:
                    self._durable += len(batch)
                else:
                    self._pending = batch + self._pending
                self._writing = False
                self._wake()
        if error is not None:
            raise error
