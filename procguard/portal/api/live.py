"""GET /api/live/workers and /api/live/hosts: the lists' snapshots, compressed, for the live protocol to go on from."""

from __future__ import annotations

import gzip

import bottle
import gevent

from procguard.agent_api import http_io
from procguard.errors import NotFound
from procguard.portal.live.hub import LiveHub

LEVEL = 6


class LiveApi:
    def __init__(self, hub: LiveHub) -> None:
        self._hub = hub

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/live/<name>", "GET", http_io.answered(self._snapshot))

    def _snapshot(self, name: str) -> bottle.HTTPResponse:
        body = self._hub.snapshot(name)
        if body is None:
            raise NotFound(f"no list {name[:40]!r}", "there are workers and hosts")
        headers = {"Content-Type": "application/json"}
        if "gzip" in (bottle.request.get_header("Accept-Encoding") or ""):
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            # off the event loop: a megabyte takes some 20 ms
            body = gevent.get_hub().threadpool.apply(gzip.compress, (body, LEVEL))
        return bottle.HTTPResponse(body, 200, headers)
