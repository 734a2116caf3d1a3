"""Where alerts go."""

from __future__ import annotations

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment


class NotificationTarget(BaseModel):
    name: str
    type: str
    address: str
    events: list[str]
    language: str
    sent: int
    failures: int
    last_ok: Moment
    last_error: str
    last_error_at: Moment
    queued: int
    dropped: int
    deduplicated: int
    retry_in_s: float | None


class NotificationTargets(BaseModel):
    notifications: list[NotificationTarget]


class Tried(BaseModel):
    name: str
    type: str
    ok: bool
    answer: str
    took_s: float


class NotificationsTried(BaseModel):
    results: list[Tried]
