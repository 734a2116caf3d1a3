"""Where tasks may go: cordons of hosts, and an operator's move of a worker to another host.

Says who is asking and checks what was sent; the rules are in fleet/workers/places.py.
"""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.handlers import checked_worker_id
from procguard.agent_api.interface import Access
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.portal.api import requests

MOVE_HINTS = {"host": ("", 'say where to, e.g. {"host": "gpu02"}')}


class PlacesApi:
    def __init__(self, registry: Registry, access: Access) -> None:
        self._registry = registry
        self._access = access

    def mount(self, app: bottle.Bottle) -> None:
        for path, handler in (
            ("/api/hosts/<host>/cordon", self._cordon),
            ("/api/hosts/<host>/uncordon", self._uncordon),
            ("/api/workers/<worker_id>/move", self._move),
        ):
            app.route(path, "POST", http_io.answered(handler))

    def _operator(self) -> str:
        return self._access.admitted(bottle.request.environ).actor

    def _cordon(self, host: str) -> dict[str, Any]:
        actor = self._operator()
        reason = requests.read_optional(requests.ReasonRequest).reason
        http_io.note_change(reason)
        self._registry.cordon(host[:100], reason, actor, clock.read())
        return {"host": host, "status": "cordoned"}

    def _uncordon(self, host: str) -> dict[str, Any]:
        self._registry.uncordon(host[:100], self._operator(), clock.read())
        return {"host": host, "status": "uncordoned"}

    def _move(self, worker_id: str) -> bottle.HTTPResponse:
        actor = self._operator()
        worker_id = checked_worker_id(worker_id)
        host = requests.read_optional(requests.MoveRequest, hints=MOVE_HINTS).host
        http_io.note_change(f"to {host}")
        self._registry.move(worker_id, host, actor, clock.read())
        return http_io.json_response({"worker_id": worker_id, "host": host, "status": "moving"}, 202)
