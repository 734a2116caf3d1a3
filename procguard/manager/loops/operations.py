"""The greenlet that advances operations: immediately when an item has ended, and once a second for timeouts."""

from __future__ import annotations

import logging

import gevent
import gevent.event

from procguard.errors import ProcGuardError
from procguard.fleet.model import clock
from procguard.fleet.operations.controller import Operations
from procguard.runtime.cooperative import yield_to_hub

ROUND_S = 1.0
COALESCE_S = 0.02  # items that end within this time are processed in one commit

log = logging.getLogger(__name__)


def drive(operations: Operations) -> None:
    """Run until the greenlet is killed."""
    wake = gevent.event.Event()
    operations.on_wake(wake.set, yield_to_hub)
    while True:
        wake.wait(ROUND_S)
        wake.clear()
        try:
            while operations.advance(clock.read()):
                yield_to_hub()  # other greenlets run between two chunks
        except ProcGuardError as exc:  # the disk refused; the next round tries again
            log.error("%s", exc)
        except Exception:  # an error in one round must not end all operations
            log.exception("a round of the operations failed; the next one goes on")
        gevent.sleep(COALESCE_S)
