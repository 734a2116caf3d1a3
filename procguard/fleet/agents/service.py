"""Agents: heartbeats, replies, queries, and how agents join and leave the fleet.

The facade for the rest of the manager. heartbeat.py and replies.py handle messages, enrolment.py decides who may
join, secrets.py and rotation.py own the secrets. A method marked "durable" returns when its change is on disk.
"""

from __future__ import annotations

from procguard.client.types import HostInfo
from procguard.errors import Conflict
from procguard.fleet.agents.assignments import AssignmentBuilder
from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.agents.enrolment import Enrolment
from procguard.fleet.agents.heartbeat import HeartbeatProcessor
from procguard.fleet.agents.log_ranges import LogRanges
from procguard.fleet.agents.log_search import LogSearches
from procguard.fleet.agents.replies import ReplyBuilder
from procguard.fleet.agents.resync import StateResync
from procguard.fleet.agents.rotation import Rotations
from procguard.fleet.agents.secrets import AgentSecrets
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import RecoverySsh, TunnelState, TunnelStatus
from procguard.fleet.shapes.parts import PendingLauncherView
from procguard.fleet.state import FleetState
from procguard.fleet.workers import ownership
from procguard.fleet.workers.placement_service import PlacementService
from procguard.i18n.reasons import Reason, because, reason_of
from remote_agent.protocol import messages


class AgentService:
    def __init__(
        self,
        state: FleetState,
        *,
        leases: Leases,
        gangs: Gangs,
        placement: PlacementService,
        tokens: Tokens,
        resync: StateResync,
        log_searches: LogSearches,
        log_ranges: LogRanges,
    ) -> None:
        self._state = state
        self.assignments = AssignmentBuilder(state, gangs)
        self.replies = ReplyBuilder(state, self.assignments, log_searches, log_ranges, resync)
        self.heartbeats = HeartbeatProcessor(state, leases, gangs, self.assignments, self.replies)
        self.rotations = Rotations(state, tokens)
        self.secrets = AgentSecrets(state, tokens, self.rotations)
        self.enrolment = Enrolment(
            state, leases=leases, gangs=gangs, placement=placement, tokens=tokens, secrets=self.secrets
        )

    def heartbeat(
        self, agent_id: str, beat: messages.AgentHeartbeat, now: Now, channel: str = "http"
    ) -> messages.AgentReply:
        """Apply an agent's heartbeat, received over `channel`; durable for its events and command results."""
        return self.heartbeats.take(agent_id, beat, now, channel)

    def views(self) -> list[HostInfo | PendingLauncherView]:
        """Every agent, and the launchers that wait for approval."""
        return [*self._state.hosts(), *self.enrolment.views()]

    def view(self, item_id: str) -> HostInfo | PendingLauncherView | None:
        """The view of one agent (by id) or of one pending launcher (by its item id); None if there is none."""
        if item_id in self._state.agents_by_id:
            return self._state.host_view(item_id)
        return self.enrolment.view(item_id)

    # ------------------------------------------------------------------------------------------ queries

    def mark(self, agent_id: str, state: str, reason: Reason, now: Now) -> None:
        """Set the state that the monitor concluded: "suspect" or "unreachable" (its workers become `unknown`)."""
        agent, observed = self._state.agents_by_id[agent_id], self._state.agent_status[agent_id]
        if observed.state == state:
            return
        before, observed.state = observed.state, state  # type: ignore[assignment]
        observed.reason = reason_of(reason)
        with self._state.transaction(now, wait="nothing") as tx:
            tx.edit(agent).was_connected = False
            tx.event(
                f"agent_{state}",
                worker_id=self._state.worker_of_launcher(agent),
                host=agent.host,
                before=before,
                after=state,
                reason=reason,
                source=agent_id,
            )
            self._state.show_agent(tx, agent_id)

    def note(self, agent_id: str, reason: Reason, now: Now) -> None:
        """Set the reason shown for an unreachable agent: what recovery does about it. No event."""
        if self._state.agent_status[agent_id].reason != reason:
            self._state.agent_status[agent_id].reason = reason_of(reason)
            with self._state.transaction(now, wait="nothing") as tx:
                self._state.show_agent(tx, agent_id)

    def excuse(self, late_s: float, gap_s: float, now: Now) -> None:
        """The manager was stalled for `late_s`, and its previous round was `gap_s` ago: do not count that as the
        agents' silence."""
        for observed in self._state.agent_status.values():
            if (
                observed.last_seen is not None
            ):  # never later than now: an agent with a heartbeat since then needs no allowance
                observed.last_seen = min(now.monotonic, observed.last_seen + late_s)
            if observed.poll_lost_at is not None:
                observed.poll_lost_at = min(now.monotonic, observed.poll_lost_at + gap_s)

    def set_recovery_ssh(self, host: str, ok: bool, reason: Reason, now: Now) -> None:
        for agent_id, agent in self._state.agents_by_id.items():
            if agent.host == host and agent.kind == "deployed":
                self._state.agent_status[agent_id].recovery_ssh = RecoverySsh(ok, reason_of(reason), iso(now.wall))
                self._state.bus.hosts(agent_id)

    def tunnel_changed(self, agent_id: str, state: TunnelState, port: int, reason: Reason, code: str, now: Now) -> None:
        """Record that the tunnel to a host is "up" or "down". Its port is stored, because the agent there uses it."""
        agent, observed = self._state.agents_by_id[agent_id], self._state.agent_status[agent_id]
        before = observed.tunnel.state if observed.tunnel is not None else ""
        since = observed.tunnel.since if observed.tunnel is not None and before == state else iso(now.wall)
        observed.tunnel = TunnelStatus(state, reason, code, since)
        new_port = bool(port) and port != agent.tunnel_port
        with self._state.transaction(now, "manager", wait="durable" if new_port else "nothing") as tx:
            if new_port:
                tx.edit(agent).tunnel_port = port
            if before != state:
                text = reason or because("tunnel.up", port=agent.tunnel_port)
                tx.event(f"tunnel_{state}", host=agent.host, before=before, after=state, reason=text)
            tx.show("hosts", agent_id)

    def tunnel_dropped(self, agent_id: str) -> None:
        """The host no longer needs a tunnel."""
        self._state.agent_status[agent_id].tunnel = None

    def owns(self, agent_id: str, worker_id: str) -> bool:
        """Whether this worker is assigned to this agent."""
        worker = self._state.workers_by_id.get(worker_id)
        return worker is not None and worker.agent_id == agent_id

    def may_ship(self, agent_id: str, worker_id: str, attempt: int) -> bool:
        """Whether this agent may upload log bytes of this attempt: of its own workers, and of withdrawn ones up to
        their last attempt there."""
        if self.owns(agent_id, worker_id):
            return True
        agent = self._state.agents_by_id.get(agent_id)
        withdrawn = agent.withdrawn.get(worker_id) if agent is not None else None
        if withdrawn is None:
            return False
        return worker_id not in self._state.workers_by_id or attempt <= withdrawn.attempts_to

    # ------------------------------------------------------------------------------------------ leaving

    def forget(self, agent_id: str, actor: str, now: Now) -> None:
        """Remove an uninstalled agent and the workers still assigned to it; durable. Raises Conflict while it is
        connected."""
        state, agent = self._state, self._state.agent(agent_id)
        observed = state.agent_status[agent_id]
        if observed.state == "connected" and observed.poll_lost_at is None:
            raise Conflict(
                f"{agent_id} is connected",
                f"uninstall it first: invoke undeploy --limit {agent.host}",
                code="connected",
            )
        with state.transaction(now, actor) as tx:
            for worker in state.workers_of(agent_id):
                ownership.drop_worker(state, tx, worker, because("worker.agent_removed"))
            for worker in state.workers_by_id.values():
                if worker.home == agent_id:  # it runs on another host, which becomes its home
                    tx.edit(worker).home = ""
            ownership.drop_agent(tx, agent)
            tx.event("agent_removed", host=agent.host, reason=because("agent.removed", agent=agent_id))

    def retract(self, agent_id: str, actor: str, now: Now) -> None:
        """Remove a host that was declared but never deployed: no agent received a secret, and nothing ran there.
        Durable. Raises Conflict otherwise."""
        state, agent = self._state, self._state.agent(agent_id)
        workers = state.workers_of(agent_id)
        in_use = (
            agent.secret_sha256
            or agent.revoked_sha256
            or agent.release
            or state.agent_status[agent_id].state != "never"
        )
        if agent.kind != "deployed" or in_use or any(one.attempt or one.last_since or one.home for one in workers):
            raise Conflict(f"{agent_id} has been deployed before", "invoke undeploy removes it", code="deployed")
        with state.transaction(now, actor) as tx:
            for worker in workers:
                ownership.drop_worker(state, tx, worker, because("worker.not_deployed", host=agent.host))
            ownership.drop_agent(tx, agent)
            tx.event("agent_removed", host=agent.host, reason=because("agent.not_deployed"))
