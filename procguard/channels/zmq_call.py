"""One request of the zmq channel as the desk sees it, and what the channel remembers of a connection.

Owns who a connection is (the secret it has shown) and how a larger body is asked for once there is room. Knows nothing
of frames and sockets but how to send.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import gevent
import gevent.event

from procguard.channels import Access, Principal, http_io
from procguard.channels.bodies import Bodies
from procguard.channels.desk import Call
from procguard.channels.held import HeldPoll
from procguard.channels.routing import caller_by_secret
from procguard.channels.zmq_port import Peer
from procguard.errors import Forbidden, UsageError
from remote_agent import protocol

# What is larger is announced first, and sent when there is room: `"body_bytes": N`, answered by status 100.
INLINE_BYTES = protocol.ZMQ_INLINE_BYTES


_USUAL_START = b'{"id":'
_ID_AT = len(_USUAL_START)
_NO_HEADERS_END = b"\n"  # a header is one line
_MAX_USUAL_BYTES = 512


class Rules(NamedTuple):
    """What holds for all requests of the channel."""

    access: Access
    bodies: Bodies
    body_timeout_s: float


class Session:
    """What the channel remembers of a connection. `usual`: what it asked last with nothing but an id, a method and a
    path, and `usual_end` the header behind the id: an agent asks the same all day."""

    __slots__ = ("awaited", "polls", "secret_sha256", "unanswered", "usual", "usual_end")

    def __init__(self) -> None:
        self.secret_sha256 = ""
        self.unanswered = 0
        self.usual: Any = None  # Found
        self.usual_end = _NO_HEADERS_END
        self.polls: set[HeldPoll] = set()
        self.awaited: dict[
            int, gevent.event.AsyncResult[bytes | None]
        ] = {}  # request id -> its body, asked for by status 100

    def remember(self, found: Any, head: bytes, header: dict[str, Any]) -> None:
        """`head`, read as `header`, asks for `found`. Held polls, which say in a query what they know, do not count."""
        if len(head) <= _MAX_USUAL_BYTES and len(header) == 3 and not found.query and head.startswith(_USUAL_START):
            self.usual, self.usual_end = found, head[head.find(b",") :]

    def usual_id(self, head: bytes) -> int:
        """The id in a header that asks for `usual`; 0: it is another one."""
        end = self.usual_end
        if not (head.endswith(end) and head.startswith(_USUAL_START)):
            return 0
        digits = head[_ID_AT : -len(end)]
        return int(digits) if digits.isdigit() and len(digits) < 16 and digits[:1] != b"0" else 0

    def take_body(self, request_id: int, body: bytes) -> bool:
        """Whether it was the body of a request that waits for it."""
        awaited = self.awaited.pop(request_id, None)
        if awaited is None:
            return False
        awaited.set(body)
        return True


class ZmqCall(Call):
    __slots__ = ("_body", "_peer", "_request_id", "_rules")

    channel = "zmq"

    def __init__(
        self,
        query: Any,
        rules: Rules,
        peer: Peer,
        request_id: int,
        body: bytes,
        announced: Any,
    ) -> None:
        """`announced`: the size of a body that is yet to be sent; None: it is here."""
        if announced is not None and (not isinstance(announced, int) or announced < 0 or body):
            raise UsageError("body_bytes: expected the size of a body that is yet to be sent", "see docs/protocol.md")
        # As Call's own, without calling it: one of these is made for each message.
        self.query, self.peer, self.direct, self.sock = query, peer.address, True, None
        self.declared_bytes = len(body) if announced is None else announced
        self._rules, self._peer, self._request_id = rules, peer, request_id
        self._body: bytes | None = body if announced is None else None

    @property
    def proven(self) -> bool:
        """Its key was admitted under the agent's proof key."""
        return True

    def identify(self, own_secret_sha256: str = "") -> Principal:
        """By the secret that the connection has shown; the key that opened it must be the same agent's."""
        session: Session = self._peer.state
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
        session: Session = self._peer.state
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

    def held(self, poll: HeldPoll) -> None:
        session: Session = self._peer.state
        session.polls = {one for one in session.polls if not one.ending}
        session.polls.add(poll)
        if self._peer.closed:
            poll.end("peer_closed")


def end_session(peer: Peer) -> None:
    """Its connection is gone: what it has asked is not waited for any more."""
    if peer.state is None:
        return
    session: Session = peer.state
    for poll in session.polls:
        poll.end("peer_closed")
    for awaited in session.awaited.values():
        awaited.set(None)
