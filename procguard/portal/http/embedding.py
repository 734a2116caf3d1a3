"""Answers several GET requests of one caller inside a single response.

Each is passed to the application as a request of its own, with the caller's headers: its route decides who may call it.
Knows nothing of what the routes answer.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import unquote
from wsgiref.types import WSGIEnvironment

import bottle
import gevent

from procguard.agent_api import http_io
from procguard.errors import UsageError

MAX_PATHS = 8
MAX_PATH_CHARS = 2_000
MAX_BYTES = 1_000_000  # limit of one response; larger ones need a separate request
WITHIN_S = 1.0  # responses that take longer are left out
# Headers of the enclosing request only: its own body is conditional or compressed, not the embedded ones.
_NOT_PASSED = ("HTTP_IF_NONE_MATCH", "HTTP_ACCEPT_ENCODING", "CONTENT_LENGTH", "CONTENT_TYPE", "HTTP_TRANSFER_ENCODING")


def read_paths(text: str) -> list[str]:
    """Paths with their queries, from a JSON list. Raises UsageError."""
    try:
        paths = json.loads(text or "[]")
    except (ValueError, RecursionError):
        paths = None
    if not isinstance(paths, list) or len(paths) > MAX_PATHS:
        raise UsageError(f"also: expected a JSON list of at most {MAX_PATHS} paths", 'e.g. ?also=["/api/mutes"]')
    if not all(isinstance(one, str) and one.startswith("/api/") and len(one) <= MAX_PATH_CHARS for one in paths):
        raise UsageError(
            f"also: expected paths of at most {MAX_PATH_CHARS} characters that begin with /api/",
            'e.g. ?also=["/api/mutes"]',
        )
    return list(dict.fromkeys(paths))


class EmbeddedAnswer(NamedTuple):
    """The body of a response as JSON text."""

    etag: str | None
    body: bytes


def embedded(environ: WSGIEnvironment, paths: Sequence[str], allowed: Sequence[str]) -> dict[str, EmbeddedAnswer]:
    """Call other routes of this application. Returns those that responded with
    status 200 in time; the client requests the others itself and sees the error. `allowed`: rules of the routes that
    may be called."""
    asked = {path: gevent.spawn(_answer, environ, path, allowed) for path in paths}
    gevent.joinall(list(asked.values()), timeout=WITHIN_S)
    return {path: one.value for path, one in asked.items() if one.successful() and one.value is not None}


def _answer(environ: WSGIEnvironment, path: str, allowed: Sequence[str]) -> EmbeddedAnswer | None:
    app: bottle.Bottle = environ["bottle.app"]
    own = {name: value for name, value in environ.items() if not name.startswith("bottle.") and name not in _NOT_PASSED}
    quoted, _, own["QUERY_STRING"] = path.partition("?")
    own["PATH_INFO"] = unquote(quoted, "latin-1")  # as WSGI requires it
    own["REQUEST_METHOD"], own["wsgi.input"] = "GET", io.BytesIO()
    try:
        route, _ = app.router.match(own)
    except bottle.HTTPError:
        return None
    if route.rule not in allowed:
        return None
    said: dict[str, str] = {}

    def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> None:
        said.update(status=status[:3], **{name.lower(): value for name, value in headers})

    result = app.wsgi(own, start)
    try:
        body = b"".join(result)
    finally:
        own.get(http_io.CLOSE_USE, _nothing)()
        getattr(result, "close", _nothing)()
    if said["status"] != "200" or said.get("content-type") != "application/json" or len(body) > MAX_BYTES:
        return None
    return EmbeddedAnswer(said.get("etag"), body)


def _nothing() -> None:
    """No use was opened."""
