"""What happened and why: events by filter, their export as JSON lines, a worker explained, incidents of silent hosts.

Reads only. Knows HTTP and the registry's queries; what an event means is in fleet/history/events.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import bottle

from procguard import hints
from procguard.agent_api import http_io
from procguard.agent_api.handlers import checked_worker_id
from procguard.errors import UsageError
from procguard.fleet.history import explain
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.i18n import words
from procguard.portal.logs.query import parse_since
from remote_agent.protocol import states

LAST_WORDS_LINES = 50  # of a failed attempt, that its event leads to
LINES_PER_PIECE = 200  # of an export


class HistoryApi:
    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def mount(self, app: bottle.Bottle) -> None:
        for method, path, handler in (
            ("GET", "/api/events", self._events),
            ("GET", "/api/recoveries", self._recoveries),
            ("GET", "/api/workers/<worker_id>/explain", self._explain),
        ):
            app.route(path, method, http_io.answered(handler))

    def _events(self) -> Any:
        query = read_query()
        shape = http_io.query_text("format") or "json"
        if shape == "jsonl":
            headers = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
            return bottle.HTTPResponse(_lines(self._registry.event_log.stream(query)), 200, headers)
        if shape != "json":
            raise UsageError(f"format={shape[:20]!r}: not known", "use format=json or format=jsonl")
        events = self._registry.find_events(query, http_io.query_int("limit", 200, 1, 10_000))
        return {"events": [with_last_words(event) for event in events]}

    def _recoveries(self) -> dict[str, Any]:
        return {"recoveries": self._registry.recoveries()}

    def _explain(self, worker_id: str) -> dict[str, Any]:
        now = clock.read()
        language = words.pick(http_io.query_text("lang"), bottle.request.environ.get("HTTP_ACCEPT_LANGUAGE"))
        facts = explain.gather(self._registry, checked_worker_id(worker_id), now)
        said = explain.explain(facts, language)
        told = dataclasses.asdict(said)
        told["next_steps"] = [hints.commands(step) for step in told["next_steps"]]
        return {
            "worker_id": worker_id,
            "state": facts.worker["state"],
            "language": language,
            "at": clock.iso(now.wall),
            **told,
        }


def read_query() -> EventQuery:
    """The filters of this request; several values of one are separated by commas."""

    def several(name: str) -> tuple[str, ...]:
        return tuple(one for one in http_io.query_text(name, 4096).split(",") if one)

    def moment(name: str) -> float | None:
        text = http_io.query_text(name)
        return parse_since(text, clock.read().wall, name) if text else None

    return EventQuery(
        after=http_io.query_int("after", 0, 0, 2**53),
        worker=several("worker"),
        host=several("host"),
        kind=several("kind"),
        cause=several("cause"),
        actor=several("actor"),
        operation=several("operation"),
        since=moment("since"),
        until=moment("until"),
        text=http_io.query_text("q"),
    )


def _lines(events: Iterator[dict[str, Any]]) -> Iterator[bytes]:
    """One JSON object a line, a piece at a time."""
    piece: list[bytes] = []
    for event in events:
        piece.append(http_io.dumps(with_last_words(event)) + b"\n")
        if len(piece) >= LINES_PER_PIECE:
            yield b"".join(piece)
            piece.clear()
    yield b"".join(piece)


def with_last_words(event: dict[str, Any]) -> dict[str, Any]:
    """A worker's failure says where the last lines of the failed attempt are."""
    if event.get("after") != states.FAILED or not event.get("worker_id") or event.get("attempt") is None:
        return event
    path = f"/api/remote-workers/{quote(event['worker_id'], safe='')}/logs"
    return {**event, "logs": f"{path}?attempt={event['attempt']}&tail={LAST_WORDS_LINES}"}
