"""Agents: approval of launchers, secrets, and removal of lost agents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import gevent
from pydantic import Field

from procguard import __version__
from procguard.agent_api import http_io
from procguard.agent_api.answers import OfAgent
from procguard.agent_api.declaration import delete, flag, get, post, put
from procguard.agent_api.decode import Hints
from procguard.agent_api.interface import Principal
from procguard.deploy.session import bundle
from procguard.errors import Forbidden
from procguard.fleet.agents.rotation import RotationAsked
from procguard.fleet.model import clock
from procguard.portal.api.hosts import HostAnswer
from procguard.portal.api.resource import RequestBody, Resource
from remote_agent.protocol import messages

MAX_ROTATIONS = 20_000
_DIGEST_OF_MINE = messages.secret_sha256("mine")


@dataclass(frozen=True)
class ForgetAgentQuery:
    undeployed: bool = flag("only if nothing was ever installed there")


class FingerprintRequest(RequestBody):
    """{"fingerprint": "3f2a-91bc-77d0"}: selects one of several launchers with the same id."""

    fingerprint: str = ""


class CredentialsRequest(RequestBody):
    """{"secret_sha256": "9f86…"}: the digest of an agent's new secret, never the secret."""

    hints: ClassVar[Hints] = {"secret_sha256": ("", "send 64 hexadecimal digits: the SHA-256 of the secret, not it")}

    secret_sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RotationRequest(RequestBody):
    """{"agents": ["gpu01", "launcher:worker1"]}"""

    agents: Annotated[
        list[Annotated[str, Field(pattern=messages.AGENT_ID_PATTERN)]], Field(min_length=1, max_length=MAX_ROTATIONS)
    ]


@dataclass(frozen=True)
class Agents:
    agents: list[HostAnswer]
    server_time: str
    version: str
    releases: list[str]


@dataclass(frozen=True)
class Releases:
    """`releases`: the agent releases that this manager deploys."""

    version: str
    releases: list[str]


@dataclass(frozen=True)
class RotationsAsked:
    agents: dict[str, RotationAsked]


class AgentsApi(Resource):
    @get("/api/agents", "viewer", tag="hosts", zh="主机与手动启动器（含待审批）")
    def agents(self) -> Agents:
        """Hosts and launchers, including launchers that wait for approval.

        With the manager's own `version` and `releases`; an agent whose `release` is none of them runs another release.
        """
        # the first call packs the release, which takes time
        releases = gevent.get_hub().threadpool.apply(bundle.releases)
        agents, now = self.fleet.agents.views(), clock.iso(clock.read().wall)
        return Agents(agents, str(now), __version__, releases)

    @get("/api/releases", "viewer", tag="hosts", zh="管理端及其部署的 Agent 的版本")
    def releases(self) -> Releases:
        """The manager's version, and the agent releases that it deploys.

        An agent whose `release` is none of them is outdated, or newer than its manager.
        """
        return Releases(__version__, gevent.get_hub().threadpool.apply(bundle.releases))

    @post(
        "/api/agents/<agent_id>/approve",
        "operator",
        tag="hosts",
        zh="批准启动器",
        body_optional=True,
        errors=(404, 409),
    )
    def approve(self, agent_id: str, caller: Principal, body: FingerprintRequest) -> OfAgent:
        """Approve a pending launcher.

        `{"fingerprint": "…"}` is required if several launchers wait under one id.
        """
        self.fleet.agents.enrolment.approve(agent_id, caller.actor, clock.read(), body.fingerprint)
        return OfAgent(agent_id, "approved")

    @post(
        "/api/agents/<agent_id>/deny", "operator", tag="hosts", zh="拒绝启动器", body_optional=True, errors=(404, 409)
    )
    def deny(self, agent_id: str, caller: Principal, body: FingerprintRequest) -> OfAgent:
        """Deny a pending launcher.

        `{"fingerprint": "…"}` as for its approval.
        """
        self.fleet.agents.enrolment.deny(agent_id, caller.actor, clock.read(), body.fingerprint)
        return OfAgent(agent_id, "denied")

    @put(
        "/api/agents/<agent_id>/credentials", "operator", tag="hosts", zh="为 Agent 设置新密钥（摘要）",
        errors=(404, 409), example={"secret_sha256": _DIGEST_OF_MINE},
    )  # fmt: skip
    def credentials(self, agent_id: str, caller: Principal, body: CredentialsRequest) -> OfAgent:
        """Set an agent's secret, given as its SHA-256 digest. A browser session may not: 403."""
        if caller.via == "session":  # whoever has the secret can act as the agent and read its workers' environment
            raise Forbidden(
                "a browser session cannot set an agent's secret", "from a terminal: invoke agents.rotate AGENT"
            )
        self.fleet.agents.secrets.set(agent_id, body.secret_sha256, caller.actor, clock.read())
        return OfAgent(agent_id, "set")

    @post(
        "/api/agents/rotate", "operator", tag="hosts", zh="轮换 Agent 的密钥（运行中）", example={"agents": ["gpu01"]}
    )
    def rotate(self, caller: Principal, body: RotationRequest) -> RotationsAsked:
        """Request agents to rotate their secrets while they run.

        `{"agents": ["gpu01"]}` → `{"agents": {"gpu01": {"status": "asked", "message": ""}}}`.
        """
        http_io.note_change(f"{len(body.agents)} agents: {', '.join(body.agents[:20])}")
        return RotationsAsked(self.fleet.agents.rotations.begin(body.agents, caller.actor, clock.read()))

    @post("/api/agents/<agent_id>/revoke", "operator", tag="hosts", zh="吊销 Agent 的密钥", errors=(404,))
    def revoke(self, agent_id: str, caller: Principal) -> OfAgent:
        """Revoke an agent's secret, for example because it was stolen.

        Tokens of scope `agent:ID` are not accepted for it either; its workers keep running. A deployment (for a
        launcher: an approval) issues a new secret.
        """
        self.fleet.agents.secrets.revoke(agent_id, caller.actor, clock.read())
        return OfAgent(agent_id, "revoked")

    @delete("/api/agents/<agent_id>", "operator", tag="hosts", zh="删除已卸载的 Agent", errors=(404, 409))
    def forget(self, agent_id: str, caller: Principal, query: ForgetAgentQuery) -> OfAgent:
        """Remove an agent that no longer exists.

        With `undeployed=1`: only if nothing was ever installed there.
        """
        forget = self.fleet.agents.retract if query.undeployed else self.fleet.agents.forget
        forget(agent_id, caller.actor, clock.read())
        return OfAgent(agent_id, "forgotten")
