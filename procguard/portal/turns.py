"""How much one caller may do in one turn of the event loop, however much it sends: then everybody else has a turn.

gevent's `recv` and `send` return at once while there is something to read or room to write, so a connection whose peer
never pauses would never yield. Work is counted in units of about 10 µs (`spend`), and time is looked at too, because
one request may cost more than it seems. All connections of a caller share one `Share`, and so do all strangers: a
caller gains nothing by opening many. Within a share connections take turns, first come, first served. Event loop only.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import gevent
from gevent.hub import Waiter

SLICE_WORK = 100  # of one connection, before the next one of the same caller has its turn: about 1 ms
SLICE_S = 0.001
TURN_SLICES = 4  # of one caller in one turn of the loop
BYTES_PER_WORK = 8 * 1024  # to receive, copy or send them


def work_of(size_bytes: int) -> int:
    return 1 + size_bytes // BYTES_PER_WORK


class Share:
    """What the connections of one caller may do. Those that have used up their slice wait here for their next one."""

    __slots__ = ("__weakref__", "_left", "_loop", "_timer", "_turn", "_until", "_waiting")

    def __init__(self) -> None:
        self._loop = gevent.get_hub().loop
        self._turn = -1
        self._left = 0
        self._until = 0.0
        self._waiting: deque[Any] = deque()
        self._timer: Any = None

    def spend(self, work: int) -> None:
        """So much was done. Returns at once, or in a later turn of the loop where this one's slice is used up."""
        turn = self._loop.iteration
        if turn != self._turn and not self._waiting:
            self._begin_slice(turn)
        self._left -= work
        if self._left < 0 or time.perf_counter() > self._until:
            self._wait()

    def _begin_slice(self, turn: int) -> None:
        self._turn, self._left, self._until = turn, SLICE_WORK, time.perf_counter() + SLICE_S

    def _wait(self) -> None:
        waiter: Any = Waiter()
        self._waiting.append(waiter)
        if self._timer is None:
            self._start_timer()
        try:
            waiter.get()
        except BaseException:
            if waiter in self._waiting:
                self._waiting.remove(waiter)
            raise

    def _start_timer(self) -> None:
        """gevent.sleep(0) would come back fifty times before anybody's socket is looked at (pace.py)."""
        self._timer = self._loop.timer(0)
        self._timer.start(self._next_turn)

    def _next_turn(self) -> None:
        """In the hub: those who have waited longest get a slice each."""
        self._timer.stop()
        self._timer.close()
        self._timer = None
        ends = time.perf_counter() + TURN_SLICES * SLICE_S
        for _ in range(min(TURN_SLICES, len(self._waiting))):
            waiter = self._waiting.popleft()
            self._begin_slice(self._loop.iteration)
            waiter.switch(None)
            if not self._waiting or time.perf_counter() > ends:
                break
        if self._waiting and self._timer is None:
            self._start_timer()
