"""Groups, and the gangs among them (docs/groups.md)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, cast

from typing_extensions import TypedDict

from procguard.agent_api.declaration import get
from procguard.portal.api.resource import Moment, Resource


class MemberAnswer(TypedDict):
    worker_id: str
    host: str
    state: str
    rank: int | None
    epoch: int
    attempt: int
    reason: str
    reason_code: str
    reason_params: dict[str, Any]


class GangIncident(TypedDict):
    member: str
    reason: str
    reason_code: str
    reason_params: dict[str, Any]
    at: Moment
    ended: Moment


class GroupAnswer(TypedDict):
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
    reason_code: str
    reason_params: dict[str, Any]
    incident: GangIncident | None
    members: list[MemberAnswer]


@dataclass(frozen=True)
class GroupsAnswer:
    groups: list[GroupAnswer]


class GroupsApi(Resource):
    @get("/api/groups", "viewer", tag="workers", zh="分组与 gang 的状态")
    def groups(self) -> GroupsAnswer:
        """The groups and the status of their gangs.

        Every group with its members and, for a [gang](groups.md), its phase, epoch, attempts and last incident.
        """
        return GroupsAnswer(cast(list[GroupAnswer], self.fleet.gangs.views()))
