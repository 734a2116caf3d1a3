"""One request of the zmq channel, as a `Call`.

Owns the identity of the caller (by the secret shown on the connection) and the request for a larger body once there
is room. Uses frames and sockets only to send.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import gevent
import gevent.event

from procguard.admission.memory import Bodies
from procguard.agent_api import http_io
from procguard.agent_api.handlers import Call
from procguard.agent_api.interface import Access, Principal
from procguard.agent_api.long_poll import LongPoll
from procguard.agent_api.routes import caller_by_secret
from procguard.agent_api.zmq.port import Peer
from procguard.errors import Forbidden, UsageError
from remote_agent.protocol import messages as protocol

# Larger bodies are announced (`"body_bytes": N`) and sent after status 100, when there is room.
INLINE_BYTES = protocol.ZMQ_INLINE_BYTES


class Rules(NamedTuple):
    """Settings common to all requests of the channel."""

    access: Access
    bodies: Bodies
    body_timeout_s: float


class ZmqCall(Call):
    __slots__ = ("_body", "_peer", "_request_id", "_rules")

    channel = "zmq"

    def __init__(
        self,
        query: Mapping[str, str],
        rules: Rules,
        peer: Peer,
        request_id: int,
        body: bytes,
        announced: object,
    ) -> None:
        """`announced`: the size of a body that has not been sent yet; None: the body is included."""
        if announced is not None and (not isinstance(announced, int) or announced < 0 or body):
            raise UsageError("body_bytes: expected the size of the body that follows", "see docs/protocol.md")
        # Repeats Call.__init__ instead of calling it, because one is created per message.
        self.query, self.peer, self.direct, self.sock = query, peer.address, True, None
        self.declared_bytes = len(body) if announced is None else announced
        self._rules, self._peer, self._request_id = rules, peer, request_id
        self._body: bytes | None = body if announced is None else None

    @property
    def proven(self) -> bool:
        """Whether the connection's key was admitted under the agent's proof key."""
        return True

    def identify(self, own_secret_sha256: str = "") -> Principal:
        """Identify the caller by the connection's secret, which must belong to the agent whose key opened it."""
        session = self._peer.session
        caller = caller_by_secret(self._rules.access, session.secret_sha256, own_secret_sha256, self._peer.address)
        if session.secret_sha256 and caller.agent_id != self._peer.user_id:
            raise Forbidden(
                f"this connection was opened with the key of {self._peer.user_id[:70]}", "use that agent's own secret"
            )
        return caller

    def read(self, max_bytes: int) -> bytes:
        assert self.declared_bytes is not None
        if self.declared_bytes > max_bytes:
            raise http_io.too_large(max_bytes)
        if self._body is None:
            with self._rules.bodies.turn(self.declared_bytes, self._peer.user_id):
                self._body = self._ask_for_body(self.declared_bytes)
        elif len(self._body) > INLINE_BYTES:
            raise UsageError(
                f"a body of more than {INLINE_BYTES} bytes must be announced",
                'send "body_bytes" and wait for status 100',
            )
        return self._body

    def _ask_for_body(self, size: int) -> bytes:
        session = self._peer.session
        awaited = session.awaited[self._request_id] = gevent.event.AsyncResult()
        port = self._peer.port
        port.send_soon(self._peer, b'{"id":%d,"status":100}\n' % self._request_id)
        port.flush()
        try:
            body = awaited.get(timeout=self._rules.body_timeout_s)
        except gevent.Timeout as exc:
            raise http_io.too_slow(self._rules.body_timeout_s) from exc
        finally:
            session.awaited.pop(self._request_id, None)
        if not isinstance(body, bytes) or len(body) != size:
            raise UsageError("the body is not as large as announced", "send it again", code="body_incomplete")
        return body

    def held(self, poll: LongPoll) -> None:
        session = self._peer.session
        session.polls = {one for one in session.polls if not one.ending}
        session.polls.add(poll)
        if self._peer.closed:
            poll.end("peer_closed")


def end_session(peer: Peer) -> None:
    """End the peer's held requests after its connection has closed."""
    for poll in peer.session.polls:
        poll.end("peer_closed")
    for awaited in peer.session.awaited.values():
        awaited.set(None)
