"""The registry: sole writer of the fleet's state. Everything else hands it messages and reads its views.

Owns what operators, the deployer, the monitor and the failure handler may change; the agents' part is
fleet/agents/heartbeat.py, the tables are state.py. Knows neither HTTP nor SSH, and no clock: `now` is passed in. A
method marked "durable" returns when its change is on disk, or raises NotDurable.
"""

from __future__ import annotations

from typing import Any

from procguard.errors import Conflict
from procguard.fleet.agents.enrolment import Enrolment
from procguard.fleet.agents.heartbeat import Intake
from procguard.fleet.history.events import EventLog
from procguard.fleet.model import clock
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import CommandRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.operations.controller import Operations
from procguard.fleet.store.interface import Store, Tables
from procguard.fleet.workers.commands import WorkerCommands
from procguard.fleet.workers.deployment import Deployment
from remote_agent.protocol import messages, session, states


class Registry(Intake):
    def __init__(self, store: Store, events: EventLog, settings: FleetSettings, now: Now) -> None:
        super().__init__(store, events, settings, now)
        self.enrolment = Enrolment(self)
        self.worker_commands = WorkerCommands(self)
        self.operations = Operations(self, self.worker_commands, self.stored_operations, now)
        self.stored_operations = {}
        self.commit()

    def tables(self) -> Tables:
        return {**super().tables(), **self.operations.tables()}

    def agents(self) -> list[dict[str, Any]]:
        """Every agent, and the launchers that wait for approval."""
        return self.hosts() + self.enrolment.views()

    # ------------------------------------------------------------------------------------------ monitor's words

    def mark_agent(self, agent_id: str, state: str, reason: str, now: Now) -> None:
        """The monitor's word on an agent: "suspect" or "unreachable" (its workers then show as unknown)."""
        agent, seen = self.agents_by_id[agent_id], self.seen[agent_id]
        if seen.state == state:
            return
        before, seen.state = seen.state, state  # type: ignore[assignment]
        seen.reason = reason
        own = self.worker_of_launcher(agent)
        self.event_log.add(
            f"agent_{state}",
            now,
            worker_id=own,
            host=agent.host,
            before=before,
            after=state,
            reason=reason,
            source=agent_id,
        )
        self.notify_agent(agent_id)

    def note_agent(self, agent_id: str, reason: str) -> None:
        """Say what is being done about an agent that is out of reach."""
        if self.seen[agent_id].reason != reason:
            self.seen[agent_id].reason = reason
            self.notify_agent(agent_id)

    def set_recovery_ssh(self, host: str, ok: bool, reason: str, now: Now) -> None:
        for agent_id, agent in self.agents_by_id.items():
            if agent.host == host and agent.kind == "deployed":
                self.seen[agent_id].recovery_ssh = {"ok": ok, "reason": reason, "checked_at": iso(now.wall)}
                self.notify("hosts", agent_id, self.host_view(agent_id))

    def tunnel_changed(self, agent_id: str, state: str, port: int, reason: str, code: str, now: Now) -> None:
        """What became of the tunnel to a host: "up" or "down". Its port is durable: the agent there knows it."""
        agent, seen = self.agents_by_id[agent_id], self.seen[agent_id]
        before = str(seen.tunnel.get("state", ""))
        since = seen.tunnel["since"] if before == state else iso(now.wall)
        seen.tunnel = {"state": state, "reason": reason, "code": code, "since": since}
        if port and port != agent.tunnel_port:
            agent.tunnel_port = port
            self.put("agents", agent_id, agent)
            self.commit()
        if before != state:
            told = reason or f"its agent reaches the manager through port {agent.tunnel_port} of its own machine"
            self.event_log.add(
                f"tunnel_{state}", now, host=agent.host, before=before, after=state, reason=told, actor="manager"
            )
        self.notify("hosts", agent_id, self.host_view(agent_id))

    def tunnel_dropped(self, agent_id: str) -> None:
        """No tunnel is wanted there any more."""
        self.seen[agent_id].tunnel = {}

    def set_worker_suspect(self, worker_id: str, evidence: str, now: Now) -> None:
        """The monitor's evidence that a worker looks hung; "" clears it. Alerts only."""
        worker = self.workers_by_id[worker_id]
        self.worker_seen[worker_id].suspect = evidence
        kind, reason = ("worker_suspect", evidence) if evidence else ("worker_clear", "no longer suspect")
        self.event_log.add(
            kind, now, worker_id=worker_id, host=worker.host, reason=reason, actor="monitor", source=worker.agent_id
        )
        self.notify("workers", worker_id, self.worker_view(worker))

    # ------------------------------------------------------------------------------------------ operators' acts

    def command(
        self, worker_id: str, verb: str, actor: str, now: Now, reason: str = "", origin: str = ""
    ) -> CommandRecord:
        """Accept a start, stop, restart or kill (fleet/workers/commands.py); durable."""
        return self.worker_commands.command(worker_id, verb, actor, now, reason, origin)

    def stop_all(self, reason: str, now: Now) -> int:
        """recovery.stop_all_on_failure: every worker is stopped and stays so; what is declared from now on is declared
        stopped, until an operator starts something. Returns how many that concerned. Durable with the next commit."""
        count = 0
        self.hold_stopped(reason)
        for worker in self.workers_by_id.values():
            if worker.desired == "running":
                worker.want("stopped", by="failure handler", cause="stop_all", now=now)
                worker.generation += 1
                worker.moving = {**worker.moving, "run": False} if worker.moving else {}
                self.store_worker(worker)
                count += 1
        self.event_log.add("stop_all", now, reason=reason, actor="failure handler")
        return count

    def forget(self, worker_id: str, actor: str, now: Now) -> None:
        """Drop a worker that is settled or whose agent is gone; durable."""
        self.take_out(worker_id, actor, now)
        self.commit()

    def take_out(self, worker_id: str, actor: str, now: Now) -> None:
        """The same, durable with the next commit: a purge takes out a hundred with one."""
        worker = self.find(worker_id)
        view = self.worker(worker_id)
        if view["state"] not in (*states.SETTLED, states.UNKNOWN):
            raise Conflict(
                f"{worker_id} is {view['state']} on {worker.host}", f"stop it first: invoke stop {worker_id}"
            )
        verdict = self.leases.judge(worker_id, now)
        if not verdict.gone and verdict.wait_s is not None:
            raise Conflict(
                f"{worker_id} cannot be forgotten yet: {verdict.reason}", f"try again in {verdict.wait_s:.0f} s"
            )
        self.drop_worker(worker, now, "forgotten", actor)

    def forget_agent(self, agent_id: str, actor: str, now: Now) -> None:
        """Drop an agent that was uninstalled, with whatever it still had; durable. Refused while it is connected."""
        agent = self.agent(agent_id)
        seen = self.seen[agent_id]
        if seen.state == "connected" and seen.poll_lost_at is None:
            raise Conflict(
                f"{agent_id} is connected",
                f"uninstall it first: invoke undeploy --limit {agent.host}",
                code="connected",
            )
        for worker in self.workers_of(agent_id):
            self.drop_worker(worker, now, "its agent was removed", actor)
        for worker in self.workers_by_id.values():
            if worker.home == agent_id:  # it lives elsewhere, and belongs there now
                worker.home = ""
                self.store_worker(worker)
        self.drop_agent(agent_id)
        self.event_log.add("agent_removed", now, host=agent.host, reason=f"{agent_id} was removed", actor=actor)
        self.commit()

    def retract_agent(self, agent_id: str, actor: str, now: Now) -> None:
        """Take back a host that was declared and never deployed: no agent was given a secret for it, and nothing ever
        ran there. Durable. Raises Conflict where that is not so."""
        agent = self.agent(agent_id)
        workers = self.workers_of(agent_id)
        touched = agent.secret_sha256 or agent.revoked_sha256 or agent.release or self.seen[agent_id].state != "never"
        if agent.kind != "deployed" or touched or any(one.attempt or one.last_since or one.home for one in workers):
            raise Conflict(f"{agent_id} has been deployed before", "invoke undeploy removes it", code="deployed")
        for worker in workers:
            self.drop_worker(worker, now, f"{agent.host} could not be deployed", actor)
        self.drop_agent(agent_id)
        self.event_log.add("agent_removed", now, host=agent.host, reason="it could not be deployed", actor=actor)
        self.commit()

    def deploy(self, request: dict[str, Any], actor: str, now: Now) -> dict[str, Any]:
        """Declare hosts and their workers (fleet/workers/deployment.py); durable."""
        return Deployment(self, request).carry_out(actor, now)

    def register(
        self,
        registration: messages.Registration,
        *,
        actor: str,
        trusted: bool,
        peer: str,
        now: Now,
        enrolled_by: str = "",
    ) -> messages.RegisterReply:
        """Announce a hand-started launcher's worker (fleet/agents/enrolment.py); durable."""
        return self.enrolment.register(
            registration, actor=actor, trusted=trusted, peer=peer, now=now, enrolled_by=enrolled_by
        )

    def approve(self, agent_id: str, actor: str, now: Now, fingerprint: str = "") -> None:
        self.enrolment.approve(agent_id, actor, now, fingerprint)

    def deny(self, agent_id: str, actor: str, now: Now, fingerprint: str = "") -> None:
        self.enrolment.deny(agent_id, actor, now, fingerprint)

    # ------------------------------------------------------------------------------------------ places

    def cordon(self, host: str, reason: str, actor: str, now: Now) -> None:
        """No new tasks there by the manager's choice (fleet/workers/places.py); durable."""
        self.places.cordon(host, reason, actor, now)

    def uncordon(self, host: str, actor: str, now: Now) -> None:
        self.places.uncordon(host, actor, now)

    def move(self, worker_id: str, host: str, actor: str, now: Now) -> None:
        """Stop a worker here and start it there (fleet/workers/places.py); durable."""
        self.places.move(worker_id, host, actor, now)

    # ------------------------------------------------------------------------------------------ credentials

    def authenticate_agent(self, secret_sha256: str) -> str | None:
        """Whose secret this is. Durable where it is a new one, which ends the one before."""
        found = self.agent_by_secret.get(secret_sha256)
        if found is None and secret_sha256 in self.agent_by_new_secret:
            found = self.rotations.first_use(secret_sha256, clock.read())
        return found

    def revoke_credentials(self, agent_id: str, actor: str, now: Now) -> None:
        """For a secret that was stolen: it is good for nothing from now on, and neither is the key by which a deployed
        agent knows its manager. Its workers run on; a deployment (a launcher: an approval) gives it new ones. Durable.
        """
        agent = self.agent(agent_id)
        self.agent_by_secret.pop(agent.secret_sha256, None)
        self.drop_new_secret(agent)
        agent.revoked_sha256, agent.secret_sha256 = agent.secret_sha256 or agent.revoked_sha256, ""
        if agent.kind == "deployed":  # a launcher could not be told the new one
            agent.key_generation += 1
        for worker in self.workers_of(agent_id):  # whoever had the secret may have used up the numbers of its events
            worker.event_seq = 0
            self.put("workers", worker.worker_id, worker)
        self.tokens.revoke_agents(agent_id)
        self.put("agents", agent_id, agent)
        self.event_log.add("credentials", now, host=agent.host, reason=f"secret of {agent_id} revoked", actor=actor)
        for hook in self.revoked_hooks:
            hook(agent_id)
        self.commit()

    def session_key_of(self, who: str) -> str:
        """The key under which a session is proven: of an agent its proof key, of who brings a token ("token:MARK") the
        token's digest; "" where there is none."""
        if not who.startswith(session.TOKEN_PREFIX):
            return self.proof_key(who)
        token = self.tokens.by_mark(who.removeprefix(session.TOKEN_PREFIX))
        return token.sha256 if token is not None else ""

    def owns(self, agent_id: str, worker_id: str) -> bool:
        """Whether this agent may speak for this worker."""
        worker = self.workers_by_id.get(worker_id)
        return worker is not None and worker.agent_id == agent_id

    def may_ship(self, agent_id: str, worker_id: str, attempt: int) -> bool:
        """Whether this agent may bring log bytes of this attempt: of its own workers, and of one that was withdrawn
        from it those up to the attempt with which it left."""
        if self.owns(agent_id, worker_id):
            return True
        agent = self.agents_by_id.get(agent_id)
        withdrawn = agent.withdrawn.get(worker_id) if agent is not None else None
        if withdrawn is None:
            return False
        return worker_id not in self.workers_by_id or attempt <= int(withdrawn.get("attempts_to", -1))
