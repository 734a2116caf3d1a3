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

GROWN_BY = 0.5  # share of the objects that remained after the last collection
LEAST_NEW = 100_000  # objects
REST = 50  # pause between collections, as a multiple of the duration of the last one
LONG_S = 0.25  # longer collections are logged


class GcScheduler:
    """Decides when to collect. Call `start` again after allocating much memory that stays in use, and `collect_if_due`
    regularly from the event loop; it costs almost nothing while no collection is due."""

    def __init__(self) -> None:
        self._kept = 0  # objects after the last collection
        self._not_before = 0.0

    def start(self) -> None:
        """Disable automatic collections, and count growth from the objects that exist now."""
        gc.disable()
        gc.freeze()  # resets the counter of new objects
        gc.unfreeze()
        self._kept = len(gc.get_objects())

    @property
    def new(self) -> int:
        """The approximate number of objects added since the last collection."""
        return gc.get_count()[0]

    def collect_if_due(self, now: float) -> bool:
        """Collect if it is due; returns whether it was. `now`: monotonic seconds."""
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
