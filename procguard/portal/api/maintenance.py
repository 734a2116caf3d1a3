"""An agent's restart, its upgrade and its own log, asked for in the portal. The rules are in
fleet/agents/maintenance.py."""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.interface import Access
from procguard.errors import Conflict
from procguard.fleet.agents.maintenance import AgentCare, Wish

DEFAULT_LOG_BYTES, MAX_LOG_BYTES = 64 * 1024, 256 * 1024


class AgentCareApi:
    """`care`: None where a manager has no SSH helper (in tests)."""

    def __init__(self, care: AgentCare | None, access: Access) -> None:
        self._given = care
        self._access = access

    def mount(self, app: bottle.Bottle) -> None:
        for method, path, handler in (
            ("POST", "/api/hosts/<host>/restart-agent", self._restart),
            ("POST", "/api/hosts/<host>/upgrade-agent", self._upgrade),
            ("GET", "/api/hosts/<host>/agent-log", self._log),
        ):
            app.route(path, method, http_io.answered(handler))

    @property
    def _care(self) -> AgentCare:
        if self._given is None:
            raise Conflict("this manager runs without its SSH helper", "restart the manager")
        return self._given

    def _restart(self, host: str) -> bottle.HTTPResponse:
        return self._begin("restart", host)

    def _upgrade(self, host: str) -> bottle.HTTPResponse:
        return self._begin("upgrade", host)

    def _begin(self, wish: Wish, host: str) -> bottle.HTTPResponse:
        actor = self._access.admitted(bottle.request.environ).actor
        seq = self._care.begin(wish, host[:100], actor)
        return http_io.json_response({"host": host, "status": "accepted", "seq": seq}, 202)

    def _log(self, host: str) -> dict[str, Any]:
        return self._care.log(host[:100], http_io.query_int("bytes", DEFAULT_LOG_BYTES, 1, MAX_LOG_BYTES))
