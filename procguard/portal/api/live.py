"""Compressed snapshots of the lists, from which the live protocol continues, and the description of their fields."""

from __future__ import annotations

import gzip
import hashlib
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import bottle
import gevent
from typing_extensions import TypedDict

from procguard.agent_api.declaration import get, text
from procguard.agent_api.http_io import dumps
from procguard.errors import NotFound
from procguard.fields import ShownField
from procguard.fleet.shapes.events import EVENT
from procguard.fleet.shapes.hosts import HOST
from procguard.fleet.shapes.workers import WORKER
from procguard.json_types import Json
from procguard.portal.api.access import SessionAnswer, current_session
from procguard.portal.api.resource import Resource
from procguard.portal.http.embedding import MAX_PATHS, embedded, read_paths
from procguard.portal.http.web_files import accepted

LEVEL = 6
PACKED_FROM_BYTES = 1_000


@dataclass(frozen=True)
class LiveRows:
    """Rows in slots, encoded as columns (docs/protocol.md, Live lists). `slots`: differences between successive slots.
    A column: its values, or `{"of": distinct values, "at": an index for each row}`."""

    epoch: str
    topic: str
    seq: int
    key: str
    slots: list[int]
    columns: Json


class LabelAnswer(TypedDict):
    en: str
    zh: str


class ColumnAnswer(TypedDict):
    """`key`: the column's name in the page's address. `narrow`: its width on a small screen; null if it is hidden
    there."""

    key: str
    width: str
    narrow: str | None
    usual: bool


class FieldAnswer(TypedDict):
    """`part_of`: the object of the response that contains the field. `live`: the message of the live feed that carries
    it; "" if none does."""

    name: str
    unit: str
    part_of: str
    live: Literal["row", "measure", ""]
    sortable: bool
    label: LabelAnswer | None
    column: ColumnAnswer | None
    says: str


@dataclass(frozen=True)
class FieldsAnswer:
    workers: list[FieldAnswer]
    hosts: list[FieldAnswer]
    events: list[FieldAnswer]


class FieldsApi(Resource):
    @get("/api/fields", "anyone", tag="manager", zh="worker、主机与事件的字段")
    def fields(self) -> FieldsAnswer:
        """The fields of a worker, a host and an event: units, labels, columns.

        The portal builds its columns from it. It contains nothing about this fleet, so anyone may read it.
        """
        return all_fields()


def all_fields() -> FieldsAnswer:
    return FieldsAnswer(*([_field(one) for one in fields] for fields in (WORKER, HOST, EVENT)))


def _field(one: ShownField[Any]) -> FieldAnswer:
    column, key = one.column, one.chosen_as
    return {
        "name": one.name,
        "unit": one.unit,
        "part_of": one.part_of,
        "live": one.fed,
        "sortable": one.sortable or one.unit in ("percent", "bytes", "bytes_per_s"),
        "label": {"en": one.label.en, "zh": one.label.zh} if one.label else None,
        "column": {"key": key, "width": column.width, "narrow": column.narrow, "usual": column.usual}
        if key and column
        else None,
        "says": one.says,
    }


@dataclass(frozen=True)
class Embedded:
    """The response of another route; `etag`: its ETag."""

    etag: str | None
    body: Any


@dataclass(frozen=True)
class LiveBeginning:
    """`session`: the response of GET /api/session; the lists are null for callers without the right to read them.
    `also`: responses of the routes that the query names, by path."""

    session: SessionAnswer
    workers: LiveRows | None
    hosts: LiveRows | None
    also: dict[str, Embedded]


@dataclass(frozen=True)
class BeginningQuery:
    also: str = text(
        f"a JSON list of at most {MAX_PATHS} paths of other routes whose responses the page needs", max_chars=8_000
    )


# Routes that a page may need besides the lists. The manager answers them itself, immediately, and they change nothing.
ALSO = (
    "/api/alerts",
    "/api/audit",
    "/api/events",
    "/api/gpus",
    "/api/groups",
    "/api/logs/archive",
    "/api/logs/retention",
    "/api/managers",
    "/api/measurements/hosts/<agent_id>",
    "/api/measurements/workers/<worker_id>",
    "/api/mutes",
    "/api/notifications",
    "/api/operations/<operation_id>",
    "/api/recoveries",
    "/api/releases",
    "/api/remote-workers/<worker_id>/logs",
    "/api/tokens",
    "/api/workers/<worker_id>/explain",
    "/api/workers/<worker_id>/spec",
)


class LiveApi(Resource):
    for_pages: ClassVar[bool] = True

    @get("/api/live", "anyone", tag="hosts", zh="门户启动所需：会话与两份快照", answers={200: LiveBeginning})
    def beginning(self, query: BeginningQuery) -> bottle.HTTPResponse:
        """The portal's initial data in one response: the browser's session and the snapshots of both lists.

        Anyone may call it; the lists are null for callers without the right to read them. `also` names other routes
        that the page reads first; a route that does not return JSON with status 200 within a second is left out.
        """
        paths = read_paths(query.also)
        session = current_session(self.services)
        also = embedded(bottle.request.environ, paths, ALSO) if session.role else {}
        body = b'{"session":' + dumps(session)
        for name in ("workers", "hosts"):
            rows = self.services.hub.snapshot(name) if session.role else None
            body += f',"{name}":'.encode() + (rows or b"null")
        more = (b'%s:{"etag":%s,"body":%s}' % (dumps(path), dumps(one.etag), one.body) for path, one in also.items())
        return packed(body + b',"also":{' + b",".join(more) + b"}}")

    @get(
        "/api/live/<name>",
        "viewer",
        tag="hosts",
        zh="列式快照：workers 或 hosts",
        answers={200: LiveRows},
        errors=(404,),
    )
    def snapshot(self, name: str) -> bottle.HTTPResponse:
        """A snapshot of the list `workers` or `hosts` in columns, from which the live protocol continues.

        [Below](#live-lists).
        """
        body = self.services.hub.snapshot(name)
        if body is None:
            raise NotFound(f"no list {name[:40]!r}", "there are workers and hosts")
        return packed(body)


def packed(body: bytes, *, known: bool = False) -> bottle.HTTPResponse:
    """A JSON response, compressed with gzip if the client accepts it. `known`: add an ETag, and return 304 if the
    client already has this version."""
    headers = {"Content-Type": "application/json", "Vary": "Accept-Encoding"}
    if known:
        headers["ETag"] = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
        if headers["ETag"] in (bottle.request.get_header("If-None-Match") or ""):
            return bottle.HTTPResponse(b"", 304, headers)
    if len(body) >= PACKED_FROM_BYTES and "gzip" in accepted(bottle.request.get_header("Accept-Encoding") or ""):
        headers["Content-Encoding"] = "gzip"
        # off the event loop: a megabyte takes some 20 ms
        body = gevent.get_hub().threadpool.apply(gzip.compress, (body, LEVEL))
    return bottle.HTTPResponse(body, 200, headers)
