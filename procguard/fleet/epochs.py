"""Epochs: (term, n) as one number, which only ever rises, whatever the manager forgot.

Owns how a term is chosen. Every start of a manager opens a new one, so that what was granted and lost with a damaged
file is never granted again. A term is also never lower than the seconds since 2026: a manager that lost everything, its
own name too, still begins above all that it ever granted, as long as its clock was not set back. Where it was, what the
state and the agents know of is a bound of its own.
"""

from __future__ import annotations

EPOCHS_PER_TERM = 1_000_000
HIGHEST_EPOCH = 2**53 - 1  # what every reader of JSON still counts exactly
_BEGIN_WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z


def next_term(known: int, wall: float) -> int:
    """The term to open: above `known` (0: none), and above whatever was opened before this second."""
    return max(known + 1, int(wall - _BEGIN_WALL))


def term_above(epoch: int) -> int:
    return epoch // EPOCHS_PER_TERM + 1
