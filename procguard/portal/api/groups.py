"""GET /api/groups: every group with its members, and what its gang is doing (docs/groups.md)."""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.fleet.registry import Registry


class GroupsApi:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/groups", "GET", http_io.answered(self._groups))

    def _groups(self) -> dict[str, Any]:
        return {"groups": self._registry.gangs.views()}
