"""Leadership among managers: `term` and `managers` in replies, and the answer of a standby.

Pure. Decides what is accepted; transport/addresses.py stores it. Terms only increase: a reply with a term lower than
one seen before comes from a manager that has been replaced and is ignored completely.
"""

from __future__ import annotations

from remote_agent.protocol.digests import blake2b, same
from remote_agent.protocol.hints import Any, Optional

STANDBY_STATUS = 421
STANDBY = "standby"  # the error's code
HIGHEST_TERM = (2**53 - 1) // 1_000_000  # as for epochs: the highest one that all JSON parsers represent exactly
MARGIN_TERMS = 30 * 86_400  # terms above that of this clock by more than this are not stored
MAX_MANAGERS = 16
MAX_URL_CHARS = 512
MAX_RETRY_S = 5.0
_BEGIN_WALL = 1_767_225_600.0  # 2026-01-01T00:00:00Z, as in the manager's epochs


def read_term(data: Any) -> Optional[int]:
    """The term in a reply; 0 if it has none (a single manager of an earlier release); None if it is invalid."""
    term = data.get("term", 0)
    return term if type(term) is int and 0 <= term <= HIGHEST_TERM else None


def may_remember(term: int, wall: float) -> bool:
    """Whether a term may be stored on the disk. One far above the clock's results from a wrong clock: it is used until
    this process ends, so that restarting the agent resolves it."""
    return 0 < term <= int(wall - _BEGIN_WALL) + MARGIN_TERMS


def read_managers(data: Any) -> "list[str]":
    """The URLs in a reply, the leader's first; [] if the list is missing or invalid."""
    urls = data.get("managers")
    if not isinstance(urls, list) or len(urls) > MAX_MANAGERS:
        return []
    if not all(isinstance(url, str) and 0 < len(url) <= MAX_URL_CHARS and url.isprintable() for url in urls):
        return []
    return [url.rstrip("/") for url in urls]


def read_retry_s(data: Any) -> float:
    """The seconds that a standby asks agents to wait before the next attempt; 0 if not given."""
    seconds = data.get("retry_s")
    return float(seconds) if type(seconds) in (int, float) and 0 < seconds <= MAX_RETRY_S else 0.0


def standby_proof(proof_key: str, agent_id: str, nonce: str, to: str, term: int, managers: "list[str]") -> str:
    """Proves to an agent that the list in the answer to its hello is from a manager of its fleet. `to`: the address
    that the agent used."""
    parts = ("procguard-standby", agent_id, nonce, to, str(term), *managers)
    return str(blake2b("\0".join(parts).encode(), key=proof_key.encode()[:64], digest_size=32).hexdigest())


def proves_standby(data: Any, proof_key: str, agent_id: str, nonce: str, to: str) -> bool:
    """Whether the list and the term in the answer to a hello are proven."""
    term, managers, proof = read_term(data), read_managers(data), data.get("proof")
    if term is None or not managers or not isinstance(proof, str) or not proof_key:
        return False
    return same(proof, standby_proof(proof_key, agent_id, nonce, to, term, managers))
