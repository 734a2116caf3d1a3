"""Splits long work on the event loop into short pieces. Knows gevent only."""

from __future__ import annotations

import time

import gevent

SLICE_S, LONGEST_SLICE_S = 0.008, 0.03


def yield_to_hub() -> None:
    """Let all other greenlets, sockets and timers run. `gevent.sleep(0)` does not let sockets and timers run until it
    has been called fifty times (tests/unit/runtime/test_pace.py)."""
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(0))


class Pace:
    """Called frequently during long work: yields to the event loop once the work has run for a slice of time.

    A slice is as long as the others took during the yield before it, at least SLICE_S and at most LONGEST_SLICE_S: in
    an overloaded loop each yield takes long, and work with short slices would never finish.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()
        self._slice_s = SLICE_S

    def __call__(self) -> None:
        now = time.perf_counter()
        if now - self._since > self._slice_s:
            yield_to_hub()
            self._since = time.perf_counter()
            self._slice_s = min(max(SLICE_S, self._since - now), LONGEST_SLICE_S)
