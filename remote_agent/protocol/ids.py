"""Ids and secrets on the wire: valid ids, the directory of a worker, the proof of a secret.

Part of the protocol, which re-exports it; separate because the installer's session needs nothing else, and importing
the messages takes 20 ms of processor time.
"""

from __future__ import annotations

import functools
import re

from remote_agent.protocol.digests import hmac_sha256_hex, sha256_hex

ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"
# A deployed agent is named after its host; a hand-started launcher after its worker, where no host can collide.
AGENT_ID_PATTERN = r"^(launcher:)?[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"

_is_id = re.compile(ID_PATTERN[1:-1]).fullmatch  # called for each heartbeat


def valid_id(text: object) -> bool:
    return isinstance(text, str) and _is_id(text) is not None


def valid_agent_id(text: object) -> bool:
    return isinstance(text, str) and re.fullmatch(AGENT_ID_PATTERN[1:-1], text) is not None


@functools.lru_cache(8_192)  # asked several times for each piece of a log
def directory_name(worker_id: str) -> str:
    """The name of a worker's directory: readable, and unique even on case-insensitive file systems.

    An id is never used as a path directly: characters outside of [A-Za-z0-9_-] are replaced, and a digest of the id is
    appended.
    """
    readable = re.sub(r"[^A-Za-z0-9_-]", "_", worker_id)[:40]
    return f"{readable}-{sha256_hex(worker_id.encode())[:10]}"


def fingerprint(secret_sha256: str) -> str:
    """Twelve hex digits in three groups, as both sides show them: 3f2a-91bc-77d0."""
    digits = sha256_hex(("procguard launcher " + secret_sha256).encode())[:12]
    return "-".join((digits[:4], digits[4:8], digits[8:]))


def secret_sha256(secret: str) -> str:
    return sha256_hex(secret.encode())


def manager_proof(proof_key: str, fleet_id: str, agent_id: str, nonce: str) -> str:
    """The `proof` in the answer to GET /api/hello?agent=<id>&nonce=<hex>, which only the fleet's manager can
    compute."""
    message = "\0".join(("procguard-hello", fleet_id, agent_id, nonce)).encode()
    return hmac_sha256_hex(proof_key.encode(), message)
