"""The lists' snapshots, compressed, for the live protocol to go on from."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from typing import Any, ClassVar

import bottle
import gevent

from procguard.agent_api.declaration import get
from procguard.errors import NotFound
from procguard.portal.api.resource import Resource

LEVEL = 6


@dataclass(frozen=True)
class LiveRows:
    """Rows in slots, told as columns (docs/protocol.md, Live lists): `slots` as differences, a column as its values or
    as `{"of": distinct values, "at": an index for each}`."""

    epoch: str
    topic: str
    seq: int
    key: str
    slots: list[int]
    columns: dict[str, Any]


class LiveApi(Resource):
    for_pages: ClassVar[bool] = True

    @get(
        "/api/live/<name>",
        "viewer",
        tag="hosts",
        zh="列式快照：workers 或 hosts",
        answers={200: LiveRows},
        errors=(404,),
    )
    def snapshot(self, name: str) -> bottle.HTTPResponse:
        """The list of `workers` or `hosts` in columns, for the live protocol to go on from.

        [Below](#live-lists).
        """
        body = self.services.hub.snapshot(name)
        if body is None:
            raise NotFound(f"no list {name[:40]!r}", "there are workers and hosts")
        headers = {"Content-Type": "application/json"}
        if "gzip" in (bottle.request.get_header("Accept-Encoding") or ""):
            headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
            # off the event loop: a megabyte takes some 20 ms
            body = gevent.get_hub().threadpool.apply(gzip.compress, (body, LEVEL))
        return bottle.HTTPResponse(body, 200, headers)
