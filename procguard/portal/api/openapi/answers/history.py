"""What happened, and why."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment


class Event(BaseModel):
    seq: int
    at: Moment
    kind: str
    worker_id: str | None
    host: str | None
    before: str | None
    after: str | None
    reason: str
    actor: str | None
    attempt: int | None
    cause: str | None = None
    evidence: dict[str, Any] | str | None = None
    logs: str | None = None


class EventsAnswer(BaseModel):
    events: list[Event]


class Sentence(BaseModel):
    topic: str
    text: str


class Happened(BaseModel):
    seq: int
    at: Moment
    kind: str
    cause: str | None
    text: str


class ExplanationAnswer(BaseModel):
    worker_id: str
    state: str
    language: Literal["en", "zh"]
    at: Moment
    headline: str
    sentences: list[Sentence]
    next_steps: list[str]
    timeline: list[Happened]


class StepAnswer(BaseModel):
    at: Moment
    text: str


class IncidentAnswer(BaseModel):
    host: str
    agent: str
    opened: Moment
    ended: Moment
    duration_s: float | None
    outcome: Literal["open", "recovered", "gave_up", "left"]
    starts: int
    steps: list[StepAnswer]


class Recoveries(BaseModel):
    recoveries: list[IncidentAnswer]
