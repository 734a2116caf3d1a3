"""The failure history of a host, and the score derived from it; entries lose weight over time.

Pure. It is stored with the agent's record. The score orders spares and is shown; it never excludes a host: use cordon
for that.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from procguard.fleet.model.records import HostFailure
from procguard.i18n.reasons import Reason

Kind = Literal["agent_silent", "worker_failed"]

KEEP = 50
HALF_LIFE_S = 24 * 3600.0  # after a day an entry counts half
# The loss of a host affects all its workers, whereas a worker's failure need not be the host's fault.
WEIGHT: dict[str, float] = {"agent_silent": 2.0, "worker_failed": 1.0}


def noted(failures: Sequence[HostFailure], kind: Kind, what: Reason, wall: float) -> Sequence[HostFailure]:
    """The history with one more entry; entries beyond KEEP are dropped, oldest first."""
    return (*failures, HostFailure(wall, kind, what))[-KEEP:]


def score(failures: Sequence[HostFailure], wall: float) -> float:
    """The sum of the entries' weights, each halved per day of age; 0: no failures. Negative ages count as 0."""
    total = 0.0
    for entry in failures:
        age_s = max(0.0, wall - entry.at)
        total += WEIGHT.get(entry.kind, 1.0) * math.exp2(-age_s / HALF_LIFE_S)
    return total
