"""The manager's end of tunnels: a loopback port that serves agents' routes only.

A tunnel's connections come from this machine and the manager's own user, but are controlled by the remote host.
Therefore no caller is an operator here: only agents' secrets and enrolment tokens are accepted.
"""

from __future__ import annotations

from collections.abc import Callable
from wsgiref.types import WSGIEnvironment

import bottle

from procguard.agent_api.handlers import AgentApi
from procguard.agent_api.http import HttpChannel
from procguard.agent_api.interface import Access, Principal
from procguard.agent_api.sessions import SIGNED
from procguard.config.limits import WebLimits
from procguard.portal.http import server as http_server
from procguard.portal.http import sockets
from procguard.portal.http.fast_path import Counter, FastPath
from procguard.portal.http.middleware import RequestMiddleware

NOT_HERE = "this address is for agents only"
# Headers that could identify an operator are removed; the rules for agents are the same as everywhere.
_LEFT_OUT = ("HTTP_COOKIE", "procguard.socket")


class AgentsOnly:
    """The portal's access control, limited to agents."""

    def __init__(self, access: Access) -> None:
        self._access = access

    def identify(self, environ: WSGIEnvironment, own_secret_sha256: str = "", of_agents: bool = False) -> Principal:
        bare = {name: value for name, value in environ.items() if name not in _LEFT_OUT}
        try:
            caller = self._access.identify(bare, own_secret_sha256, of_agents)
        finally:
            if SIGNED in bare:  # refusals are signed as well
                environ[SIGNED] = bare[SIGNED]
        if caller.kind in ("agent", "enroll"):
            return caller
        return Principal("anonymous", f"somebody at {environ.get('REMOTE_ADDR', '?')}, by a tunnel", reason=NOT_HERE)

    def by_secret(self, secret_sha256: str, address: str = "") -> Principal | None:
        caller = self._access.by_secret(secret_sha256, address)
        return caller if caller is not None and caller.kind in ("agent", "enroll") else None

    def admitted(self, environ: WSGIEnvironment) -> Principal:
        return self.identify(environ)

    def hold(self, caller: Principal, end: Callable[[], None]) -> Callable[[], None]:
        return self._access.hold(caller, end)

    def check_agent(self, caller: Principal, agent_id: str) -> Principal:
        return self._access.check_agent(caller, agent_id)

    def check_worker_agent(self, caller: Principal, worker_id: str, operator_too: bool = False) -> Principal:
        return self._access.check_worker_agent(caller, worker_id)


def application(
    agent_api: AgentApi, access: Access, errors_as_json: Callable[[bottle.HTTPError], bytes]
) -> bottle.Bottle:
    """The application with agents' routes only; others are 404."""
    app = bottle.Bottle()
    app.default_error_handler = errors_as_json
    HttpChannel(agent_api, AgentsOnly(access), direct=False).mount(app)
    return app


def server(
    agent_api: AgentApi,
    access: Access,
    errors_as_json: Callable[[bottle.HTTPError], bytes],
    count: Counter,
    limits: WebLimits,
) -> http_server.Server:
    """Create the server on a free loopback port. Raises ProcGuardError if there is none.

    Its connections have a limiter of their own: all come from 127.0.0.1, and a host that opens too many must not
    displace the operator's.
    """
    frequent = HttpChannel(agent_api, AgentsOnly(access), direct=False).frequent()
    return http_server.Server(
        sockets.listen("127.0.0.1", 0),
        RequestMiddleware(application(agent_api, access, errors_as_json), count),
        fast_path=FastPath(frequent, count),
        limits=limits,
    )
