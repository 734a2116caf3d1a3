"""The outermost layer of every response: request id, security headers, counters, and a JSON 500 for unhandled errors.

WSGI middleware; knows nothing of routes.
"""

from __future__ import annotations

import logging
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from wsgiref.types import WSGIEnvironment

from procguard.agent_api import http_io

log = logging.getLogger(__name__)

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
SECURITY_HEADERS = [
    ("Content-Security-Policy", CONTENT_SECURITY_POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Server", "ProcGuard"),
]

NO_STORE = ("Cache-Control", "no-store")  # set in every response under /api/

StartResponse = Callable[..., Any]
Counter = Callable[[str, str, int, float], None]  # (route, method, status, seconds)


class RequestMiddleware:
    def __init__(self, app: Callable[[WSGIEnvironment, StartResponse], Iterable[bytes]], count: Counter) -> None:
        self._app = app
        self._count = count

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        identifier = secrets.token_hex(8)
        environ["procguard.request_id"] = identifier
        began = time.perf_counter()
        status_seen = [500]

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            status_seen[0] = int(status[:3])
            headers = [header for header in headers if header[0].lower() != "server"]
            if environ.get("PATH_INFO", "").startswith("/api/") and not any(h[0] == "Cache-Control" for h in headers):
                headers.append(NO_STORE)
            headers += [*SECURITY_HEADERS, ("X-Request-Id", identifier)]
            write = start_response(status, headers, exc_info)
            if environ.get("procguard.stream"):
                write(b"")  # the body may arrive late: send the headers now
            return write

        try:
            return _until_sent(self._app(environ, start), environ)
        except Exception:
            environ.get(http_io.CLOSE_USE, _nothing)()
            log.exception("request failed request_id=%s", identifier)
            response = http_io.internal_error(identifier)
            start(response.status_line, response.headerlist, sys.exc_info())
            return [response.body]
        finally:
            route = environ.get("bottle.route")
            name = route.rule if route is not None else "(none)"
            self._count(name, environ.get("REQUEST_METHOD", "?"), status_seen[0], time.perf_counter() - began)


def _nothing() -> None:
    """The default `end`: no use was registered."""


def _until_sent(result: Iterable[bytes], environ: WSGIEnvironment) -> Iterable[bytes]:
    close_use = environ.get(http_io.CLOSE_USE)
    return result if close_use is None else _Sending(result, close_use)


class _Sending:
    """A response whose caller may lose its right while it is being sent. The server always calls `close`."""

    def __init__(self, result: Iterable[bytes], close_use: Callable[[], None]) -> None:
        self._result = result
        self._close_use = close_use

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._result)

    def close(self) -> None:
        self._close_use()
        close = getattr(self._result, "close", None)
        if close is not None:
            close()
