"""The HTTP server of a standby: reports that it is alive and which manager leads.

    /healthz                    200
    /readyz                     503 standby
    GET of a page or the API    307 to the leader
    anything else               421 standby, with the managers' URLs, the leader's first; /api/hello with a proof of it

It never forwards requests, because a forwarded request would reach the leader as one of the manager's own user. Keeps
no state except what the seat has read. Does not know the fleet; agent_api defines the agents' routes.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, quote
from wsgiref.types import WSGIEnvironment

from procguard.agent_api import http_io
from procguard.agent_api.declaration import routes_of
from procguard.agent_api.handlers import AgentApi
from procguard.config.schema import Config
from procguard.fleet.leadership import NotLeading
from procguard.fleet.model.epochs import proof_key_of
from procguard.json_types import Json
from procguard.manager.seat import Seat
from procguard.portal.http import own_addresses, sockets
from procguard.portal.http import server as http_server
from procguard.portal.http.middleware import RequestMiddleware
from procguard.tls import certificates as tls
from remote_agent.protocol import leadership as wire

log = logging.getLogger(__name__)

STOP_GRACE_S = 1.0
MAX_QUERY_CHARS = 4_000
_HELLO = "/api/hello"
_CA = "/api/ca"  # requested by launchers
SHORTEST_RETRY_S, LONGEST_RETRY_S = 0.5, 3.0  # between two hellos of an agent
HELLOS_PER_S = 2_500
ASKED_S = 10.0  # an agent counts as connecting here if it sent a request within this time
_QUERY_SAFE = "/:@!$&'()*+,;=~?%"
_JSON = [("Content-Type", "application/json")]


class StandbyServer:
    """Listens on web.port until `stop`, which leaves the listening socket to the manager that begins to lead."""

    def __init__(self, config: Config, seat: Seat) -> None:
        self._config = config
        self._seat = seat
        agents = {(one.method, one.path) for one in routes_of(AgentApi)}
        self._asked: dict[str, float] = {}  # agent of the fleet -> monotonic time of its last request here
        self._agents_gets = [path.partition("<")[0::2] for method, path in agents if method == "GET"]
        self.listener = sockets.listen(config.web.host, config.web.port)
        self.port = int(self.listener.getsockname()[1])
        scheme = "http" if config.web.tls.mode == "off" else "https"
        self.urls = own_addresses.manager_urls(config.web.advertise, scheme, config.web.host, self.port)
        names = tls.names_for(own_addresses.all_own(), config.web.advertise, config.web.host)
        self._certificates = tls.open_certificates(config, names, datetime.now(timezone.utc))
        self._server = http_server.Server(
            self.listener.dup(),
            RequestMiddleware(self.answer, _count_nothing),
            limits=config.web.limits,
            tls=self._certificates.context if self._certificates is not None else None,
        )

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Accept no more connections. Those waiting in the listening socket are served after this manager leads."""
        self._server.stop_accepting()
        self._server.stop(timeout=STOP_GRACE_S)

    # ------------------------------------------------------------------------------------------ answering

    def answer(self, environ: WSGIEnvironment, start_response: Callable[..., Any]) -> Iterable[bytes]:
        method, path = environ.get("REQUEST_METHOD", ""), environ.get("PATH_INFO", "")
        if path == "/healthz":
            return _sent(start_response, "200 OK", {"status": "ok"})
        refusal = NotLeading(self._seat)
        body = http_io.refusal_body(refusal, environ.get("procguard.request_id", ""))
        body = http_io.with_localized(body, environ.get("HTTP_ACCEPT_LANGUAGE"))
        if path == "/readyz":
            return _sent(start_response, "503 Service Unavailable", body)
        urls = self._seat.manager_urls() if self._seat.leader else []
        if method in ("GET", "HEAD") and urls and not self._is_agents(path) and path != "/ws":
            where = urls[0] + _target(environ)
            return _sent(start_response, "307 Temporary Redirect", body, [("Location", where)])
        if path == _HELLO:
            body |= {"retry_s": self._retry_s(), **self._proof(environ, body)}
        return _sent(start_response, "421 Misdirected Request", body)

    def _retry_s(self) -> float:
        """The retry delay for agents, so that the requests of a fleet without a leader do not slow down the
        takeover."""
        agents = len(self._seat.warm.tables.get("agents", {}))
        return min(LONGEST_RETRY_S, max(SHORTEST_RETRY_S, agents / HELLOS_PER_S))

    def _is_agents(self, path: str) -> bool:
        return path == _CA or any(
            path.startswith(head) and (not tail or path.endswith(tail.partition(">")[2]))
            for head, tail in self._agents_gets
        )

    def _proof(self, environ: WSGIEnvironment, body: Json) -> Json:
        """The proof by which an agent verifies that this is a manager of its fleet and trusts the list of URLs."""
        asked = parse_qs(environ.get("QUERY_STRING", "")[:MAX_QUERY_CHARS])
        agent_id, nonce, to = (asked.get(name, [""])[0] for name in ("agent", "nonce", "to"))
        key = self.proof_key(agent_id)
        if key:
            self._asked[agent_id] = time.monotonic()
        if not key or not nonce:
            return {}
        return {"proof": wire.standby_proof(key, agent_id, nonce, to, body["term"], body["managers"])}

    def asked_by(self) -> int:
        """The number of agents that recently sent requests here. Not authenticated, because a hello proves nothing."""
        oldest = time.monotonic() - ASKED_S
        self._asked = {agent_id: at for agent_id, at in self._asked.items() if at >= oldest}
        return len(self._asked)

    def proof_key(self, agent_id: str) -> str:
        """The agent's proof key, as in the leader's state (fleet/state.py); "" if the agent is unknown."""
        warm = self._seat.warm
        fleet, agent = warm.record("fleet", "fleet"), warm.record("agents", agent_id)
        if fleet is None or agent is None:
            return ""
        return proof_key_of(str(fleet["fleet_key"]), agent_id, int(agent.get("key_generation") or 0))


def _sent(
    start_response: Callable[..., Any], status: str, body: Json, headers: list[tuple[str, str]] | None = None
) -> list[bytes]:
    start_response(status, [*_JSON, *(headers or [])])
    return [http_io.dumps(body)]


def _target(environ: WSGIEnvironment) -> str:
    """The path and query of the request, quoted."""
    path = quote(environ.get("PATH_INFO", "").encode("latin-1", "replace"), safe="/:@!$&'()*+,;=~")
    query = environ.get("QUERY_STRING", "")
    return f"/{path.lstrip('/')}" + (f"?{quote(query, safe=_QUERY_SAFE)}" if query else "")


def _count_nothing(_route: str, _method: str, _status: int, _seconds: float) -> None:
    """Requests to a standby are not counted in metrics."""
