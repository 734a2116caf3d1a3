"""Schedules Python's garbage collection as rarely as possible, because a full collection blocks everything else.

Reference counting frees most objects immediately; only cycles need a collection. Python's default rule scans the
whole memory whenever a quarter of it is new, which heartbeats always cause: with ten thousand agents a pause of a
second several times a minute, usually without effect. Here a collection runs when the number of objects has grown
enough since the last one, so that cycles are bounded, and takes at most a small share of the time.
"""

from __future__ import annotations

import gc
import logging
import time

log = logging.getLogger(__name__)

GROWN_BY = 0.5  # of what was there after the last look
LEAST_NEW = 100_000  # objects
REST = 50  # times as long as the last look took
LONG_S = 0.25  # a look that is worth a line in the log


class GcScheduler:
    """Call `start` again after much was allocated that stays, and `collect_if_due` from the event loop: it costs next
    to nothing while nothing is due."""

    def __init__(self) -> None:
        self._kept = 0  # objects after the last look
        self._not_before = 0.0

    def start(self) -> None:
        """What is here now is no reason to look."""
        gc.disable()
        gc.freeze()  # counts from 0 again
        gc.unfreeze()
        self._kept = len(gc.get_objects())

    @property
    def new(self) -> int:
        """Objects more than after the last look, about."""
        return gc.get_count()[0]

    def collect_if_due(self, now: float) -> bool:
        """`now`: monotonic. Whether it was time to."""
        if now < self._not_before or self.new < max(LEAST_NEW, GROWN_BY * self._kept):
            return False
        began = time.perf_counter()
        found = gc.collect()
        took_s = time.perf_counter() - began
        self._kept = len(gc.get_objects())
        self._not_before = now + took_s * REST
        if took_s > LONG_S:
            log.info("garbage seconds=%.2f found=%d kept=%d", took_s, found, self._kept)
        return True
