"""Placement of workers on hosts: candidates, and the reassignment of a worker to one of them.

Owns cordons, failure histories, and the only code path that moves a worker to another host. Works through the fleet's
state. Does not decide *when* to move (fleet/recovery/reassignment.py); knows no SSH.

Invariant: a worker is reassigned only while its instance is confirmed stopped (`leases.is_confirmed_stopped`),
checked in the same transaction in which ownership changes. An early call is refused.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from procguard.errors import Conflict, NotFound
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.model.records import AgentRecord, HostCordon, Move, WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import failure_history, ownership, placement
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from remote_agent.protocol.messages import GpuUsage

UNREPORTED_ATTEMPTS = 10  # upper bound of the starts that a host can make unreported within a lease of one minute


class PlacementService:
    def __init__(self, state: FleetState, leases: Leases) -> None:
        self._state = state
        self._leases = leases

    # ------------------------------------------------------------------------------------------ choosing

    def choose(self, worker: WorkerRecord, now: Now, avoid: frozenset[str] = frozenset()) -> placement.Placement:
        """Choose a spare for this worker, or return the reason why there is none."""
        task = placement.Task(
            worker.worker_id, worker.spec.requires, worker.spec.gpus, avoid | self._may_still_run_it(worker)
        )
        coming = self._coming(worker)
        candidates = (
            self.candidate(agent, now, coming.get(agent.agent_id, ())) for agent in self._state.agents_by_id.values()
        )
        return placement.choose(
            task,
            [
                dataclasses.replace(
                    one, home=one.agent_id == worker.home, same_gang=self._same_gang(worker, one.agent_id)
                )
                for one in candidates
            ],
        )

    def _same_gang(self, worker: WorkerRecord, agent_id: str) -> int:
        others = self._state.workers_of(agent_id) if worker.gang else []
        return sum(1 for one in others if one.spec.group == worker.spec.group and one is not worker)

    def _coming(self, but: WorkerRecord) -> dict[str, list[WorkerRecord]]:
        """The workers that are about to move to each agent: what they need there is promised already."""
        found: dict[str, list[WorkerRecord]] = {}
        for one in self._state.workers_by_id.values():
            if one.moving is not None and one is not but and one.agent_id != one.moving.to:
                found.setdefault(one.moving.to, []).append(one)
        return found

    def _may_still_run_it(self, worker: WorkerRecord) -> frozenset[str]:
        """The agents that may still run the worker: its current one, and those that have not confirmed a withdrawal."""
        ids = self._state.agents_by_id.items()
        holders = {agent_id for agent_id, agent in ids if worker.worker_id in agent.withdrawn}
        return frozenset(holders | {worker.agent_id})

    def candidate(self, agent: AgentRecord, now: Now, coming: Sequence[WorkerRecord] = ()) -> placement.Candidate:
        """A host as a candidate, from its record and its last heartbeat. `coming`: the workers about to move there."""
        observed, workers = self._state.agent_status[agent.agent_id], self._state.workers_of(agent.agent_id)
        limited = agent.spare is not True
        return placement.Candidate(
            agent_id=agent.agent_id,
            host=agent.host,
            deployed=agent.kind == "deployed",
            connected=observed.state == "connected" and observed.poll_lost_at is None,
            cordoned=agent.cordon.reason if agent.cordon is not None else NONE,
            spare=bool(agent.spare),
            carries=sum(1 for worker in workers if worker.home not in ("", agent.agent_id))
            + sum(1 for worker in coming if worker.home != agent.agent_id),
            carries_most=int(agent.spare) if limited else None,
            labels=agent.labels,
            gpus_free=self._gpus_free(agent.agent_id, workers, coming),
            score=failure_history.score(agent.failures, now.wall),
            workers=len(workers) + len(coming),
        )

    def _gpus_free(self, agent_id: str, workers: Sequence[WorkerRecord], coming: Sequence[WorkerRecord]) -> int | None:
        """The number of GPUs that the last heartbeat reports as neither allocated nor in use, minus those promised
        since."""
        usable = self.usable_gpus(agent_id)
        if usable is None:
            return None
        free = sum(1 for gpu in usable if not gpu.worker_id and not gpu.processes)
        wanted = sum(worker.spec.gpus for worker in coming if worker.moving is not None and worker.moving.run)
        promised = sum(worker.spec.gpus for worker in workers if worker.desired == "running")
        return max(0, min(free, len(usable) - promised) - wanted)

    def usable_gpus(self, agent_id: str) -> list[GpuUsage] | None:
        """The GPUs of the last heartbeat that work and are not cordoned, allocated or not; None: not reported."""
        beat = self._state.agent_status[agent_id].heartbeat
        if beat is None or beat.usage is None:
            return None
        cordoned = self._state.agents_by_id[agent_id].gpu_cordons
        return [
            gpu
            for gpu in beat.usage.gpus
            if not gpu.trouble and gpu.uuid not in cordoned and f"#{gpu.index}" not in cordoned
        ]

    # ------------------------------------------------------------------------------------------ changing hands

    def transfer(self, tx: Transaction, worker: WorkerRecord, agent_id: str, host: str) -> None:
        """Assign a worker whose old instance is confirmed stopped to another agent, under a new epoch, to be started
        there."""
        ownership.transfer(self._state, tx, worker, agent_id, host)
        self._leases.ended(worker.worker_id)

    def reassign(
        self,
        tx: Transaction,
        worker: WorkerRecord,
        agent_id: str,
        reason: Reason,
        *,
        actor: str,
        run: bool = True,
        counts: bool = False,
    ) -> None:
        """Reassign the worker to `agent_id` under a new epoch and withdraw it from its last agent. Raises Conflict if
        an instance may still be running on either host. `counts`: whether this counts towards
        max_recovery_attempts."""
        outcome = self._leases.judge(worker.worker_id, tx.now)
        target = self._state.agents_by_id[agent_id]
        if not outcome.gone:
            raise Conflict(f"{worker.worker_id} cannot go to {target.host}: {outcome.reason}", "wait, or stop it first")
        if worker.gang and not worker.held and run:  # the new host would start it immediately, without its gang
            raise Conflict(f"{worker.worker_id}: its gang has not been stopped yet", "wait until it is")
        if worker.worker_id in target.withdrawn:
            raise Conflict(
                f"{worker.worker_id}: {target.host} has not confirmed yet that its old copy has stopped",
                "try again in a moment",
            )
        old = self._state.agents_by_id.get(worker.agent_id)
        before = worker.host
        tx.edit(worker)
        if outcome.by_time:
            # Its host may have restarted it without a report. Attempts identify logs permanently: the new host starts
            # above them.
            worker.attempt += UNREPORTED_ATTEMPTS + int(worker.spec.lease_s / 60)
        if old is not None:
            ownership.withdraw(self._state, tx, old, worker)
        worker.moves += counts
        worker.home = worker.home or worker.agent_id
        self.transfer(tx, worker, agent_id, target.host)
        if not run:
            worker.set_desired("stopped", by=actor, cause="operator", now=tx.now)
        if worker.home == agent_id:
            worker.home = ""
        tx.event(
            "reassigned",
            worker_id=worker.worker_id,
            host=target.host,
            before=before,
            after=target.host,
            reason=reason_of(reason).then(outcome.reason),
            actor=actor,
        )

    # ------------------------------------------------------------------------------------------ an operator's move

    def move(self, worker_id: str, host: str, actor: str, now: Now) -> None:
        """Stop a worker and, once its instance is confirmed stopped, start it on `host`. Durable: `moved` continues
        the move in each round, also after a restart of the manager."""
        worker, target = self._state.find(worker_id), self._deployed(host)
        self._refuse_move(worker, target, now)
        with self._state.transaction(now, actor) as tx:
            tx.edit(worker)
            run = worker.desired == "running" or (worker.moving is not None and worker.moving.run)
            if worker.desired == "running":
                worker.set_desired("stopped", by=actor, cause="operator", now=now)
                worker.generation += 1
            worker.moving = Move(target.agent_id, run, actor)
            where = because("task.move", host=host)
            tx.event("move", worker_id=worker_id, host=worker.host, reason=where, cause="operator")

    def _refuse_move(self, worker: WorkerRecord, target: AgentRecord, now: Now) -> None:
        who, where = worker.worker_id, target.host
        if worker.agent_id == target.agent_id:
            raise Conflict(f"{who} is already on {where}", "nothing to do", code="already_there")
        if worker.desired == "removed":
            raise Conflict(f"{who} is being removed", "deploy it again to use it", code="being_removed")
        if self._state.agent(worker.agent_id).kind == "launcher":
            raise Conflict(f"{who} was started by hand on {worker.host}", f"start its launcher on {where} instead")
        candidate = dataclasses.replace(
            self.candidate(target, now, self._coming(worker).get(target.agent_id, ())),
            spare=True, carries_most=None, home=worker.home == where,
        )  # fmt: skip
        avoid = frozenset({target.agent_id}) if who in target.withdrawn else frozenset()
        task = placement.Task(who, worker.spec.requires, worker.spec.gpus, avoid)
        why = placement.against(task, candidate)
        if why:
            raise Conflict(f"{who} cannot go to {where}: {why}", "see invoke hosts, or choose another")
        outcome = self._leases.judge(who, now)
        if (
            not outcome.gone
            and outcome.wait_s is None
            and self._state.agent_status[worker.agent_id].state != "connected"
        ):
            raise Conflict(
                f"{who} cannot be moved while {worker.host} is unreachable: {outcome.reason}", "wait until it returns"
            )

    def moved(self, now: Now) -> None:
        """Continue the operators' moves: assign each worker that has stopped to its new host. Durable with the next
        commit."""
        for worker in [one for one in self._state.workers_by_id.values() if one.moving is not None]:
            move = worker.moving
            if move is None or not self._leases.is_confirmed_stopped(worker.worker_id, now):
                continue
            if worker.gang and not worker.held:
                continue  # its gang is about to stop
            target = self._state.agents_by_id.get(move.to)
            with self._state.transaction(now, move.actor, wait="nothing") as tx:
                if target is None:
                    tx.edit(worker).moving = None
                elif worker.worker_id not in target.withdrawn:
                    self.reassign(tx, worker, move.to, because("task.moved"), actor=move.actor, run=move.run)
                    if move.settles:  # meanwhile the inventory declares it there
                        worker.home = ""

    # ------------------------------------------------------------------------------------------ cordons

    def cordon(self, host: str, reason: str, actor: str, now: Now) -> None:
        """Place no new tasks on the host; running workers are not affected. Durable."""
        agent = self._deployed(host)
        with self._state.transaction(now, actor) as tx:
            why = reason_of(reason) or because("host.cordoned")
            tx.edit(agent).cordon = HostCordon(why, actor, iso(now.wall))
            tx.event("host_cordoned", host=host, reason=why)

    def uncordon(self, host: str, actor: str, now: Now) -> None:
        """Allow tasks to be placed on the host again. Durable."""
        agent = self._deployed(host)
        if agent.cordon is not None:
            with self._state.transaction(now, actor) as tx:
                tx.edit(agent).cordon = None
                tx.event("host_uncordoned", host=host, reason=because("host.uncordoned"))

    def cordon_gpu(self, host: str, index: int, reason: str, actor: str, now: Now) -> None:
        """Cordon one GPU of a host: it is allocated to no further worker. An attempt that runs on it keeps
        it. Durable."""
        agent = self._deployed(host)
        with self._state.transaction(now, actor) as tx:
            why = reason_of(reason) or because("host.cordoned")
            cordon = HostCordon(why, actor, iso(now.wall))
            tx.edit(agent).gpu_cordons = {**agent.gpu_cordons, self._gpu_key(agent, index): cordon}
            tx.event(
                "gpu_cordoned", host=host, reason=because("gpu.fault", index=index, fault=why), evidence={"gpu": index}
            )

    def uncordon_gpu(self, host: str, index: int, actor: str, now: Now) -> None:
        """Allow the GPU to be allocated to workers again. Durable."""
        agent = self._deployed(host)
        keys = {f"#{index}", self._gpu_key(agent, index)} & set(agent.gpu_cordons)
        if keys:
            with self._state.transaction(now, actor) as tx:
                left = {key: one for key, one in agent.gpu_cordons.items() if key not in keys}
                tx.edit(agent).gpu_cordons = left
                reason = because("gpu.fault", index=index, fault=because("gpu.usable"))
                tx.event("gpu_uncordoned", host=host, reason=reason, evidence={"gpu": index})

    def _gpu_key(self, agent: AgentRecord, index: int) -> str:
        """The key of a GPU of this host. Raises NotFound if the last heartbeat reports no such GPU and none with this
        index is cordoned."""
        beat = self._state.agent_status[agent.agent_id].heartbeat
        gpus = beat.usage.gpus if beat is not None and beat.usage is not None else []
        for gpu in gpus:
            if gpu.index == index:
                return gpu.uuid or f"#{index}"
        if f"#{index}" in agent.gpu_cordons:
            return f"#{index}"
        raise NotFound(f"{agent.host} reports no GPU {index}", "list them: GET /api/gpus", code="unknown_gpu")

    def note_failure(self, tx: Transaction, agent_id: str, kind: failure_history.Kind, what: Reason) -> None:
        """Add an entry to the host's failure history."""
        agent = self._state.agents_by_id.get(agent_id)
        if agent is not None:
            tx.edit(agent).failures = failure_history.noted(agent.failures, kind, what, tx.now.wall)

    def _deployed(self, host: str) -> AgentRecord:
        agent = self._state.agents_by_id.get(host)
        if agent is None or agent.kind != "deployed":
            raise NotFound(f"no deployed host {host[:80]!r}", "list them: invoke hosts", code="unknown_host")
        return agent
