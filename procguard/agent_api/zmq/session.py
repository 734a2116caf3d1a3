"""State of one zmq connection: its secret, its last request, and the body for which it waits."""

from __future__ import annotations

import gevent.event

from procguard.agent_api.long_poll import LongPoll
from procguard.agent_api.routes import FoundRoute
from procguard.json_types import Json

_USUAL_START = b'{"id":'
_ID_AT = len(_USUAL_START)
_NO_HEADERS_END = b"\n"  # a header is one line
_MAX_USUAL_BYTES = 512


class ZmqSession:
    """Cached data of a connection. `usual`: its last request with only an id, a method and a path; `usual_end`: the
    header after the id. Agents repeat the same request."""

    __slots__ = ("awaited", "polls", "secret_sha256", "unanswered", "usual", "usual_end")

    def __init__(self) -> None:
        self.secret_sha256 = ""
        self.unanswered = 0
        self.usual: FoundRoute | None = None
        self.usual_end = _NO_HEADERS_END
        self.polls: set[LongPoll] = set()
        self.awaited: dict[
            int, gevent.event.AsyncResult[bytes | None]
        ] = {}  # request id -> its body, requested by status 100

    def remember(self, found: FoundRoute, head: bytes, header: Json) -> None:
        """Remember that the header `head`, parsed as `header`, selects `found`. Held polls are not remembered, because
        their queries change."""
        if len(head) <= _MAX_USUAL_BYTES and len(header) == 3 and not found.query and head.startswith(_USUAL_START):
            self.usual, self.usual_end = found, head[head.find(b",") :]

    def usual_id(self, head: bytes) -> int:
        """The id in a header that repeats `usual`; 0 for another request."""
        end = self.usual_end
        if not (head.endswith(end) and head.startswith(_USUAL_START)):
            return 0
        digits = head[_ID_AT : -len(end)]
        return int(digits) if digits.isdigit() and len(digits) < 16 and digits[:1] != b"0" else 0

    def take_body(self, request_id: int, body: bytes) -> bool:
        """Pass a body to the request that waits for it. Returns whether there is one."""
        awaited = self.awaited.pop(request_id, None)
        if awaited is None:
            return False
        awaited.set(body)
        return True
