"""The fast path for frequent requests: heartbeats and long polls.

The same handlers, access checks and responses as in the application's routes, without their overhead: a route is one
dict lookup, and the constant part of a response head is built once. Addresses with escaped characters and other
methods use the application. Knows WSGI environments and the format of responses, not their content.
"""

from __future__ import annotations

import itertools
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from email.utils import formatdate
from http.client import responses
from typing import NamedTuple
from wsgiref.types import WSGIEnvironment

import bottle

from procguard.agent_api import decode, http_io
from procguard.agent_api.handlers import Answer
from procguard.agent_api.sessions import SIGNED
from procguard.errors import ProcGuardError
from procguard.portal.http.middleware import NO_STORE, SECURITY_HEADERS

log = logging.getLogger(__name__)

Counter = Callable[[str, str, int, float], None]  # (route, method, status, seconds)
Handler = Callable[[WSGIEnvironment, str], Answer]

_HEAD = "".join(
    f"{name}: {value}\r\n" for name, value in (("Content-Type", "application/json"), NO_STORE, *SECURITY_HEADERS)
)


class FoundFastPath(NamedTuple):
    rule: str
    handler: Handler
    subject: str  # routes with an id in the path


class FastPath:
    """`routes`: (method, rule, handler), rules as bottle writes them: /api/<kind>/<id>/<what>, or without an id."""

    def __init__(self, routes: Iterable[tuple[str, str, Handler]], count: Counter) -> None:
        self._count = count
        self._routes: dict[tuple[str, str, str], tuple[str, Handler]] = {}
        self._whole: dict[tuple[str, str], FoundFastPath] = {}
        for method, rule, handler in routes:
            if "<" not in rule:
                self._whole[method, rule] = FoundFastPath(rule, handler, "")
                continue
            _, _, kind, _, what = rule.split("/")
            self._routes[method, kind, what] = (rule, handler)
        # Unique per request, like those of the middleware, but without a system call for random bytes.
        self._numbers = itertools.count(secrets.randbits(32))
        self._prefix = secrets.token_hex(4)
        self._second, self._usual_head, self._other_head = 0, b"", b""

    def find(self, method: str, path: str) -> FoundFastPath | None:
        """`path`: as received, without a query."""
        parts = path.split("/")
        if len(parts) < 5:
            return self._whole.get((method, path))
        if len(parts) > 5 or parts[0] or parts[1] != "api" or "%" in path or not path.isascii():
            return None
        known = self._routes.get((method, parts[2], parts[4]))
        return FoundFastPath(*known, parts[3]) if known is not None and parts[3] else None

    def answer(self, found: FoundFastPath, environ: WSGIEnvironment) -> bytes:
        """The complete response as bytes."""
        began = time.perf_counter()
        identifier = f"{self._prefix}{next(self._numbers) & 0xFFFFFFFF:08x}"
        environ["procguard.request_id"] = identifier
        status, more, body = 200, "", b""
        try:
            status, message = found.handler(environ, found.subject)
            body = decode.dumps(message)
        except ProcGuardError as exc:
            status, more, body = _refusal(http_io.error_response(exc, identifier, environ.get("HTTP_ACCEPT_LANGUAGE")))
        except Exception:
            log.exception("request failed request_id=%s route=%s", identifier, found.rule)
            status, more, body = _refusal(http_io.internal_error(identifier))
        signed = environ.get(SIGNED)
        if signed is not None:
            name, mac = signed.header(status, body)
            more += f"{name}: {mac}\r\n"
        self._count(found.rule, environ["REQUEST_METHOD"], status, time.perf_counter() - began)
        end = f"{more}X-Request-Id: {identifier}\r\nContent-Length: {len(body)}\r\n\r\n".encode("latin-1")
        return b"".join((self._head(status), end, body))

    def _head(self, status: int) -> bytes:
        """The status line and the headers that are the same for all responses of this second."""
        second = int(time.time())
        if second != self._second:
            self._second = second
            self._other_head = f"{_HEAD}Date: {formatdate(second, usegmt=True)}\r\n".encode("latin-1")
            self._usual_head = b"HTTP/1.1 200 OK\r\n" + self._other_head
        if status == 200:
            return self._usual_head
        return f"HTTP/1.1 {status} {responses[status]}\r\n".encode("latin-1") + self._other_head


def _refusal(response: bottle.HTTPResponse) -> tuple[int, str, bytes]:
    """The response to a refused request: (status, additional headers, body)."""
    own = [(name, value) for name, value in response.headerlist if name not in ("Content-Type", "Content-Length")]
    return response.status_code, "".join(f"{name}: {value}\r\n" for name, value in own), response.body
