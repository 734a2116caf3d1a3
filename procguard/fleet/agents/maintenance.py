"""Maintenance of one agent over SSH: a restart, an upgrade to this manager's release, reading its log.

Owns which host is in maintenance (one action at a time per host), the events about it, and the rollback of an
upgraded agent that sends no heartbeat. Receives `run_ssh` (SSH, in another process), `spawn` and `pause`; knows
neither SSH nor HTTP. Workers are not affected: the next agent adopts their runners.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from typing_extensions import TypedDict

from procguard.errors import Conflict, NotFound
from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord
from procguard.i18n.reasons import NONE, Reason, because, reason_of

HEARTBEAT_TIMEOUT_S = 15.0
POLL_S = 0.1
LOG_DEADLINE_S = 12.0
DEADLINE_S = {"restart": 30.0, "upgrade": 120.0, "rollback": 30.0}
WORDS = {"restart": ("agent_restarted", "agent_restart_failed"), "upgrade": ("agent_upgraded", "agent_upgrade_failed")}
BY_HAND = "it was started by hand: only its user can do that, on that machine"

MaintenanceAction = Literal["restart", "upgrade"]
Op = Literal["restart", "upgrade", "rollback", "log"]


class AgentLogAnswer(TypedDict):
    """`bytes`: the whole file's; `text` is its end."""

    host: str
    text: str
    path: str
    bytes: int
    running: bool
    pid: int | None


class MaintenanceAnswer(Protocol):
    """The result. `ok`: the host was reached; `agent`: the state of its agent; `log`: only for the action "log"."""

    @property
    def ok(self) -> bool: ...

    @property
    def agent(self) -> str: ...

    @property
    def message(self) -> Reason: ...

    @property
    def log(self) -> Mapping[str, Any]: ...


class SshMaintenance(Protocol):
    """SSH to a host."""

    def __call__(self, op: Op, agent: AgentRecord, deadline_s: float, max_bytes: int = 0) -> MaintenanceAnswer: ...


class AgentMaintenance:
    def __init__(
        self,
        fleet: Fleet,
        *,
        run_ssh: SshMaintenance,
        spawn: Callable[[Callable[[], None]], Any],
        pause: Callable[[float], None],
        read_clock: Callable[[], Now],
    ) -> None:
        self._fleet = fleet
        self._run_ssh = run_ssh
        self._spawn = spawn
        self._pause = pause
        self._read_clock = read_clock
        self._busy: dict[str, str] = {}  # host -> action in progress

    def begin(self, action: MaintenanceAction, host: str, actor: str) -> int:
        """Start the action without waiting for it. Returns an event sequence number; the result is a later event.
        Raises NotFound, Conflict."""
        agent = self._deployed(host)
        if host in self._busy:
            raise Conflict(f"{host}: {self._busy[host]} of its agent is in progress", "wait for its event", code="busy")
        self._busy[host] = action
        asked = because("care.restart") if action == "restart" else because("care.upgrade")
        try:
            seq = self._emit_event("agent_maintenance", host, asked, actor)
            self._spawn(lambda: self._carry_out(action, agent, actor))
        except BaseException:  # the disk refused the write
            del self._busy[host]
            raise
        return seq

    def log(self, host: str, max_bytes: int) -> AgentLogAnswer:
        """The last `max_bytes` of the agent's own log, read from the host over SSH. Raises NotFound, Conflict."""
        agent = self._deployed(host)
        result = self._run_ssh("log", agent, LOG_DEADLINE_S, max_bytes)
        if not result.ok or not result.log:
            raise Conflict(result.message, self._by_ssh(agent), code="no_way_in")
        read: Callable[[str], Any] = result.log.get
        return {
            "host": host,
            "text": read("text"),
            "path": read("path"),
            "bytes": read("bytes"),
            "running": read("running"),
            "pid": read("pid"),
        }

    # ---------------------------------------------------------------------------------------------- inside

    def _deployed(self, host: str) -> AgentRecord:
        found = [agent for agent in self._fleet.state.agents_by_id.values() if agent.host == host]
        if not found:
            raise NotFound(f"no host {host[:80]!r}", "list them: invoke status, or GET /api/hosts")
        deployed = next((agent for agent in found if agent.kind == "deployed" and agent.ssh), None)
        if deployed is None:
            raise Conflict(f"{host}: {BY_HAND}", "deploy an agent there: invoke deploy", code="by_hand")
        return deployed

    def _carry_out(self, action: MaintenanceAction, agent: AgentRecord, actor: str) -> None:
        done, failed = WORDS[action]
        try:
            before = self._life(agent)
            result = self._run_ssh(action, agent, DEADLINE_S[action])
            now = self._read_clock()
            if agent.agent_id in self._fleet.state.agents_by_id:
                self._fleet.agents.set_recovery_ssh(agent.host, result.ok, NONE if result.ok else result.message, now)
            if not result.ok or result.agent not in ("running", "started"):
                self._emit_event(failed, agent.host, result.message, actor)
            elif result.agent == "running" or self._reconnected(agent, before):
                self._emit_event(done, agent.host, result.message, actor)
            else:
                silent = reason_of(result.message).then(because("care.no_heartbeat"), self._undone(action, agent))
                self._emit_event(failed, agent.host, silent, actor)
        except Exception as exc:  # the end of the action is always reported
            self._emit_event(failed, agent.host, reason_of(f"{type(exc).__name__}: {exc}"), actor)
        finally:
            self._busy.pop(agent.host, None)

    def _undone(self, action: MaintenanceAction, agent: AgentRecord) -> Reason:
        """Roll back an upgrade whose agent sends no heartbeat, as a deployment does."""
        if action != "upgrade":
            return NONE
        back = self._run_ssh("rollback", agent, DEADLINE_S["rollback"])
        return (
            back.message if back.ok and back.agent == "started" else because("care.going_back_failed", why=back.message)
        )

    def _reconnected(self, agent: AgentRecord, before: object) -> bool:
        """Whether a new agent process has sent a heartbeat within the time limit."""
        deadline = self._read_clock().monotonic + HEARTBEAT_TIMEOUT_S
        while self._read_clock().monotonic < deadline:
            observed = self._fleet.state.agent_status.get(agent.agent_id)
            if observed is not None and observed.state == "connected" and self._life(agent) not in (None, before):
                return True
            self._pause(POLL_S)
        return False

    def _life(self, agent: AgentRecord) -> object:
        observed = self._fleet.state.agent_status.get(agent.agent_id)
        beat = observed.heartbeat if observed is not None else None
        return (beat.boot_id, beat.pid, beat.started_at) if beat is not None else None

    def _by_ssh(self, agent: AgentRecord) -> str:
        home = agent.procguard_home or "~/.procguard"
        return f"read it there: tail -n 200 {home}/{self._fleet.state.fleet_id}/{agent.host}/agent.log"

    def _emit_event(self, kind: str, host: str, reason: Reason, actor: str) -> int:
        with self._fleet.state.transaction(self._read_clock(), actor) as tx:
            tx.event(kind, host=host, reason=reason)
        return self._fleet.state.event_log.newest_seq
