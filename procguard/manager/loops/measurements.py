"""The loop that samples measurements and writes them. Owns the timing; decides nothing."""

from __future__ import annotations

import logging

import gevent

from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.fleet.telemetry.files import MeasurementFiles
from procguard.fleet.telemetry.timeseries import SAMPLE_S, Measurements
from procguard.runtime.cooperative import Pace

log = logging.getLogger(__name__)


def drive(measurements: Measurements, files: MeasurementFiles, fleet: Fleet) -> None:
    """Load stored measurements, then sample and write periodically. Never returns. File access happens in threads."""
    pool, rest = gevent.get_hub().threadpool, Pace()
    pool.apply(files.load, (measurements, clock.read().wall))
    while True:
        gevent.sleep(SAMPLE_S - clock.read().wall % SAMPLE_S)
        try:
            done = measurements.sample(fleet.state, clock.read().wall, rest)
            slots = {kind: dict(measurements.tables[kind].slots) for kind in {kind for kind, _, _ in done}}
            pool.apply(files.append, (done, slots))
        except Exception:  # an error in one sample must not end the loop
            log.exception("a sample of the measurements failed; the next one goes on")
