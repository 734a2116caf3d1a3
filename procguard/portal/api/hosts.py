"""Hosts: status, cordons, and the manager's actions over SSH: a connection check, restart, upgrade and log of the
agent, a tunnel.

The rules are in fleet/workers/placement_service.py and fleet/agents/maintenance.py; manager/tunnels.py owns tunnels,
and agents.py defines the routes of agents and their secrets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from procguard.agent_api import http_io
from procguard.agent_api.declaration import get, post, whole
from procguard.agent_api.interface import Principal
from procguard.client.types import HostInfo
from procguard.errors import Conflict, NotFound
from procguard.fleet.agents.maintenance import AgentLogAnswer, AgentMaintenance, MaintenanceAction
from procguard.fleet.model import clock
from procguard.fleet.shapes.hosts import HOST, OF_PENDING
from procguard.fleet.shapes.parts import PendingLauncherView
from procguard.i18n.reasons import NONE, because
from procguard.json_types import ReasonParams
from procguard.portal.api.openapi.types import answer_type
from procguard.portal.api.resource import MAX_REASON_CHARS, RequestBody, Resource
from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import values as reason_values

CHECK_SSH_DEADLINE_S = 30.0
OPEN_TIMEOUT_S = 40.0  # of a tunnel; includes the SSH login of the first one
DEFAULT_LOG_BYTES, MAX_LOG_BYTES = 64 * 1024, 256 * 1024
NO_HELPER = "this manager runs without its SSH helper"


@dataclass(frozen=True)
class AgentLogQuery:
    bytes: int = whole(DEFAULT_LOG_BYTES, 1, MAX_LOG_BYTES)


GpuIndex = Annotated[int, Field(ge=0, le=63, strict=True)]


class CordonRequest(RequestBody):
    """{"reason": "fan is loud", "gpu": 3}: without `gpu` the whole host."""

    reason: Annotated[str, Field(max_length=MAX_REASON_CHARS)] = ""
    gpu: GpuIndex | None = None


class UncordonRequest(RequestBody):
    """{"gpu": 3}: without `gpu` the whole host."""

    gpu: GpuIndex | None = None


# -------------------------------------------------------------------------------------------------- response types


if TYPE_CHECKING:
    HostAnswer = HostInfo | PendingLauncherView
else:
    _WORDS = "A host, or a launcher started by hand; one that waits for approval has `fingerprint`."
    HostAnswer = answer_type("HostAnswer", _WORDS, HOST, globals(), also=OF_PENDING)


@dataclass(frozen=True)
class HostsAnswer:
    hosts: list[HostAnswer]
    server_time: str


@dataclass(frozen=True)
class OfHost:
    host: str
    status: str


@dataclass(frozen=True)
class SshTried:
    host: str
    ok: bool
    reason: str
    reason_code: str
    reason_params: ReasonParams


@dataclass(frozen=True)
class MaintenanceStarted:
    """`seq`: of the event that records the request; the event with its result follows later."""

    host: str
    seq: int
    status: Literal["accepted"] = "accepted"


@dataclass(frozen=True)
class TunnelOpened:
    """`url`: the address that its agent receives; "" while the tunnel is down."""

    host: str
    ok: bool
    url: str
    reason: str
    reason_code: str
    reason_params: ReasonParams


# ------------------------------------------------------------------------------------------------ routes


class HostsApi(Resource):
    @get("/api/hosts", "viewer", tag="hosts", zh="所有主机")
    def hosts(self) -> HostsAnswer:
        """The hosts.

        Each host also has `spare`, `labels`, `cordoned` (`{"reason", "actor", "at"}` or null), `failures`,
        `last_failure`, `recovery` (`{"starts", "outcome", "reason"}` or null) and `tunnel` (`{"state": "opening" |
        "up" | "down", "port", "reason", "since"}` or null).
        """
        return HostsAnswer([*self.fleet.state.hosts()], _server_time())

    @post(
        "/api/hosts/<host>/cordon", "operator", tag="hosts", zh="禁止调度新任务到该主机", body_optional=True,
        errors=(404, 409), example={"reason": "fan is loud"},
    )  # fmt: skip
    def cordon(self, host: str, caller: Principal, body: CordonRequest) -> OfHost:
        """Cordon a host: the manager places no new tasks on it.

        With `gpu`, only that GPU of the host: no worker is assigned it.
        """
        http_io.note_change(body.reason if body.gpu is None else f"GPU {body.gpu}: {body.reason}")
        if body.gpu is None:
            self.fleet.placement.cordon(host, body.reason, caller.actor, clock.read())
        else:
            self.fleet.placement.cordon_gpu(host, body.gpu, body.reason, caller.actor, clock.read())
        return OfHost(host, "cordoned")

    @post("/api/hosts/<host>/uncordon", "operator", tag="hosts", zh="恢复调度", body_optional=True, errors=(404, 409))
    def uncordon(self, host: str, caller: Principal, body: UncordonRequest) -> OfHost:
        """Uncordon a host, or with `gpu` one of its GPUs: new tasks may be placed there again."""
        if body.gpu is None:
            self.fleet.placement.uncordon(host, caller.actor, clock.read())
        else:
            self.fleet.placement.uncordon_gpu(host, body.gpu, caller.actor, clock.read())
        return OfHost(host, "uncordoned")

    @post(
        "/api/hosts/<host>/check-ssh", "operator", tag="hosts", zh="检查管理端能否通过 SSH 访问主机", errors=(404, 409)
    )
    def check_ssh(self, host: str) -> SshTried:
        """Check whether the manager can reach this host over SSH."""
        found = next((one for one in self.fleet.state.agents_by_id.values() if one.host == host and one.ssh), None)
        if found is None:
            raise NotFound(f"no deployed host {host[:80]!r}", "list them: invoke status, or GET /api/hosts")
        if found.ssh.get("local"):
            ok, reason = True, because("ssh.local")
        elif self.services.ssh is None:
            raise Conflict(NO_HELPER, "restart the manager")
        else:
            result = self.services.ssh.check(host, found.ssh, CHECK_SSH_DEADLINE_S)
            ok, reason = result.ok, result.reason
        self.fleet.agents.set_recovery_ssh(host, ok, reason, clock.read())
        return SshTried(host, ok, *reason_values(reason))

    @post(
        "/api/hosts/<host>/restart-agent", "operator", tag="hosts", status=202, errors=(404, 409),
        zh="通过 SSH 重启该主机的 Agent，worker 不受影响；结果见事件",
    )  # fmt: skip
    def restart_agent(self, host: str, caller: Principal) -> MaintenanceStarted:
        """Restart a host's agent over SSH; its workers keep running. The result is an event.

        202 `{"host", "status": "accepted", "seq"}`; the result is an event after `seq`: `agent_restarted` or
        `agent_restart_failed`. One action at a time per host (409 `busy`).
        """
        return self._begin("restart", host, caller)

    @post(
        "/api/hosts/<host>/upgrade-agent", "operator", tag="hosts", status=202, errors=(404, 409),
        zh="通过 SSH 把该主机的 Agent 升级到管理端的版本，失去联系则回退；结果见事件",
    )  # fmt: skip
    def upgrade_agent(self, host: str, caller: Principal) -> MaintenanceStarted:
        """Upgrade a host's agent to the manager's release over SSH, with rollback if it sends no heartbeat. The
        result is an event.

        The response is that of a restart; the event is `agent_upgraded` or `agent_upgrade_failed`.
        """
        return self._begin("upgrade", host, caller)

    @get(
        "/api/hosts/<host>/agent-log",
        "operator",
        tag="hosts",
        zh="通过 SSH 读取 Agent 自身日志的末尾",
        errors=(404, 409),
    )
    def agent_log(self, host: str, query: AgentLogQuery) -> AgentLogAnswer:
        """The last part of the agent's own log, read over SSH.

        `{"host", "text", "path", "bytes", "running", "pid"}`; 409 `no_way_in` if the manager has no SSH access, with
        the command that reads the log on the host.
        """
        return self._maintenance.log(host, query.bytes)

    @post("/api/hosts/<host>/tunnel", "operator", tag="hosts", zh="建立并等待该主机的隧道", errors=(404, 409))
    def tunnel(self, host: str) -> TunnelOpened:
        """Open a host's tunnel (procguard_tunnel) and wait until it is up.

        `{"host", "ok", "url", "reason"}`; `url` is the address that its agent receives.
        """
        if self.services.tunnels is None:
            raise Conflict("this manager has no tunnels", "restart the manager")
        known = self.services.tunnels.open(host, OPEN_TIMEOUT_S)
        ok = known["state"] == "up"
        reason = NONE if ok else reasons.read(known) or because("tunnel.not_open", limit_s=OPEN_TIMEOUT_S)
        url = f"http://127.0.0.1:{known['port']}" if ok else ""
        return TunnelOpened(host, ok, url, *reason_values(reason))

    @property
    def _maintenance(self) -> AgentMaintenance:
        if self.services.maintenance is None:
            raise Conflict(NO_HELPER, "restart the manager")
        return self.services.maintenance

    def _begin(self, action: MaintenanceAction, host: str, caller: Principal) -> MaintenanceStarted:
        return MaintenanceStarted(host, self._maintenance.begin(action, host, caller.actor))


def _server_time() -> str:
    return str(clock.iso(clock.read().wall))
