"""Splits long work on the event loop into short pieces. Knows gevent only."""

from __future__ import annotations

import time

import gevent

SLICE_S = 0.008


def yield_to_hub() -> None:
    """Let everybody else have a turn: sockets and timers too. `gevent.sleep(0)` gives them none before it has come back
    fifty times (tests/unit/runtime/test_pace.py)."""
    hub = gevent.get_hub()
    hub.wait(hub.loop.timer(0))


class Pace:
    """Called often by who has much to do: lets others run once it has worked for SLICE_S, and otherwise costs nothing.

    By time and not by count: in a loop that is overloaded each turn of the others takes long, and work that gives way
    sixty times is never done.
    """

    def __init__(self) -> None:
        self._since = time.perf_counter()

    def __call__(self) -> None:
        if time.perf_counter() - self._since > SLICE_S:
            yield_to_hub()
            self._since = time.perf_counter()
