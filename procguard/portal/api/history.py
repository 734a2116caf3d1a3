"""History: filtered events, their export as JSON lines, explanations of workers, incidents of silent hosts.

Read-only. Knows HTTP and the fleet's queries; fleet/history/events.py defines events.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast
from urllib.parse import quote

import bottle
from typing_extensions import NotRequired, TypedDict

from procguard import hints
from procguard.agent_api import http_io
from procguard.agent_api.declaration import JSON, LINES, choice, get, several, text, whole
from procguard.fleet.history import causes, explain
from procguard.fleet.history.explain import Happened, Sentence
from procguard.fleet.history.query import Event, EventQuery
from procguard.fleet.model import clock
from procguard.fleet.recovery.incident import Incident, IncidentStep
from procguard.fleet.shapes.events import EVENT
from procguard.i18n import words
from procguard.json_types import ReasonParams
from procguard.portal.api.openapi.types import answer_type
from procguard.portal.api.resource import Moment, Resource
from procguard.portal.logs.query import parse_since
from remote_agent.protocol import states

LAST_WORDS_LINES = 50  # last log lines of a failed attempt, to which its event links
LINES_PER_PIECE = 200  # lines per piece of an export


@dataclass(frozen=True)
class ChangesQuery:
    """Filters of the history; several values of one are alternatives."""

    worker: tuple[str, ...] = several()
    host: tuple[str, ...] = several()
    kind: tuple[str, ...] = several()
    actor: tuple[str, ...] = several()
    since: str = text("`2h`, ISO 8601 or Unix seconds")
    until: str = text("as `since`")
    q: str = text("words that the event contains")
    after: int = whole(0, 0, 2**53, "only events with a higher `seq`")
    before: int = whole(0, 0, 2**53, "only events with a lower `seq`")
    limit: int = whole(200, 1, 10_000)

    def wanted(
        self, cause: tuple[str, ...] = (), operation: tuple[str, ...] = (), reason_code: tuple[str, ...] = ()
    ) -> EventQuery:
        """The query with times parsed. Raises UsageError for an invalid time."""
        now_wall = clock.read().wall
        return EventQuery(
            after=self.after,
            before=self.before,
            worker=self.worker,
            host=self.host,
            kind=self.kind,
            cause=cause,
            actor=self.actor,
            operation=operation,
            reason_code=reason_code,
            since=parse_since(self.since, now_wall, "since") if self.since else None,
            until=parse_since(self.until, now_wall, "until") if self.until else None,
            text=self.q,
        )


@dataclass(frozen=True)
class EventsQuery(ChangesQuery):
    cause: tuple[str, ...] = several("`failure` stands for every cause that a host finds in a log's last lines")
    operation: tuple[str, ...] = several()
    reason_code: tuple[str, ...] = several("a code, or a prefix: `exit` matches `exit.code`, `exit.signal`, …")
    format: str = choice("json", "jsonl", default="json", says="`jsonl`: all events on disk, one object per line")


@dataclass(frozen=True)
class ExplainQuery:
    lang: str = text("`en` or `zh`; else by Accept-Language")


# -------------------------------------------------------------------------------------------------- response types


if TYPE_CHECKING:

    class EventAnswer(Event):
        logs: NotRequired[str | None]
else:
    EventAnswer = answer_type("Event", "What happened, and why.", EVENT, globals())


@dataclass(frozen=True)
class EventsAnswer:
    events: list[EventAnswer]


class ExplanationAnswer(TypedDict):
    worker_id: str
    state: str
    language: Literal["en", "zh"]
    at: Moment
    headline: str
    sentences: list[Sentence]
    next_steps: list[str]
    timeline: list[Happened]


class StepAnswer(TypedDict):
    at: Moment
    text: str
    text_code: str
    text_params: ReasonParams


class IncidentAnswer(TypedDict):
    host: str
    agent: str
    opened: Moment
    ended: Moment
    duration_s: float | None
    outcome: Literal["open", "recovered", "gave_up", "left"]
    starts: int
    steps: list[StepAnswer]


@dataclass(frozen=True)
class Recoveries:
    recoveries: list[IncidentAnswer]


# ------------------------------------------------------------------------------------------------ routes


class HistoryApi(Resource):
    @get("/api/events", "viewer", tag="history", zh="事件历史", answers={200: EventsAnswer}, media=(JSON, LINES))
    def events(self, query: EventsQuery) -> EventsAnswer | bottle.HTTPResponse:
        """Events: what happened and why.

        The newest events on disk or in memory, in chronological order ([below](#events)). `format=jsonl` streams all
        events on disk, one JSON object per line.
        """
        wanted = query.wanted(
            causes.named(query.cause, self.fleet.state.settings.causes), query.operation, query.reason_code
        )
        if query.format == "jsonl":
            headers = {"Content-Type": "application/x-ndjson", "X-Accel-Buffering": "no"}
            return bottle.HTTPResponse(_lines(self.fleet.state.event_log.stream(wanted)), 200, headers)
        found = [with_last_words(event) for event in self.fleet.state.find_events(wanted, query.limit)]
        return EventsAnswer(found)

    @get("/api/recoveries", "viewer", tag="history", zh="主机失去联系的事件")
    def recoveries(self) -> Recoveries:
        """Incidents of silent hosts with each step."""
        return Recoveries([_incident(one) for one in self.fleet.state.incidents()])

    @get("/api/workers/<worker_id>/explain", "viewer", tag="workers", zh="用文字解释它的现状", errors=(404,))
    def explain(self, worker_id: str, query: ExplainQuery) -> ExplanationAnswer:
        """Explain a worker's state in sentences.

        Includes what happened to the worker ([below](#a-worker-explained)).
        """
        now = clock.read()
        language = words.pick(query.lang, bottle.request.environ.get("HTTP_ACCEPT_LANGUAGE"))
        facts = explain.gather(self.fleet, worker_id, now)
        said = explain.explain(facts, language)
        return {
            "worker_id": worker_id,
            "state": facts.worker.state,
            "language": language,
            "at": clock.iso(now.wall),
            "headline": said.headline,
            "sentences": said.sentences,
            "next_steps": [hints.commands(step) for step in said.next_steps],
            "timeline": said.timeline,
        }


def _incident(incident: Incident) -> IncidentAnswer:
    ended = incident.ended
    return {
        "host": incident.host,
        "agent": incident.agent_id,
        "opened": clock.iso(incident.opened.wall),
        "ended": clock.iso(ended.wall) if ended else None,
        "duration_s": round(ended.monotonic - incident.opened.monotonic, 3) if ended else None,
        "outcome": incident.outcome,
        "starts": incident.starts,
        "steps": [_step(one) for one in incident.steps],
    }


def _step(step: IncidentStep) -> StepAnswer:
    code, params = step.text.code, step.text.params
    return {"at": clock.iso(step.at), "text": str(step.text), "text_code": code, "text_params": params}


def _lines(events: Iterator[Event]) -> Iterator[bytes]:
    """JSON lines, in chunks."""
    piece: list[bytes] = []
    for event in events:
        piece.append(http_io.dumps(with_last_words(event)) + b"\n")
        if len(piece) >= LINES_PER_PIECE:
            yield b"".join(piece)
            piece.clear()
    yield b"".join(piece)


def with_last_words(event: Event) -> EventAnswer:
    """The event; for a worker's failure, with `logs`, the path of the failed attempt's last log lines."""
    worker_id, attempt = event.get("worker_id"), event.get("attempt")
    if event.get("after") != states.FAILED or not worker_id or attempt is None:
        return cast(EventAnswer, event)
    path = f"/api/remote-workers/{quote(worker_id, safe='')}/logs"
    return {**event, "logs": f"{path}?attempt={attempt}&tail={LAST_WORDS_LINES}"}
