"""Routing for channels without HTTP: selects the route of `AgentApi`, identifies the caller, and formats refusals.

Uses the same addresses and error format as HTTP. Knows nothing of the responses.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

from procguard.agent_api import http_io
from procguard.agent_api.handlers import AgentRoute, Answer
from procguard.agent_api.interface import Access, Principal
from procguard.errors import NotFound, ProcGuardError, Refused, UsageError

log = logging.getLogger(__name__)

MAX_TARGET_CHARS = 16 * 1024
MAX_PARAMETERS = 100


class MethodNotAllowed(ProcGuardError):
    http_status = 405
    default_code = "method_not_allowed"


class FoundRoute(NamedTuple):
    """`handler(call, *arguments)` returns the response; `arguments`: the id in the path, if any."""

    path: str  # the route's
    handler: Callable[..., Answer]
    arguments: tuple[str, ...]
    query: Mapping[str, str]


class RouteTable:
    def __init__(self, routes: Iterable[AgentRoute]) -> None:
        self._routes: dict[tuple[str, ...], dict[str, AgentRoute]] = {}
        for route in routes:
            shape = tuple("" if part.startswith("<") else part for part in route.path.strip("/").split("/"))
            self._routes.setdefault(shape, {})[route.method] = route

    def find(self, method: str, target: str) -> FoundRoute:
        """`target`: path and query, percent-encoded. Raises NotFound, MethodNotAllowed and UsageError. The result is
        not cached, because the caller is not identified yet; connections cache their repeated requests themselves
        (agent_api/zmq/call.py)."""
        path, _, query = target[:MAX_TARGET_CHARS].partition("?")
        if query.count("&") >= MAX_PARAMETERS:
            raise UsageError(f"more than {MAX_PARAMETERS} parameters in the address", "see docs/protocol.md")
        shape, name = self._shape(tuple(path.strip("/").split("/")))
        methods = self._routes.get(shape)
        if methods is None:
            raise NotFound("no such route", "see the list of routes in docs/protocol.md")
        route = methods.get(method)
        if route is None:
            raise MethodNotAllowed("this route does not accept that method", f"it takes {', '.join(methods)}")
        arguments = (unquote(name),) if route.name else ()
        return FoundRoute(route.path, route.handler, arguments, dict(parse_qsl(query, keep_blank_values=True)))

    def _shape(self, parts: tuple[str, ...]) -> tuple[tuple[str, ...], str]:
        if parts in self._routes:  # a path without an id: /api/workers/register
            return parts, ""
        return (*parts[:2], "", *parts[3:]), parts[2] if len(parts) > 2 else ""


def caller_by_secret(access: Access, secret_sha256: str, own_secret_sha256: str, where: str) -> Principal:
    """The caller that authenticated with this secret on a connection; looked up for each request, so that revocation is
    immediate.

    Raises Refused for an unknown secret. `own_secret_sha256`: that of a launcher that registers.
    """
    if not secret_sha256:
        return Principal("anonymous", where, reason="this connection has shown no secret")
    caller = access.by_secret(secret_sha256, where)
    if caller is not None:
        return caller
    if secret_sha256 == own_secret_sha256:
        return Principal("anonymous", where, reason="it is not known yet")
    raise Refused(
        "this secret is not known here (revoked, or of another fleet)",
        "deploy the host again, or have the launcher approved",
    )


def refusal(exc: Exception, where: str) -> Answer:
    """The response for an exception in the common format; a bug becomes a 500 without a traceback. Within `except`
    only."""
    identifier = secrets.token_hex(8)
    if isinstance(exc, ProcGuardError):
        return Answer(exc.http_status, http_io.refusal_body(exc, identifier))
    log.exception("request failed request_id=%s peer=%s", identifier, where)
    return Answer(500, http_io.internal_error_body(identifier))
