"""Evaluates the rules of `alerts:` every few seconds. Owns the timing; decides nothing."""

from __future__ import annotations

import logging

import gevent

from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.notify.rules import AlertRules
from procguard.runtime.cooperative import Pace

EVERY_S = 10.0

log = logging.getLogger("procguard.manager.alerts")


def drive(rules: AlertRules, fleet: Fleet) -> None:
    rest, refused = Pace(), ""
    while not rules.idle:
        gevent.sleep(EVERY_S)
        try:
            rules.evaluate(fleet.state, clock.read(), rest)
            refused = ""
        except ProcGuardError as exc:  # the disk refused; the next pass tries again
            if str(exc) != refused:
                log.error("alerts: %s", exc)
            refused = str(exc)
        except Exception:  # an error in one pass must not end the loop
            log.exception("a pass of the alert rules failed; the next one goes on")
