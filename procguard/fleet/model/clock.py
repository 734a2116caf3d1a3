"""The monotonic and the wall clock, read together. Only loops and request handlers call `read`; others receive a
`Now`.
"""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import NamedTuple

_monotonic, _wall = time.monotonic, time.time
_EARLIEST, _LATEST = -62_135_596_800.0, 253_402_300_799.0  # the years 1 and 9999, the range of datetime


class Now(NamedTuple):
    monotonic: float  # seconds; for every duration and deadline
    wall: float  # Unix seconds; for display only


def read() -> Now:
    return tuple.__new__(Now, (_monotonic(), _wall()))  # like Now(…) in half the time; called for each heartbeat


def iso(wall: float | None) -> str | None:
    """2026-11-23T22:16:18.123Z, or None for 'never'."""
    if not wall:
        return None
    wall = min(max(wall, _EARLIEST), _LATEST)  # a host's clock or its agent may send any value
    return datetime.fromtimestamp(wall, timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z")
