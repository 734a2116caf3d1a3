"""Remaining time for one step with one host."""

from __future__ import annotations

import time

from procguard.errors import HostError


def remaining_s(deadline: float, host: str, doing: str) -> float:
    """Seconds until `deadline`; raises HostError when it has passed."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise HostError(
            f"{host}: no answer in time while {doing}", "the machine may be overloaded; try again", code="timeout"
        )
    return left
