"""Limits how much work one caller may do in one iteration of the event loop, independent of how much it sends.

gevent's `recv` and `send` return immediately while there is data to read or room to write, so that a connection whose
peer never pauses would never yield. Work is counted in units of about 10 µs (`spend`); time is measured too, because
a request may cost more than estimated. All connections of a caller share one `Share`, and so do all unidentified
callers: opening many connections gains nothing. Within a share, connections are served first come, first served.
Event loop only.
"""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import gevent
from gevent.hub import Waiter

SLICE_WORK = 100  # of one connection before the next one of the same caller is served: about 1 ms
SLICE_S = 0.001
SLICES_PER_TURN = 4  # of one caller per iteration of the loop
BYTES_PER_WORK = 8 * 1024  # to receive, copy or send them


def work_of(size_bytes: int) -> int:
    return 1 + size_bytes // BYTES_PER_WORK


class _Watch:
    """The time when work of any share was last counted. The time since then is charged to the share that is counted
    next."""

    __slots__ = ("loop", "since")

    def __init__(self) -> None:
        self.loop = gevent.get_hub().loop
        self.since = 0.0


class Share:
    """The work that the connections of one caller may do. Connections that have used up their slice wait here for the
    next one.

    `beside`: another share of the same event loop. Both then measure time together, so that it is charged only to the
    connection that used it."""

    __slots__ = ("_left", "_left_s", "_loop", "_timer", "_turn", "_waiting", "_watch")

    def __init__(self, beside: Share | None = None) -> None:
        self._watch: _Watch = _Watch() if beside is None else beside._watch
        self._loop = self._watch.loop
        self._turn = -1
        self._left = 0
        self._left_s = 0.0
        self._waiting: deque[Any] | None = None  # created by the first connection that waits
        self._timer: Any = None

    def go_on_from(self, before: Share) -> None:
        """Continue the slice of another share, when a connection's caller has changed."""
        self._turn, self._left, self._left_s = before._turn, before._left, before._left_s

    def spend(self, work: int) -> None:
        """Account for work that was done. Returns immediately, or in a later iteration of the loop if the slice of this
        one is used up."""
        now = time.perf_counter()
        watch, turn = self._watch, self._loop.iteration
        if turn != self._turn and not self._waiting:
            self._turn, self._left, self._left_s = turn, SLICE_WORK, SLICE_S
        else:
            self._left_s -= now - watch.since
        watch.since = now
        self._left -= work
        if self._left < 0 or self._left_s < 0:
            self._wait()

    def _wait(self) -> None:
        waiter: Any = Waiter()
        if self._waiting is None:
            self._waiting = deque()
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
        """gevent.sleep(0) would return fifty times before any socket is polled (runtime/cooperative.py)."""
        self._timer = self._loop.timer(0)
        self._timer.start(self._next_turn)

    def _next_turn(self) -> None:
        """In the hub: the connections that have waited longest get a slice each."""
        self._timer.stop()
        self._timer.close()
        self._timer = None
        assert self._waiting is not None
        self._watch.since = time.perf_counter()
        ends = self._watch.since + SLICES_PER_TURN * SLICE_S
        for _ in range(min(SLICES_PER_TURN, len(self._waiting))):
            waiter = self._waiting.popleft()
            self._turn, self._left, self._left_s = self._loop.iteration, SLICE_WORK, SLICE_S
            waiter.switch(None)
            if not self._waiting or time.perf_counter() > ends:
                break
        if self._waiting and self._timer is None:
            self._start_timer()
