"""Several managers on one database: the leader, the standbys, and promotion of a standby."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from procguard.agent_api import http_io
from procguard.agent_api.declaration import get, post
from procguard.errors import Conflict
from procguard.portal.api.resource import RequestBody, Resource

ONE = "this is the only manager"
ONE_NEXT = "several managers share a database: state.database, docs/several_managers.md"


@dataclass(frozen=True)
class SshChecks:
    """SSH checks from this manager: the number of reachable hosts, and the reasons for the first five others."""

    ok: int = 0
    failed: int = 0
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class OneManager:
    """`seen_s`: seconds since the manager last wrote to the database. `behind`: number of commits that a standby has
    not read yet. `clock_s`: seconds by which its clock is ahead of the database's."""

    name: str
    role: Literal["leader", "standby", "away"]
    urls: list[str]
    version: str = ""
    seen_s: float = 0.0
    behind: int = 0
    clock_s: float = 0.0
    ssh: SshChecks | None = None


@dataclass(frozen=True)
class Managers:
    """`managers`: empty for a single manager. `warnings`: messages about what endangers a takeover."""

    leader: str = ""
    term: int = 0
    since: str = ""
    database: str = ""
    replication: str = ""
    warnings: list[str] = field(default_factory=list)
    managers: list[OneManager] = field(default_factory=list)


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
        return managers_of(agent_api.view()) if agent_api is not None else Managers()

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


def managers_of(view: dict[str, Any]) -> Managers:
    """The typed response from the seat's view."""
    found = [
        OneManager(**{**one, "ssh": SshChecks(**one["ssh"]) if one.get("ssh") else None}) for one in view["managers"]
    ]
    return Managers(**{**view, "managers": found})
