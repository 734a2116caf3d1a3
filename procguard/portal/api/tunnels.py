"""The route with which a deployment has a host's tunnel opened. Tunnels themselves are the manager's
(manager/tunnels.py)."""

from __future__ import annotations

from typing import Any, Protocol

import bottle

from procguard.agent_api import http_io
from procguard.errors import Conflict

OPEN_TIMEOUT_S = 40.0  # the first one logs in


class Opener(Protocol):
    def open(self, host: str, timeout_s: float) -> dict[str, Any]:
        """{"state", "port", "reason"}; raises NotFound, Conflict."""
        ...


class TunnelsApi:
    """`tunnels`: None where a manager keeps none (in tests)."""

    def __init__(self, tunnels: Opener | None) -> None:
        self._tunnels = tunnels

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/hosts/<host>/tunnel", "POST", http_io.answered(self._open))

    def _open(self, host: str) -> dict[str, Any]:
        if self._tunnels is None:
            raise Conflict("this manager keeps no tunnels", "restart the manager")
        known = self._tunnels.open(host[:100], OPEN_TIMEOUT_S)
        ok = known["state"] == "up"
        reason = "" if ok else str(known.get("reason") or f"not open after {OPEN_TIMEOUT_S:.0f} s")
        return {"host": host, "ok": ok, "url": f"http://127.0.0.1:{known['port']}" if ok else "", "reason": reason}
