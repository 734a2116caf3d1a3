"""Groups, and the gangs among them (docs/groups.md)."""

from __future__ import annotations

from dataclasses import dataclass

from procguard.agent_api.declaration import get
from procguard.fleet.gangs.views import GroupAnswer
from procguard.portal.api.resource import Resource


@dataclass(frozen=True)
class GroupsAnswer:
    groups: list[GroupAnswer]


class GroupsApi(Resource):
    @get("/api/groups", "viewer", tag="workers", zh="分组与 gang 的状态")
    def groups(self) -> GroupsAnswer:
        """The groups and the status of their gangs.

        Every group with its members and, for a [gang](groups.md), its phase, epoch, attempts and last incident.
        """
        return GroupsAnswer(self.fleet.gangs.views())
