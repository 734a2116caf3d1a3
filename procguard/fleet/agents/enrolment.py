"""Enrolment of launchers: who may register a worker, and the launchers that wait for approval.

Owns the pending launchers (in memory: they register again) and the rules of DESIGN §4 and §9 for an id held
elsewhere.
"""

from __future__ import annotations

from collections import Counter

from procguard.errors import Conflict, NotFound, Refused, UsageError
from procguard.fleet.agents.addresses import address_group
from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.agents.secrets import AgentSecrets
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.leases import Leases, replace_spec
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord, PendingLauncher, WorkerRecord, settled
from procguard.fleet.shapes.parts import PendingLauncherView
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import ownership, views
from procguard.fleet.workers.placement_service import PlacementService
from procguard.i18n.reasons import because
from remote_agent.protocol import messages as protocol
from remote_agent.protocol import states

ENDED_KEPT_S = 24 * 3600.0  # a launcher that its user ended stays in the list this long
STRANGERS = "strangers"  # all of them together have one share of the history
PENDING_EXPIRES_S = 600.0  # since its last request, which it repeats every few seconds


class Enrolment:
    def __init__(
        self,
        state: FleetState,
        *,
        leases: Leases,
        gangs: Gangs,
        placement: PlacementService,
        tokens: Tokens,
        secrets: AgentSecrets,
    ) -> None:
        self._state = state
        self._leases = leases
        self._gangs = gangs
        self._placement = placement
        self._tokens = tokens
        self._secrets = secrets
        self._pending: dict[str, PendingLauncher] = {}  # keyed by secret_sha256

    def register(
        self,
        registration: protocol.Registration,
        *,
        actor: str,
        trusted: bool,
        peer: str,
        now: Now,
        enrolled_by: str = "",
    ) -> protocol.RegisterReply:
        """Accept, refuse (Conflict: the id is held elsewhere) or keep pending.

        `trusted`: the caller is an operator, brings an enrolment token (`enrolled_by`: its id), or authenticated with
        this agent's secret.
        """
        worker_id = registration.worker_id
        if not protocol.valid_id(worker_id):
            raise UsageError(
                f"worker id {worker_id!r} is not valid",
                "use letters, digits, '_', '.', '-', at most 64, beginning with a letter or digit",
                code="bad_worker_id",
            )
        agent_id = protocol.LAUNCHER_PREFIX + worker_id
        agent = self._state.agents_by_id.get(agent_id)
        if agent is not None and agent.revoked_sha256 and agent.revoked_sha256 == registration.secret_sha256:
            raise Refused(
                f"the secret of {agent_id} was revoked",
                "create another and register with its hash",
                code="secret_revoked",
            )
        worker = self._state.workers_by_id.get(worker_id)
        known = (
            agent is not None
            and worker is not None
            and worker.agent_id == agent_id
            and bool(agent.secret_sha256)
            and agent.secret_sha256 == registration.secret_sha256
        )
        if not trusted:
            # The hash is not secret: it identifies the launcher and authorizes nothing. Changes require the secret
            # itself. Strangers do not learn whether the id is held elsewhere; the operator who approves does.
            if known and worker is not None:
                return self._registered(worker, now, give_key=False)
            return self._keep_pending(registration, agent_id, peer, now)
        self._refuse_gang_member(registration)
        self._refuse_if_held_elsewhere(registration, agent, known, now)
        with self._state.transaction(now, actor) as tx:
            if enrolled_by and not known:
                self._tokens.spend(tx, enrolled_by)  # a repeated registration of the same launcher spends no use
            worker = self._enrol(tx, registration, agent_id, peer)
        self._waits_no_more(registration.secret_sha256)
        return self._registered(worker, now, give_key=True)

    def _refuse_gang_member(self, registration: protocol.Registration) -> None:
        """Refuse members of a gang, which only the manager stops and starts, whereas a launcher's user may end it."""
        group = registration.spec.group if registration.spec is not None else ""
        if group and self._gangs.groups.policy(group).restart == "gang":
            raise Conflict(
                f"{registration.worker_id}: group {group} restarts as a gang: a hand-started launcher can't be a "
                "member of it",
                "declare the worker in an inventory (invoke deploy), or give it another group",
                code="gang_member",
            )

    def _refuse_if_held_elsewhere(
        self, registration: protocol.Registration, agent: AgentRecord | None, known: bool, now: Now
    ) -> None:
        worker = self._state.workers_by_id.get(registration.worker_id)
        if worker is None or known:
            return
        view = self._state.worker(worker.worker_id)
        same_place = (
            agent is not None
            and worker.agent_id == agent.agent_id
            and worker.host == (registration.host or worker.host)
            and not agent.secret_sha256
        )
        if same_place or self._leases.is_confirmed_stopped(worker.worker_id, now):
            return
        # A launcher ended by its user has stopped its process, so that its last report is final. A deployed agent's
        # last report of a worker that should run is not final: it may have been starting the worker when it became
        # silent.
        by_hand = self._state.agents_by_id[worker.agent_id].kind == "launcher"
        last, observed = view["last_known_state"], self._state.agent_status[worker.agent_id]
        final = settled(last) and (by_hand or worker.desired != "running" or last in (states.EXITED, states.FAILED))
        if final and ((by_hand and view["state"] != "unknown") or not observed.polls_open):
            return  # it ended before its agent became unreachable: nothing can be running
        raise Conflict(
            f"{worker.worker_id} is held by {worker.agent_id} on host {worker.host}, where it is {view['state']}"
            + (f" (last known: {view['last_known_state']})" if view["state"] == "unknown" else ""),
            f"stop it there first (invoke stop {worker.worker_id}) or choose another --worker-id",
            code="held_elsewhere",
        )

    def _keep_pending(
        self, registration: protocol.Registration, agent_id: str, peer: str, now: Now
    ) -> protocol.RegisterReply:
        if len(registration.secret_sha256) != 64:
            raise UsageError(
                f"{registration.worker_id}: a launcher that is not on the manager's machine must send secret_sha256",
                "send the hex SHA-256 of a secret that it generated (see docs/protocol.md), or an enrolment token as "
                "Bearer",
                code="secret_needed",
            )
        self.expire(now)
        known = self._pending.get(registration.secret_sha256)
        if known is not None and known.peer != peer:
            raise Conflict(
                f"the launcher {known.fingerprint} from {known.peer} is already pending",
                f"if it is not yours, deny it: invoke deny {agent_id}",
                code="pending_elsewhere",
            )
        if known is None and len(self._pending) >= self._state.settings.pending_launchers:
            self._make_room(peer)
        print_ = protocol.fingerprint(registration.secret_sha256)
        first = known.first_seen if known else now.wall
        pending = PendingLauncher(registration, agent_id, print_, peer, first, now.wall, now.monotonic)
        self._pending[registration.secret_sha256] = pending
        if known is None:
            with self._state.transaction(now, wait="nothing") as tx:
                tx.event(
                    "agent_pending",
                    worker_id=registration.worker_id,
                    host=registration.host,
                    reason=because("agent.waits_for_approval", agent=agent_id, peer=peer, fingerprint=print_),
                    source=STRANGERS,
                )
        self._notify(pending)
        return protocol.RegisterReply(
            status="pending",
            worker_id=registration.worker_id,
            agent_id=agent_id,
            fleet_id=self._state.fleet_id,
            fingerprint=print_,
            message=f"waits for approval; on the manager: invoke agents approve {agent_id}",
        )

    def _enrol(self, tx: Transaction, registration: protocol.Registration, agent_id: str, peer: str) -> WorkerRecord:
        state = self._state
        spec = registration.spec or protocol.WorkerSpec(command=registration.command)
        spec = protocol.decode(
            protocol.WorkerSpec, protocol.encode(spec)
        )  # with the defaults that were left to the class
        worker = state.workers_by_id.get(registration.worker_id)
        host = registration.host or (worker.host if worker else peer)
        agent = state.agents_by_id.get(agent_id)
        if agent is None:
            agent = AgentRecord(agent_id, host, "launcher", registration.secret_sha256)
            tx.add(agent)
            tx.event("agent_enrolled", host=host, reason=because("agent.may_run", agent=agent_id))
        elif registration.secret_sha256 and agent.secret_sha256 != registration.secret_sha256:
            self._secrets.replace(tx, agent, registration.secret_sha256)
        if agent.host != host:
            tx.edit(agent).host = host
        state.agent_status[agent_id].address = peer
        if worker is None:
            worker = WorkerRecord(registration.worker_id, agent_id, host, spec, epoch=state.next_epoch(tx))
            worker.attempt = registration.attempt
            if state.stopped_by:
                worker.set_desired("stopped", by="failure handler", cause="stop_all", now=tx.now)
            tx.add(worker)
            tx.event(
                "worker_registered",
                worker_id=worker.worker_id,
                host=host,
                reason=because("worker.registered", agent=agent_id),
            )
            return worker
        if worker.agent_id != agent_id or worker.host != host:
            self._take_over(tx, worker, agent_id, host)
        replace_spec(tx.edit(worker), spec)
        if registration.state in (states.EXITED, states.FAILED) and worker.desired == "running":
            worker.generation += 1  # it had ended, and its user started the launcher again
        return worker

    def _take_over(self, tx: Transaction, worker: WorkerRecord, agent_id: str, host: str) -> None:
        old = self._state.agents_by_id.get(worker.agent_id)
        if old is not None and old.agent_id != agent_id:
            ownership.withdraw(self._state, tx, old, worker)
        reason = because("task.taken_over", agent=worker.agent_id, host=worker.host)
        self._placement.transfer(tx, worker, agent_id, host)
        tx.event("takeover", worker_id=worker.worker_id, host=host, reason=reason)

    def _registered(self, worker: WorkerRecord, now: Now, *, give_key: bool) -> protocol.RegisterReply:
        state = self._state
        agent = state.agents_by_id[worker.agent_id]
        if not agent.proof_key_given:
            with state.transaction(now) as tx:  # durable first, because it is sent only once
                tx.edit(agent).proof_key_given = give_key = True
        return protocol.RegisterReply(
            status="registered",
            worker_id=worker.worker_id,
            agent_id=worker.agent_id,
            fleet_id=state.fleet_id,
            epoch=worker.epoch,
            interval_s=state.interval_s(agent.agent_id),
            proof_key=state.proof_key(worker.agent_id) if give_key else "",
            message="registered",
            managers=list(state.leadership.manager_urls()),
            term=state.leadership.term,
        )

    # ------------------------------------------------------------------------------------------ approval

    def approve(self, agent_id: str, actor: str, now: Now, fingerprint: str = "") -> None:
        """Let a pending launcher run; durable. Its next registration is answered with "registered"."""
        self.expire(now)
        pending = self._the_pending(agent_id, fingerprint)
        self._refuse_gang_member(pending.registration)
        self._refuse_if_held_elsewhere(pending.registration, self._state.agents_by_id.get(agent_id), False, now)
        with self._state.transaction(now, actor) as tx:
            worker = self._enrol(tx, pending.registration, agent_id, pending.peer)
            # Sent once with the reply to the next registration, because the launcher cannot know it yet.
            tx.edit(self._state.agents_by_id[worker.agent_id]).proof_key_given = False
        self._waits_no_more(pending.registration.secret_sha256)

    def deny(self, agent_id: str, actor: str, now: Now, fingerprint: str = "") -> None:
        self.expire(now)
        pending = self._the_pending(agent_id, fingerprint)
        self._waits_no_more(pending.registration.secret_sha256)
        with self._state.transaction(now, actor) as tx:
            tx.event("agent_denied", host=pending.registration.host, reason=because("agent.denied", agent=agent_id))

    def _waits_no_more(self, key: str) -> None:
        pending = self._pending.pop(key, None)
        if pending is not None:
            self._state.bus.hosts(self._item_id(pending))

    def views(self) -> list[PendingLauncherView]:
        return [views.pending_view(pending) for pending in self._pending.values()]

    def view(self, item_id: str) -> PendingLauncherView | None:
        pending = self.waiting().get(item_id)
        return None if pending is None else views.pending_view(pending)

    def waiting(self) -> dict[str, PendingLauncher]:
        """The pending launchers by their item id in the change feed."""
        return {self._item_id(pending): pending for pending in self._pending.values()}

    def _the_pending(self, agent_id: str, fingerprint: str) -> PendingLauncher:
        found = [
            pending
            for pending in self._pending.values()
            if pending.agent_id == agent_id and fingerprint in ("", pending.fingerprint)
        ]
        if not found:
            raise NotFound(f"no launcher {agent_id!r} waits for approval", "list them: invoke agents")
        if len(found) > 1:
            prints = ", ".join(pending.fingerprint for pending in found)
            raise Conflict(
                f"{len(found)} launchers wait as {agent_id}: fingerprints {prints}",
                "choose one: invoke agents approve " + agent_id + " --fingerprint …",
                code="ambiguous",
            )
        return found[0]

    def forget_the_ended(self, now: Now) -> None:
        """Remove launchers that their users ended some time ago, and their workers. Durable with the next
        commit."""
        for agent in list(self._state.agents_by_id.values()):
            if agent.ended_wall and now.wall - agent.ended_wall > ENDED_KEPT_S:
                with self._state.transaction(now, "manager", wait="nothing") as tx:
                    for worker in self._state.workers_of(agent.agent_id):
                        ownership.drop_worker(self._state, tx, worker, because("worker.launcher_ended"))

    def expire(self, now: Now) -> None:
        """Remove pending launchers that no longer send requests."""
        for key, pending in list(self._pending.items()):
            if now.monotonic - pending.asked > PENDING_EXPIRES_S:
                self._waits_no_more(key)

    def _make_room(self, peer: str) -> None:
        """Drop the oldest entry of the address with the most pending launchers, so that one address cannot block the
        list for others. Raises Conflict if it is the caller's own address."""
        crowds = Counter(address_group(pending.peer) for pending in self._pending.values())
        crowd, count = crowds.most_common(1)[0]
        if count <= crowds[address_group(peer)] + 1:
            raise Conflict(
                f"{len(self._pending)} launchers are already pending",
                "approve or deny some: invoke agents",
                code="full",
            )
        oldest = min(
            (pending for pending in self._pending.values() if address_group(pending.peer) == crowd),
            key=lambda pending: pending.first_seen,
        )
        self._waits_no_more(oldest.registration.secret_sha256)

    def _notify(self, pending: PendingLauncher) -> None:
        self._state.bus.hosts(self._item_id(pending))

    @staticmethod
    def _item_id(pending: PendingLauncher) -> str:
        return f"{pending.agent_id} {pending.fingerprint}"
