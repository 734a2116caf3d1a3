"""Admits zmq connections: the CURVE keys of agents that have proved that they know the fleet's key.

Owns the manager's key pair, generated for each run, and the admitted keys, in memory. An agent and the manager
exchange their public keys in the hello over HTTP, authenticated by an HMAC with the key that the agent received at
deployment (or registration), so that nobody in between can substitute a key. Admission permits a connection; the
agent's secret determines its rights, as over HTTP.
"""

from __future__ import annotations

import binascii
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from zmq.utils import z85

KEYS_PER_AGENT = 8  # keys per agent: that of the newest process, and of those that may still be ending
KEY_BYTES = 32
ZAP_ADDRESS = "inproc://zeromq.zap.01"  # endpoint of ZAP requests (RFC 27)
ZAP_DOMAIN = b"procguard"


class CurveKeyStore:
    def __init__(self) -> None:
        public, secret = zmq.curve_keypair()
        self.public_key: bytes = z85.decode(public)
        self.secret_key: bytes = z85.decode(secret)
        self._agent_of: dict[bytes, str] = {}
        self._keys_of: dict[str, deque[bytes]] = {}

    def admit(self, agent_id: str, key: bytes) -> None:
        if self._agent_of.get(key) == agent_id:
            return
        self._forget(key)
        keys = self._keys_of.setdefault(agent_id, deque())
        keys.append(key)
        self._agent_of[key] = agent_id
        while len(keys) > KEYS_PER_AGENT:
            self._agent_of.pop(keys.popleft(), None)

    def revoke(self, agent_id: str) -> None:
        """Remove the agent's keys after its secret was revoked."""
        for key in self._keys_of.pop(agent_id, ()):
            self._agent_of.pop(key, None)

    def _forget(self, key: bytes) -> None:
        before = self._agent_of.pop(key, None)
        if before is not None:
            self._keys_of[before].remove(key)

    def agent_of(self, key: bytes) -> str | None:
        return self._agent_of.get(key)


def key_from_hex(text: str) -> bytes | None:
    """Decode a CURVE key from hexadecimal; None if it is invalid."""
    try:
        key = binascii.unhexlify(text)
    except (ValueError, UnicodeEncodeError):
        return None
    return key if len(key) == KEY_BYTES and any(key) else None


class ZapAuthenticator:
    """Answers libzmq's ZAP request for each new connection: whether the key is admitted and the agent is below its
    limit of connections. `refused`: number of refused ones."""

    def __init__(self, context: Any, key_store: CurveKeyStore, has_room_for: Callable[[str], bool]) -> None:
        self._key_store = key_store
        self._has_room_for = has_room_for
        self.refused = 0
        self.socket = context.socket(zmq.REP)
        self.socket.linger = 0
        self.socket.bind(ZAP_ADDRESS)

    def answer_all(self) -> None:
        """Answer all pending requests. Never blocks."""
        while self.socket.getsockopt(zmq.EVENTS) & zmq.POLLIN:
            question = self.socket.recv_multipart(zmq.NOBLOCK)
            self.socket.send_multipart(self._answer(question), zmq.NOBLOCK)

    def _answer(self, question: list[bytes]) -> list[bytes]:
        version, request_id = question[0], question[1] if len(question) > 1 else b""
        agent_id = None
        if len(question) == 7 and question[2] == ZAP_DOMAIN and question[5] == b"CURVE":
            agent_id = self._key_store.agent_of(question[6])
        if agent_id is None or not self._has_room_for(agent_id):
            self.refused += 1
            return [version, request_id, b"400", b"not admitted", b"", b""]
        return [version, request_id, b"200", b"OK", agent_id.encode(), b""]

    def close(self) -> None:
        self.socket.close(0)
