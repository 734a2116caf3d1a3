"""The leader among managers: `term` and `managers` in replies, and the answer of a standby.

Pure. Decides what is accepted and what is rejected; transport/addresses.py stores it. Terms only increase: a
reply with a lower term than was seen comes from a manager that has been replaced, and is ignored as a whole.
"""

from __future__ import annotations

from remote_agent.protocol.digests import blake2b, same
from remote_agent.protocol.hints import Any, Optional

STANDBY_STATUS = 421
STANDBY = "standby"  # the error's code
HIGHEST_TERM = (2**53 - 1) // 1_000_000  # that of epochs: every reader of JSON counts it exactly
MARGIN_TERMS = 30 * 86_400  # above this clock's own term: what is remembered beyond the life of a process
MAX_MANAGERS = 16
MAX_URL_CHARS = 512
MAX_RETRY_S = 5.0
_BEGIN_WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z, as in the manager's epochs


def read_term(data: Any) -> Optional[int]:
    """The term in a reply; 0 where it has none (one manager of an earlier release). None: what is no term."""
    term = data.get("term", 0)
    return term if type(term) is int and 0 <= term <= HIGHEST_TERM else None


def may_remember(term: int, wall: float) -> bool:
    """Whether a term may outlive the process that has seen it. One far above the clock comes of a clock that was wrong:
    it counts until this process ends, so that a restart of the agent is the way out."""
    return 0 < term <= int(wall - _BEGIN_WALL) + MARGIN_TERMS


def read_managers(data: Any) -> "list[str]":
    """The URLs in a reply, the leader's first; [] where there is no list, or one that can't be read."""
    urls = data.get("managers")
    if not isinstance(urls, list) or len(urls) > MAX_MANAGERS:
        return []
    if not all(isinstance(url, str) and 0 < len(url) <= MAX_URL_CHARS and url.isprintable() for url in urls):
        return []
    return [url.rstrip("/") for url in urls]


def read_retry_s(data: Any) -> float:
    """How long a standby asks its agents to wait before the next try; 0 where it does not say."""
    seconds = data.get("retry_s")
    return float(seconds) if type(seconds) in (int, float) and 0 < seconds <= MAX_RETRY_S else 0.0


def standby_proof(proof_key: str, agent_id: str, nonce: str, to: str, term: int, managers: "list[str]") -> str:
    """By which an agent knows that the list in an answer to its hello is of a manager of its fleet. `to`: the address
    that the agent used."""
    parts = ("procguard-standby", agent_id, nonce, to, str(term), *managers)
    return str(blake2b("\0".join(parts).encode(), key=proof_key.encode()[:64], digest_size=32).hexdigest())


def proves_standby(data: Any, proof_key: str, agent_id: str, nonce: str, to: str) -> bool:
    """Whether the list and the term in the answer to a hello may be taken."""
    term, managers, proof = read_term(data), read_managers(data), data.get("proof")
    if term is None or not managers or not isinstance(proof, str) or not proof_key:
        return False
    return same(proof, standby_proof(proof_key, agent_id, nonce, to, term, managers))
