"""Groups, and the gangs among them."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

from procguard.portal.api.openapi.answers import Moment


class MemberAnswer(BaseModel):
    worker_id: str
    host: str
    state: str
    rank: int | None
    epoch: int
    attempt: int
    reason: str


class GangIncident(BaseModel):
    member: str
    reason: str
    at: Moment
    ended: Moment


class GroupAnswer(BaseModel):
    group: str
    restart: str
    rendezvous: str
    said_by: Literal["configuration", "inventory", ""]
    phase: str | None
    epoch: int | None
    attempts: int | None
    max_attempts: int | None
    master: str | None
    since: Moment
    reason: str
    incident: GangIncident | None
    members: list[MemberAnswer]


class GroupsAnswer(BaseModel):
    groups: list[GroupAnswer]
