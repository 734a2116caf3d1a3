"""The manager's side of agent sessions (remote_agent/protocol/session.py): offered in hello, opened by the first
request, checked with every request.

A hello leaves no state behind: a session id contains its own time and is signed with a key of this process. State is
kept only for callers that have proved a secret. Owns numbers and keys; access control decides whose secret it is and
what it permits. Event loop only.
"""

from __future__ import annotations

import hmac
import os
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable
from hashlib import blake2b
from wsgiref.types import WSGIEnvironment

from procguard.agent_api.answers import SessionOffer
from procguard.errors import LimitExceeded, Refused
from remote_agent.protocol import session as wire
from remote_agent.protocol.messages import secret_sha256

OPEN_WITHIN_S = 30.0  # from hello to the session's first request
KEPT = 16  # sessions of one agent; it has three to five at a time
MOST = 256  # of one agent within OPEN_WITHIN_S: none of these may be forgotten, or its first request could be replayed
SIGNED = "procguard.signed"  # in a request's environment: its `Signed`
_HEADER = wire.SCHEME + " "

ProofKey = Callable[[str], str]  # by the agent's id; "" if there is none


class AgentSession:
    """An open session. `number`: of its last request; `secret_sha256`: of the secret that opened it."""

    __slots__ = ("agent_id", "id", "key", "number", "opened", "secret_sha256")

    def __init__(self, session_id: str, agent_id: str, key: bytes, sha256: str, opened: float) -> None:
        self.id, self.agent_id, self.key, self.secret_sha256, self.opened = session_id, agent_id, key, sha256, opened
        self.number = 0

    @property
    def of_token(self) -> bool:
        """Whether the session was opened with an enrolment token, before the launcher is an agent."""
        return self.agent_id.startswith(wire.TOKEN_PREFIX)


class Signed:
    """A verified request: checks that the body is the signed one, and signs the response."""

    __slots__ = ("_digest", "_number", "session")

    def __init__(self, session: AgentSession, number: int, digest: str) -> None:
        self.session = session
        self._number = number
        self._digest = digest

    def is_body(self, body: bytes) -> bool:
        return wire.body_digest(body) == self._digest

    def seal(self, text: str) -> str:
        """Encrypt a secret for the response."""
        return wire.seal_in_answer(self.session.key, self._number, text)

    def header(self, status: int, body: bytes) -> tuple[str, str]:
        return wire.ANSWER_HEADER, wire.answer_mac(self.session.key, self._number, status, body)


class AgentSessions:
    """All sessions. `proof_key(agent_id)`: the key by which that agent verifies its manager."""

    def __init__(self, fleet_id: str, proof_key: ProofKey, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._fleet_id = fleet_id
        self._proof_key = proof_key
        self._monotonic = monotonic
        self._run_key = secrets.token_bytes(32)
        self._uid, self._machine = os.geteuid(), wire.machine_mark()
        self._by_id: dict[str, AgentSession] = {}
        self._of_agent: dict[str, OrderedDict[str, AgentSession]] = {}  # oldest first

    def __len__(self) -> int:
        return len(self._by_id)

    def offer(self, agent_id: str, nonce: str, url: str) -> SessionOffer | None:
        """The field `session` of the response to hello; None if there is no key for this agent."""
        key = self._proof_key(agent_id)
        if not key:
            return None
        began = f"{int(self._monotonic() * 1000):012x}{secrets.token_hex(12)}"
        session_id = began + self._mark(began, agent_id, nonce)
        shared = wire.handshake(key, self._fleet_id, agent_id, nonce, session_id)
        proof = wire.manager_proof(shared, url, self._uid, self._machine)
        return {"id": session_id, "uid": self._uid, "machine": self._machine, "proof": proof}

    def _mark(self, began: str, agent_id: str, nonce: str) -> str:
        text = f"{began}\0{agent_id}\0{nonce}".encode("utf-8", "surrogateescape")
        return blake2b(text, key=self._run_key, digest_size=8).hexdigest()

    @staticmethod
    def is_of_session(authorization: str) -> bool:
        return authorization.startswith(_HEADER)

    def check(self, environ: WSGIEnvironment) -> Signed:
        """The request's session and number, once its MAC is right. Raises Refused, and LimitExceeded for an agent
        that opens too many."""
        words = environ["HTTP_AUTHORIZATION"].split(" ")
        if len(words) != 5 or not words[2].isdecimal() or len(words[2]) > 15:
            raise Refused("the Authorization header is not 'ProcGuard ID NUMBER DIGEST MAC'", "see docs/protocol.md")
        _, session_id, digits, digest, mac = words
        found = self._by_id.get(session_id)
        opening = found is None
        session = found if found is not None else self._asked_to_open(session_id, environ)
        number = int(digits)
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        right = wire.request_mac(session.key, number, environ["REQUEST_METHOD"], path, query, digest)
        if number <= session.number or not mac.isascii() or not hmac.compare_digest(right, mac):
            raise _unknown("a request's MAC or number is wrong")
        if opening:
            self._keep(session)
        session.number = number
        signed = environ[SIGNED] = Signed(session, number, digest)
        return signed

    def _asked_to_open(self, session_id: str, environ: WSGIEnvironment) -> AgentSession:
        """A session that is not stored yet, because its MAC has not been verified."""
        words = environ.get("HTTP_" + wire.OPEN_HEADER.upper().replace("-", "_"), "").split(" ")
        if len(words) != 3:
            raise _unknown("this session is not known here")
        agent_id, nonce, sealed = words
        began = session_id[:36]
        if not hmac.compare_digest(
            session_id.encode("utf-8", "replace"),
            (began + self._mark(began, agent_id, nonce)).encode("utf-8", "replace"),
        ):
            raise _unknown("this session is not known here")
        now = self._monotonic()
        if now - int(began[:12], 16) / 1000 > OPEN_WITHIN_S:
            raise _unknown("this session was offered too long ago")
        key = self._proof_key(agent_id)
        shared = wire.handshake(key, self._fleet_id, agent_id, nonce, session_id) if key else b""
        secret = wire.unseal(shared, sealed) if key else None
        if secret is None:
            raise _unknown("this session is not known here")
        return AgentSession(session_id, agent_id, wire.session_key(shared, secret), secret_sha256(secret), now)

    def _keep(self, session: AgentSession) -> None:
        of_agent = self._of_agent.setdefault(session.agent_id, OrderedDict())
        while len(of_agent) >= KEPT:
            oldest = next(iter(of_agent.values()))
            if session.opened - oldest.opened <= OPEN_WITHIN_S:
                break
            self._forget(oldest)
        if len(of_agent) >= MOST:
            raise LimitExceeded.for_now(
                f"{session.agent_id} opens too many sessions", "wait", OPEN_WITHIN_S, "too_many_sessions"
            )
        self._of_agent.setdefault(session.agent_id, of_agent)[session.id] = session
        self._by_id[session.id] = session

    def _forget(self, session: AgentSession) -> None:
        self._by_id.pop(session.id, None)
        self._of_agent[session.agent_id].pop(session.id, None)


def _unknown(why: str) -> Refused:
    return Refused(why, "open a new session: GET /api/hello (docs/protocol.md)", code="session_unknown")
