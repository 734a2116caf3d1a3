"""Several managers on one database: the leader, the standbys, and promotion of a standby."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from procguard.agent_api import http_io
from procguard.agent_api.declaration import get, post
from procguard.errors import Conflict
from procguard.portal.api.resource import RequestBody, Resource
from procguard.portal.api.several import Managers

ONE = "this is the only manager"
ONE_NEXT = "several managers share a database: state.database, docs/several_managers.md"


@dataclass(frozen=True)
class Promoted:
    leader: str
    status: Literal["handing over"] = "handing over"


class PromoteBody(RequestBody):
    name: Annotated[str, Field(min_length=1, max_length=64, description="the standby to promote")]


class ManagersApi(Resource):
    @get("/api/managers", "viewer", tag="manager", zh="多个管理端：谁在领导")
    def managers(self) -> Managers:
        """The leader, the standbys, and how the shared database is replicated."""
        agent_api = self.services.managers
        return agent_api.view() if agent_api is not None else Managers()

    @post(
        "/api/managers/promote", "operator", tag="manager", zh="把领导权交给另一个管理端", body=PromoteBody,
        errors=(404, 409), example={"name": "manager2"},
    )  # fmt: skip
    def promote(self, body: PromoteBody) -> Promoted:
        """Promote a standby, which leads within a second.

        This manager becomes a standby. Workers are not affected.
        """
        agent_api = self.services.managers
        if agent_api is None:
            raise Conflict(ONE, ONE_NEXT, code="one_manager")
        http_io.note_change(f"hands over to {body.name}")
        agent_api.promote(body.name)
        return Promoted(body.name)
