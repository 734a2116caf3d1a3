"""Splits long work on the event loop into short pieces. Knows gevent only."""

from __future__ import annotations

import time

import gevent

SLICE_S = 0.008


def yield_to_hub() -> None:
    """Let all other greenlets, sockets and timers run. `gevent.sleep(0)` does not let sockets and timers run until it
    has been called fifty times (tests/unit/runtime/test_pace.py)."""
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(0))


class Pace:
    """Called frequently during long work: yields to the event loop once SLICE_S have passed since it last did.

    The interval is a time and not a count, because in an overloaded loop each yield takes long, and work that yields
    too often would never finish.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since > SLICE_S:
            yield_to_hub()
            self._since = time.perf_counter()
