"""Applies `logs.retention` periodically."""

from __future__ import annotations

import logging

import gevent

from procguard.errors import ProcGuardError
from procguard.fleet.model import clock
from procguard.portal.logs.rules import RetentionKeeper

EVERY_S = 600.0
FIRST_AFTER_S = 60.0  # by then agents have reported their running workers

log = logging.getLogger("procguard.manager.retention")


def drive(keeper: RetentionKeeper) -> None:
    if not keeper.rules:
        return
    gevent.sleep(FIRST_AFTER_S)
    while True:
        try:
            now = clock.read()
            deleted = keeper.apply(now.wall, now.monotonic)
            if deleted:
                log.info("logs deleted for logs.retention bytes=%d", deleted)
        except (OSError, ProcGuardError) as exc:
            log.error("logs.retention: %s", exc)
        gevent.sleep(EVERY_S)
