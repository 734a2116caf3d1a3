"""What is gone for good, taken out of the fleet in one request: preview, then its token. Rules:
fleet/workers/purge.py."""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.interface import Access, Principal
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.fleet.workers.purge import Purge
from procguard.portal.api import requests
from procguard.runtime.cooperative import give_way

TOKEN_HINTS = {"token": ("", "ask for a preview first: POST /api/purge/preview")}


class PurgeApi:
    def __init__(self, registry: Registry, access: Access) -> None:
        self._purge = Purge(registry, give_way, clock.read())
        self._access = access

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/purge/preview", "POST", http_io.answered(self._preview))
        app.route("/api/purge", "POST", http_io.answered(self._carry_out))

    def _operator(self) -> Principal:
        return self._access.admitted(bottle.request.environ)

    def _preview(self) -> dict[str, Any]:
        caller, asked = self._operator(), requests.read(requests.PurgePreviewRequest)
        http_io.note_change(f"a look at what is gone for {asked.silent_s:.0f} s")
        return self._purge.preview(asked.silent_s, caller.actor, clock.read(), caller.identity)

    def _carry_out(self) -> dict[str, Any]:
        caller, asked = self._operator(), requests.read(requests.PurgeRequest, hints=TOKEN_HINTS)
        done = self._purge.carry_out(asked.token, caller.actor, clock.read(), caller.identity)
        http_io.note_change(f"{done['taken_out']} workers taken out, {done['refused']} refused")
        return done
