"""The HTTP channel: the agents' routes (handlers.py) as routes of the web application. Always enabled.

Owns how an HTTP request becomes a `Call`; the responses come from `AgentApi`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import parse_qsl
from wsgiref.types import WSGIEnvironment

import bottle

from procguard.agent_api import decode, http_io
from procguard.agent_api.handlers import AgentApi, AgentRoute, Answer, Call
from procguard.agent_api.interface import Access, Principal
from procguard.agent_api.sessions import SIGNED, Signed
from procguard.errors import UsageError


class HttpChannel:
    """`mount` adds the routes to the application. `direct`: callers can reach the manager's other ports as well."""

    name = "http"

    def __init__(self, agent_api: AgentApi, access: Access, direct: bool = True) -> None:
        self._agent_api = agent_api
        self._access = access
        self._direct = direct

    def start(self) -> None:
        """Nothing to do: the application's server listens."""

    def stop(self) -> None:
        """Nothing to do: the server ends the channel."""

    def mount(self, app: bottle.Bottle) -> None:
        for route in self._agent_api.routes():
            answer = _signed(http_io.answered(functools.partial(self._answer, route)))
            app.route(route.path, route.method, answer, who=route.who)

    def frequent(self) -> list[tuple[str, str, Callable[[WSGIEnvironment, str], Answer]]]:
        """The requests that every agent repeats, for a server with a fast path: (method, path, answer).
        `answer(environ, id)` may raise ProcGuardError; the id is "" if the path has none."""
        return [
            (route.method, route.path, functools.partial(self._answer_shortly, route))
            for route in self._agent_api.routes()
            if route.often
        ]

    def _answer_shortly(self, route: AgentRoute, environ: WSGIEnvironment, subject: str) -> Answer:
        call = HttpCall(environ, self._access, parsed_query(environ["QUERY_STRING"]))
        call.direct = self._direct
        return route.handler(call, subject) if route.name else route.handler(call)

    def _answer(self, route: AgentRoute, **names: str) -> bottle.HTTPResponse:
        call = HttpCall(bottle.request.environ, self._access, bottle.request.query)
        call.direct = self._direct
        answer = route.handler(call, names[route.name]) if route.name else route.handler(call)
        return bottle.HTTPResponse(decode.dumps(answer.message), answer.status, http_io.JSON)


def parsed_query(query: str) -> dict[str, str]:
    """As parse_qsl, whose unescaping takes most of its time and is rarely needed."""
    if "%" in query or "+" in query:
        return dict(parse_qsl(query))
    pairs = (pair.partition("=") for pair in query.split("&"))
    return {name: value for name, _, value in pairs if value}


def _signed(handler: Callable[..., Any]) -> Callable[..., Any]:
    """Add the session's MAC to the response, including refusals."""

    @functools.wraps(handler)
    def wrapper(**names: Any) -> Any:
        answer = handler(**names)
        signed: Signed | None = bottle.request.environ.get(SIGNED)
        if signed is not None and isinstance(answer, bottle.HTTPResponse):
            answer.set_header(*signed.header(answer.status_code, answer.body))
        return answer

    return wrapper


class HttpCall(Call):
    __slots__ = ("_access", "_body", "_environ")

    def __init__(self, environ: WSGIEnvironment, access: Access, query: Mapping[str, str]) -> None:
        declared = environ.get("CONTENT_LENGTH")
        super().__init__(
            query,
            environ.get("REMOTE_ADDR", ""),
            int(declared) if declared else None,
            environ.get("procguard.socket"),
        )
        self._environ = environ
        self._access = access
        self._body: bytes | None = None  # None until it has been read

    @property
    def proven(self) -> bool:
        return SIGNED in self._environ

    def sealed(self, secret: str) -> str:
        signed: Signed | None = self._environ.get(SIGNED)
        return signed.seal(secret) if signed is not None and secret else secret

    @property
    def arrived_at(self) -> str:
        if self.sock is None or self._environ.get(http_io.PROXIED):
            return ""
        try:
            return str(self.sock.getsockname()[0])
        except OSError:
            return ""

    def identify(self, own_secret_sha256: str = "") -> Principal:
        caller = self._access.identify(self._environ, own_secret_sha256, of_agents=not own_secret_sha256)
        self._check_body()
        return caller

    def read(self, max_bytes: int) -> bytes:
        self._body = http_io.read_body(self._environ, max_bytes)
        self._check_body()
        return self._body

    def _check_body(self) -> None:
        """Verify in a session that the body is the signed one. Raises UsageError."""
        signed: Signed | None = self._environ.get(SIGNED)
        if signed is not None and self._body is not None and not signed.is_body(self._body):
            raise UsageError("the body is not the one that was signed", "send it again", code="body_altered")
