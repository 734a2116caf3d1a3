"""Epochs: (term, n) as one number that only increases, whatever state the manager has lost.

Owns how a term is chosen. Every start of a manager opens a new term, so that an epoch that was granted and then lost
with a damaged file is never granted again. A term is also at least the number of seconds since 2026: a manager that
has lost its whole state still starts above everything that it ever granted, unless its clock was set back. In that
case the epochs known to the state and the agents are another lower bound.

A grant is the manager's proof that it assigned a worker under an epoch to an agent: a MAC that the agent returns, for
a manager whose state is older than the running workers.
"""

from __future__ import annotations

import functools
import hashlib
import hmac

EPOCHS_PER_TERM = 1_000_000
HIGHEST_EPOCH = 2**53 - 1  # the largest integer that every JSON parser represents exactly
_BEGIN_WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z
MARGIN_TERMS = 30 * 86_400  # in seconds; tolerance for a clock that was set back


def next_term(known: int, wall: float) -> int:
    """The term for a starting manager: above `known` (0: none) and above every term opened in an earlier second."""
    return max(known + 1, int(wall - _BEGIN_WALL))


def believable(epoch: int, known_term: int, wall: float) -> bool:
    """Whether a manager of this fleet can have granted this epoch by now. `known_term`: the highest known term."""
    return 0 < epoch <= HIGHEST_EPOCH and epoch // EPOCHS_PER_TERM <= max(known_term, next_term(0, wall)) + MARGIN_TERMS


def grant(fleet_key: str, worker_id: str, epoch: int, agent_id: str) -> str:
    """The grant, as 32 hexadecimal digits: proof that this fleet's manager assigned `worker_id` under `epoch` to
    `agent_id`."""
    message = "\0".join(("procguard-grant", worker_id, str(epoch), agent_id)).encode()
    return hmac.digest(fleet_key.encode(), message, hashlib.sha256).hex()[:32]


@functools.lru_cache(maxsize=1024)  # needed four times within a moment when an agent connects
def proof_key_of(fleet_key: str, agent_id: str, generation: int = 0) -> str:
    """The key by which this one agent recognises its manager; `generation` rises when the key is replaced."""
    suffix = f"\0{generation}" if generation else ""
    return hmac.new(fleet_key.encode(), b"procguard-agent\0" + (agent_id + suffix).encode(), hashlib.sha256).hexdigest()


def term_above(epoch: int) -> int:
    return epoch // EPOCHS_PER_TERM + 1
