"""Applies the decisions about gangs to the fleet's state: holds, starts and stops the members of a gang together.

Changes the workers' `held`, `generation` and `epoch`, the records of gangs, and, on an operator's command, `desired`
of all members. A change of several workers is one commit, and agents receive it afterwards. After a crash in between,
the next manager continues from the state and starts nothing twice. No I/O of its own.

`step` handles the gangs with new reports; it runs within every heartbeat, before leases are granted, so that a member
whose lease expired is held before anything can start it again. `tick` handles all gangs.
"""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from procguard.config.groups import GroupPolicy
from procguard.fleet.gangs import decider, rendezvous
from procguard.fleet.gangs import views as gang_views
from procguard.fleet.gangs.decider import GangFailure, GangLimits, GangRecord, GangStep, Mark, Member
from procguard.fleet.gangs.policy import FleetGroups, by_hand
from procguard.fleet.history import causes
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord, WorkerRecord, settled
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import NONE, Reason, because, reason_of, with_head
from remote_agent.protocol import messages, states
from remote_agent.runner.restart import DEFAULT_BACKOFF_S

STEPS_AT_ONCE = 4  # form, hold, launch: more steps in a row would be a cycle
CLOCKS_AGREE_S = 0.05  # precision to which the clocks of two hosts are compared, as estimated from heartbeats
ACTOR = "gang keeper"
RESTARTED_JUST_NOW_S = 3.0  # an operation has one command per member, but restarts their gang once


class Asked(NamedTuple):
    """An operator's command to a member."""

    verb: messages.Verb
    attempt: int  # the member's attempt at the time of the command
    reason: str = ""
    operation_id: str = ""
    origin: str = ""


class Gangs:
    def __init__(self, state: FleetState, leases: Leases) -> None:
        self._state = state
        self._leases = leases
        self.groups = FleetGroups(state)
        self.records: Mapping[str, GangRecord] = state.gang_records
        self._restarting_since: dict[str, float] = {}  # monotonic; reset when the manager restarts
        self._healthy_since: dict[str, float] = {}
        self._asked: dict[str, str] = {}  # operators' restarts in progress: group -> operation id, or ""
        self._restarted: dict[str, tuple[float, str]] = {}  # completed: (monotonic time, operation id)
        self._to_check: set[str] = set()

    # ------------------------------------------------------------------------------------------ membership

    def reconcile(self, tx: Transaction) -> None:
        """Create and remove gangs and update their members after a change of workers or groups. Affects no process:
        running workers continue, and a worker that joins a running gang is held until the gang's next start."""
        names = {
            name
            for name, policy in self.groups.policies().items()
            if policy.restart == "gang" and self.groups.members(name)
        }
        for name in names - set(self.records):
            self._begin(tx, name)
        for name in set(self.records) - names:
            tx.remove(self.records[name])
        for worker in self._state.workers_by_id.values():
            if by_hand(worker):
                continue
            gang = self.records.get(worker.spec.group) if worker.spec.group else None
            if gang is None and worker.gang:
                self._leave(tx, worker)
            elif gang is not None:
                self._join(tx, worker, gang)
        self._to_check.update(self.records)

    def _begin(self, tx: Transaction, name: str) -> None:
        workers = self.groups.members(name)
        known = [self._member(worker, tx.now, judge=False) for worker in workers]
        gang = decider.begin(name, known, {worker.worker_id: worker.epoch for worker in workers}, tx.now.wall)
        tx.add(gang)
        self._event(tx, "gang_begun", gang, gang.reason)

    def _join(self, tx: Transaction, worker: WorkerRecord, gang: GangRecord) -> None:
        mark = gang.members.get(worker.worker_id)
        alive = worker.last_state in (*states.ALIVE, states.BACKOFF) and worker.desired == "running"
        if mark is None and alive and not worker.gang and gang.phase == "running":
            mark = Mark(-1, worker.epoch, max(0, worker.attempt - 1))
            tx.edit(gang).members = {**gang.members, worker.worker_id: mark}
        held = gang.phase != "running" or mark is None
        if not worker.gang or worker.held != held:
            tx.edit(worker)
            worker.gang, worker.held = True, held

    def _leave(self, tx: Transaction, worker: WorkerRecord) -> None:
        tx.edit(worker)
        worker.gang = False
        if worker.spec.on_partition != "fence":
            worker.leased, worker.lease_bound_s = False, 0.0
        if worker.held:
            worker.held = False
            worker.generation += 1

    # ------------------------------------------------------------------------------------------ decisions

    def worker_reported(self, worker: WorkerRecord) -> None:
        """Mark the worker's gang for the next `step`."""
        if worker.gang and worker.spec.group in self.records:
            self._to_check.add(worker.spec.group)

    def tick(self, now: Now) -> None:
        """Decide for every gang; durable."""
        self._to_check.update(self.records)
        with self._state.transaction(now, ACTOR) as tx:
            self.step(tx)

    def step(self, tx: Transaction) -> None:
        """Decide for the gangs with new reports."""
        while self._to_check:
            name = self._to_check.pop()
            for _ in range(STEPS_AT_ONCE):
                gang = self.records.get(name)
                if gang is None or not self._one_step(tx, gang):
                    break

    def _one_step(self, tx: Transaction, gang: GangRecord) -> bool:
        """Apply one decision. Returns whether another may follow immediately."""
        workers, now = self.groups.members(gang.group), tx.now
        if not workers:
            tx.remove(gang)
            return False
        known = [self._member(worker, now, judge=gang.phase != "running") for worker in workers]
        self._note_attempts(tx, gang, known)
        self._correct_culprit(tx, gang, workers)
        policy = self.groups.policy(gang.group)
        settings = self._state.settings
        spend = settings.max_recovery_attempts if policy.max_attempts is None else policy.max_attempts
        step = decider.decide(
            gang,
            known,
            GangLimits(spend, settings.enable_auto_recovery, _pauses(policy, workers)),
            wanted=all(worker.desired == "running" for worker in workers),
            waited_s=now.monotonic - self._restarting_since.setdefault(gang.group, now.monotonic),
            healthy_s=self._healthy_s(gang, known, now),
            roll=random.random(),  # noqa: S311 - spreads the restarts; not for security
        )
        self._carry_out(tx, step, gang, workers, known)
        self._finish_commands(tx, gang, known)
        return step.action not in ("keep", "wait")

    def _member(self, worker: WorkerRecord, now: Now, *, judge: bool) -> Member:
        report, agent = self._state.worker_status[worker.worker_id].report, self._state.agent_status[worker.agent_id]
        lost = agent.state in ("unreachable", "never")
        return Member(
            worker_id=worker.worker_id,
            host=worker.host,
            state=report.state if report else worker.last_state,
            current=report is not None and report.generation >= worker.generation,
            attempt=max(worker.attempt, report.attempt if report else 0),
            since=(report.since if report else worker.last_since) + self._clock_offset_s(worker.agent_id),
            reason=reason_of(report.reason) if report else worker.last_reason,
            epoch=worker.epoch,
            gone=(judge or lost) and self._gone(worker, report, now),
            ready=agent.state == "connected",
            lost=lost,
            never_on=_never_on(worker, report),
        )

    def _clock_offset_s(self, agent_id: str) -> float:
        """Seconds to add to the host's wall clock to get the manager's."""
        observed = self._state.agent_status[agent_id]
        if observed.heartbeat is None or not observed.heartbeat.at or observed.last_seen_wall is None:
            return 0.0
        return observed.last_seen_wall - observed.heartbeat.at

    def _correct_culprit(self, tx: Transaction, gang: GangRecord, workers: list[WorkerRecord]) -> None:
        """Replace the culprit if another member failed earlier. The crash of a peer is often reported before the crash,
        or the lost host, that caused it."""
        incident = gang.troubled
        if incident is None or not incident.failure:
            return
        failures = [failure for worker in workers if (failure := self._failure_before(worker, gang, incident.at))]
        own = next((at for at, member, _ in failures if member == incident.member), incident.at)
        at, member, how = min(failures, default=(own, "", NONE))
        if not member or member == incident.member or own - at < CLOCKS_AGREE_S:
            return
        tx.edit(gang)
        gang.incident = dataclasses.replace(
            incident, member=member, reason=with_head(incident.reason, how), failure=how
        )
        gang.reason = with_head(gang.reason, how)
        self._show(tx, workers)

    def _failure_before(self, worker: WorkerRecord, gang: GangRecord, limit: float) -> tuple[float, str, Reason] | None:
        """(time, member, reason) of its own failure in this launch before `limit`, by the manager's wall clock."""
        mark, observed = gang.members.get(worker.worker_id), self._state.agent_status[worker.agent_id]
        report = self._state.worker_status[worker.worker_id].report
        if mark is None:
            return None
        if observed.state == "unreachable" and observed.last_seen_wall is not None and observed.last_seen_wall < limit:
            how = because("gang.host_silent", host=worker.host)
            return observed.last_seen_wall, worker.worker_id, _culprit(worker, how)
        record = report.last_exit if report is not None else None
        if record is None or record.code == 0 or record.attempt <= mark.attempt_base:
            return None
        at = record.at + self._clock_offset_s(worker.agent_id)
        return (at, worker.worker_id, _culprit(worker, reason_of(record.reason))) if at < limit else None

    def _gone(self, worker: WorkerRecord, report: messages.WorkerReport | None, now: Now) -> bool:
        """Whether the worker is confirmed stopped. A report that it ended counts even if its host became unreachable
        afterwards, if the report has the current generation and epoch: a held worker starts nothing before it receives
        another generation."""
        ended = (
            report is not None
            and worker.assigned_state == "stopped"
            and settled(report.state)
            and (report.generation, report.epoch) == (worker.generation, worker.epoch)
        )
        return ended or bool(self._leases.is_confirmed_stopped(worker.worker_id, now))

    @staticmethod
    def _note_attempts(tx: Transaction, gang: GangRecord, known: list[Member]) -> None:
        for member in known if gang.phase == "running" else ():
            mark = gang.members.get(member.worker_id)
            started = member.current and member.state in states.ALIVE
            if mark is not None and started and not mark.attempt and member.attempt > mark.attempt_base:
                mark = dataclasses.replace(mark, attempt=member.attempt)
                tx.edit(gang).members = {**gang.members, member.worker_id: mark}

    def _healthy_s(self, gang: GangRecord, known: list[Member], now: Now) -> float:
        well = gang.phase == "running" and all(
            member.current and member.state in (states.RUNNING, states.EXITED)
            for member in known
            if member.worker_id in gang.members
        )
        if not well:
            self._healthy_since.pop(gang.group, None)
            return 0.0
        return now.monotonic - self._healthy_since.setdefault(gang.group, now.monotonic)

    # ------------------------------------------------------------------------------------------ the steps

    def _carry_out(
        self, tx: Transaction, step: GangStep, gang: GangRecord, workers: list[WorkerRecord], known: list[Member]
    ) -> None:
        if step.action == "keep":
            return
        if step.action == "wait":
            waits = (gang.troubled.reason if gang.troubled is not None else NONE).then(step.reason)
            if gang.reason not in (step.reason, waits):
                tx.edit(gang).reason = waits
                self._show(tx, workers)
            return
        tx.edit(gang)
        gang.attempts, gang.reason = step.attempts, step.reason
        if step.action == "launch":
            self._launch(tx, gang, workers, known)
        elif step.action in ("hold", "fail"):
            self._fall(tx, step, gang, workers)
        elif step.action == "stop":
            gang.reason = _stopped_by(workers)
            self._become(tx, gang, "stopped")
            self._hold(tx, workers)
            self._event(tx, "gang_stopped", gang, gang.reason)
        elif step.action == "form":
            self._form(tx, gang, step.reason)
        elif step.action == "finish":
            self._become(tx, gang, "finished")
            for worker in workers:
                tx.edit(worker).held = True  # its end is final: no new generation, and nothing to stop
            self._event(tx, "gang_finished", gang, step.reason)
        elif step.action == "give_back":
            self._event(tx, "gang_healthy", gang, step.reason)
        self._show(tx, workers)

    def _fall(self, tx: Transaction, step: GangStep, gang: GangRecord, workers: list[WorkerRecord]) -> None:
        failed = step.action == "fail"
        gang.incident = GangFailure(step.culprit, step.reason, tx.now.wall, failure=step.failure)
        gang.delay_s = step.delay_s
        self._become(tx, gang, "failed" if failed else "restarting")
        self._hold(tx, workers)
        self._event(tx, "gang_failed" if failed else "gang_incident", gang, step.reason, step.culprit)
        culprit = self._state.workers_by_id.get(step.culprit)
        if failed and culprit is not None:
            self._state.failing(tx, culprit)

    def _launch(self, tx: Transaction, gang: GangRecord, workers: list[WorkerRecord], known: list[Member]) -> None:
        epoch, policy = self._state.next_epoch(tx), self.groups.policy(gang.group)
        addresses = [self._address(worker) for worker in workers]
        gang.master_addr = rendezvous.master_address(addresses, policy.master_addr)
        taken = {one.master_port for one in self.records.values() if one is not gang and one.phase == "running"}
        first = addresses[0] if addresses[0].free_port not in taken else addresses[0]._replace(free_port=0)
        gang.master_port = rendezvous.master_port(first, epoch, policy.master_port)
        attempts = {member.worker_id: member.attempt for member in known}
        gang.members = {
            worker.worker_id: Mark(rank, epoch, attempts[worker.worker_id]) for rank, worker in enumerate(workers)
        }
        for worker in workers:
            tx.edit(worker)
            worker.epoch, worker.held = epoch, False
            worker.generation = self._above(worker)
        gang.epoch, gang.delay_s = epoch, 0.0
        if gang.troubled is not None:
            gang.incident = dataclasses.replace(gang.troubled, ended=tx.now.wall)
        gang.reason = because("gang.started", n=len(workers), epoch=epoch)
        if gang.group in self._asked:
            self._restarted[gang.group] = (tx.now.monotonic, self._asked.pop(gang.group))
        self._become(tx, gang, "running")
        self._event(tx, "gang_started", gang, gang.reason)

    def _form(self, tx: Transaction, gang: GangRecord, reason: Reason) -> None:
        tx.edit(gang)
        gang.attempts, gang.delay_s, gang.incident = 0, 0.0, None
        self._become(tx, gang, "restarting")
        self._hold(tx, self.groups.members(gang.group))
        self._event(tx, "gang_forming", gang, reason)

    def _hold(self, tx: Transaction, workers: list[WorkerRecord]) -> None:
        """Hold all members. A new generation distinguishes their later reports from earlier ones."""
        for worker in workers:
            tx.edit(worker).held = True
            worker.generation = self._above(worker)

    def _above(self, worker: WorkerRecord) -> int:
        report = self._state.worker_status[worker.worker_id].report
        return max(worker.generation, report.generation if report else 0) + 1

    def _address(self, worker: WorkerRecord) -> rendezvous.MemberAddress:
        agent, observed = self._state.agents_by_id[worker.agent_id], self._state.agent_status[worker.agent_id]
        beat, local = observed.heartbeat, bool(agent.ssh.get("local"))
        named = beat.facts.hostname if local and beat is not None else ""
        return rendezvous.MemberAddress(
            local=local,
            ssh_hostname=str(agent.ssh.get("hostname") or ""),
            host=named or agent.host,
            peer=observed.address,
            free_port=beat.free_port if beat is not None else 0,
        )

    def environment(self, worker: WorkerRecord) -> dict[str, str]:
        """The variables that the manager adds to a member's environment; {} for other workers."""
        gang = self.records.get(worker.spec.group) if worker.gang else None
        mark = gang.members.get(worker.worker_id) if gang is not None else None
        if gang is None or mark is None or mark.rank < 0:
            return {}
        policy = self.groups.policy(gang.group)
        return rendezvous.environment(
            policy.rendezvous,
            gang.group,
            mark.rank,
            len(gang.members),
            policy.nproc_per_node,
            gang.master_addr,
            gang.master_port,
        )

    # ------------------------------------------------------------------------------------------ operators' commands

    def accept(self, tx: Transaction, worker: WorkerRecord, asked: Asked) -> CommandRecord:
        """Apply an operator's command for one member to its whole gang."""
        gang, workers = self.records[worker.spec.group], self.groups.members(worker.spec.group)
        if asked.verb in ("stop", "kill"):
            record = self._stop(tx, worker, workers, asked)
        else:
            record = self._add(tx, worker, asked, by_manager=True)
            self._start(tx, gang, worker, workers, asked)
        self._to_check.add(gang.group)
        self.step(tx)
        return record

    def _add(self, tx: Transaction, worker: WorkerRecord, asked: Asked, *, by_manager: bool = False) -> CommandRecord:
        return self._state.command_queue.add(
            tx,
            worker,
            asked.verb,
            asked.attempt,
            reason=asked.reason,
            operation_id=asked.operation_id,
            origin=asked.origin,
            by_manager=by_manager,
        )

    def _start(
        self, tx: Transaction, gang: GangRecord, worker: WorkerRecord, workers: list[WorkerRecord], asked: Asked
    ) -> None:
        for one in workers:
            if one.desired != "running":
                tx.edit(one).set_desired("running", by=tx.actor, cause="operator", now=tx.now)
        restarted_at, batch = self._restarted.get(gang.group, (-math.inf, ""))
        just_now = tx.now.monotonic - restarted_at < RESTARTED_JUST_NOW_S or (batch and batch == asked.operation_id)
        if asked.verb == "restart":
            why = because("gang.restart_asked", actor=tx.actor, member=worker.worker_id)
        else:
            why = because("gang.start_asked", actor=tx.actor, member=worker.worker_id)
        tx.edit(gang)
        if gang.phase == "restarting":  # no pause for an operator
            gang.delay_s, gang.attempts = 0.0, gang.attempts if asked.verb == "restart" else 0
        elif gang.phase != "running":
            gang.reason = why
            self._form(tx, gang, why)
        elif asked.verb == "restart" and not just_now:
            gang.reason, gang.delay_s, gang.incident = why, 0.0, None
            self._become(tx, gang, "restarting")
            self._hold(tx, workers)
            self._event(tx, "gang_restart", gang, why, worker.worker_id, tx.actor)
        if gang.phase == "restarting":
            self._asked[gang.group] = asked.operation_id
        self._show(tx, workers)

    def begin_again(self, tx: Transaction, worker: WorkerRecord) -> None:
        """Restart a failed gang after the specification of a member was changed."""
        gang = self.records.get(worker.spec.group)
        if gang is not None and gang.phase == "failed":
            tx.edit(gang).reason = because("gang.corrected", member=worker.worker_id, actor=tx.actor)
            self._form(tx, gang, gang.reason)
            self._to_check.add(gang.group)
            self.step(tx)

    def _stop(self, tx: Transaction, worker: WorkerRecord, workers: list[WorkerRecord], asked: Asked) -> CommandRecord:
        alive = [one for one in workers if not settled(self._member(one, tx.now, judge=False).state)]
        for one in workers:
            tx.edit(one).set_desired("stopped", by=tx.actor, cause="operator", now=tx.now)
            one.stop_moving_on()
            one.generation = self._above(one)
        record = self._add(tx, worker, asked)
        if asked.verb == "kill":
            for one in alive:
                if one is not worker:
                    attempt = self._member(one, tx.now, judge=False).attempt
                    why = because("gang.with_member", member=worker.worker_id)
                    self._add(tx, one, asked._replace(attempt=attempt, reason=why, operation_id=""))
            if worker not in alive:
                self._state.command_queue.finish(tx, record, "done", because("gang.ended_already"))
        return record

    def _finish_commands(self, tx: Transaction, gang: GangRecord, known: list[Member]) -> None:
        """Finish the start and restart commands that the manager carries out itself."""
        queue = self._state.command_queue
        for member in known:
            for record in queue.by_manager(member.worker_id):
                mark = gang.members.get(member.worker_id)
                if gang.phase in ("failed", "stopped"):
                    queue.finish(tx, record, "failed", gang.reason)
                elif (
                    gang.phase == "running"
                    and mark is not None
                    and member.current
                    and member.attempt > mark.attempt_base
                ):
                    queue.finish(tx, record, "done", because("gang.attempt", attempt=member.attempt))
                elif gang.phase == "finished":
                    queue.finish(tx, record, "done", gang.reason)
                else:
                    continue
                self._state.command_event(tx, record)

    # ------------------------------------------------------------------------------------------ views

    def views(self) -> list[gang_views.GroupAnswer]:
        """Views of all groups that have a member or a policy, ordered by name."""
        members: dict[str, list[WorkerRecord]] = {name: [] for name in self.groups.policies()}
        for worker in self._state.workers_by_id.values():
            if worker.spec.group:
                members.setdefault(worker.spec.group, []).append(worker)
        return [
            gang_views.of_group(
                name,
                self.groups.policy(name),
                self.groups.said_by(name),
                self.records.get(name),
                [self._state.worker_view(worker) for worker in workers],
                self._state.settings.max_recovery_attempts,
            )
            for name, workers in sorted(members.items())
        ]

    # ------------------------------------------------------------------------------------------ helpers

    def _become(self, tx: Transaction, gang: GangRecord, phase: decider.Phase) -> None:
        gang.phase, gang.since = phase, tx.now.wall
        if phase == "restarting":
            self._restarting_since[gang.group] = tx.now.monotonic
        self._healthy_since.pop(gang.group, None)

    @staticmethod
    def _show(tx: Transaction, workers: list[WorkerRecord]) -> None:
        for worker in workers:
            tx.show("workers", worker.worker_id)

    def _event(
        self, tx: Transaction, kind: str, gang: GangRecord, reason: Reason, worker_id: str = "", actor: str = ACTOR
    ) -> None:
        worker = self._state.workers_by_id.get(worker_id)
        tx.event(
            kind,
            worker_id=worker_id,
            host=worker.host if worker else "",
            after=gang.phase,
            reason=because("gang.of", group=gang.group, why=reason),
            actor=actor,
            cause="gang",
        )


def _never_on(worker: WorkerRecord, report: messages.WorkerReport | None) -> str:
    record = report.last_exit if report is not None else None
    if report is None or record is None or report.state != "failed" or record.attempt != report.attempt:
        return ""
    return record.cause if causes.final(record, worker.spec) else ""


def _culprit(worker: WorkerRecord, why: Reason) -> Reason:
    return because("gang.culprit", member=worker.worker_id, host=worker.host, why=why)


def _stopped_by(workers: list[WorkerRecord]) -> Reason:
    first = next(worker for worker in workers if worker.desired != "running")
    if first.desired_by:
        return because("gang.member_stopped_by", member=first.worker_id, actor=first.desired_by)
    return because("gang.member_stopped", member=first.worker_id)


def _pauses(policy: GroupPolicy, workers: list[WorkerRecord]) -> Sequence[float]:
    """The group's backoff delays; otherwise those of its members, if all are equal; otherwise the defaults."""
    if policy.backoff_s:
        return policy.backoff_s
    own = {tuple(worker.spec.restart.backoff_s) for worker in workers}
    return (own.pop() if len(own) == 1 else ()) or DEFAULT_BACKOFF_S
