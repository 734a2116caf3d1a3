"""Gangs: groups that fail and restart together. The facts about a gang and the decision on its next step. Pure.

`decide` receives a gang's record, the current facts about each member, and the time since its restart began; it returns
one step with a readable reason. It does no I/O and reads no clock; controller.py carries the steps out.

             all members confirmed stopped, hosts connected, pause over: LAUNCH (one new epoch for all)
    restarting ───────────────────────────────────────────────────────────────────────► running
        ▲  ▲                                                                             │ │ │
        │  └── HOLD: a member failed, was lost, or an operator restarts it ◄─────────────┘ │ └─ FINISH: all exited 0
        │                                                                                  ▼             ▼
        └──────── FORM: an operator starts it ◄── stopped, failed ◄── STOP, FAIL ──────────┘         finished

Members may run only in phase `running`, only if they were part of the launch, and only under its epoch. Otherwise they
are held, which does not change their desired state. Two epochs never run at once, because LAUNCH requires that every
member is confirmed stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

from procguard.fleet.model.records import Record, nested
from procguard.i18n.reasons import NONE, Reason, because
from procguard.json_types import Json
from remote_agent.protocol import states
from remote_agent.runner.restart import DEFAULT_BACKOFF_S

JITTER = 0.25
HEALTHY_AFTER_S = 600.0

Phase = Literal["restarting", "running", "stopped", "failed", "finished"]
Action = Literal["keep", "wait", "form", "hold", "launch", "fail", "finish", "stop", "give_back"]


@dataclass(frozen=True)
class Mark:
    """The facts about one member at the gang's launch. `attempt`: the attempt started by it, 0 = not reported yet."""

    rank: int
    epoch: int
    attempt_base: int  # the member's highest attempt before the launch
    attempt: int = 0


@dataclass(frozen=True)
class GangFailure:
    """The cause of the current or last restart; times are wall times. `failure`: the first part of `reason`, the
    failure of `member`."""

    member: str = ""
    reason: Reason = NONE
    at: float = 0.0
    ended: float = 0.0  # 0: in progress
    failure: Reason = NONE


@dataclass
class GangRecord(Record):
    """One gang; durable. `members`: those of the last launch. A member added later joins with the next launch."""

    TABLE, KEY = "gangs", "group"
    NESTED: ClassVar[Mapping[str, type[Any]]] = {"incident": GangFailure}

    group: str
    phase: Phase = "restarting"
    epoch: int = 0  # epoch of the last launch; 0: none yet
    attempts: int = 0  # restarts used of the budget
    members: Mapping[str, Mark] = field(default_factory=dict)
    master_addr: str = ""
    master_port: int = 0
    reason: Reason = NONE  # the reason of the phase
    delay_s: float = 0.0  # restarting: minimum delay of the launch after `since`
    since: float = 0.0  # wall time of the phase
    incident: GangFailure | None = None  # the last one

    @classmethod
    def _revive(cls, values: Json) -> None:
        values["members"] = {key: nested(Mark, one) for key, one in values["members"].items()}

    @property
    def troubled(self) -> GangFailure | None:
        """The incident in progress, or None."""
        return self.incident if self.incident is not None and not self.incident.ended else None


class Member(NamedTuple):
    """The current facts about one member."""

    worker_id: str
    host: str
    state: str  # as last reported
    current: bool  # the report has the current generation
    attempt: int
    since: float  # wall time of its state, by the manager's clock
    reason: Reason
    epoch: int  # the epoch of its record
    gone: bool  # confirmed stopped: settled, or fenced
    ready: bool  # its agent is connected: it can be started
    lost: bool  # its agent is unreachable
    never_on: str = ""  # the cause of its last failure if it rules out a restart: never_on or the time limit


class GangLimits(NamedTuple):
    """A gang's restart budget. `auto` False: recovery.enable_auto_recovery is off, so that nothing restarts
    automatically."""

    max_attempts: int = 3
    auto: bool = True
    backoff_s: Sequence[float] = DEFAULT_BACKOFF_S


class GangStep(NamedTuple):
    action: Action
    reason: Reason = NONE
    culprit: str = ""  # hold, fail: the member that failed first
    failure: Reason = NONE  # hold, fail: the first part of `reason`, the member's failure
    attempts: int = 0  # restarts used after this step
    delay_s: float = 0.0  # hold: minimum delay of the launch


def decide(
    gang: GangRecord,
    members: Sequence[Member],
    limits: GangLimits,
    *,
    wanted: bool,
    waited_s: float = 0.0,
    healthy_s: float = 0.0,
    roll: float = 0.5,
) -> GangStep:
    """The next step of `gang`.

    `wanted`: the desired state of all members is running. `waited_s`: time since the restart began; `healthy_s`: time
    for which all members have been running. `roll` in [0, 1) selects a delay within the jitter.
    """
    if not wanted:
        return (
            _keep(gang)
            if gang.phase == "stopped"
            else GangStep("stop", because("gang.stopped"), attempts=gang.attempts)
        )
    if gang.phase == "stopped":
        return GangStep("form", because("gang.started_by"))
    if gang.phase == "running":
        return _watch(gang, members, limits, healthy_s, roll)
    if gang.phase == "restarting":
        return _gather(gang, members, waited_s)
    return _keep(gang)  # failed and finished wait for an operator


def _keep(gang: GangRecord) -> GangStep:
    return GangStep("keep", gang.reason, attempts=gang.attempts)


def _watch(gang: GangRecord, members: Sequence[Member], limits: GangLimits, healthy_s: float, roll: float) -> GangStep:
    present = {member.worker_id for member in members}
    left = sorted(set(gang.members) - present)
    if left:
        return GangStep("hold", because("gang.left", n=len(left), members=left), left[0], attempts=gang.attempts)
    launched = [member for member in members if member.worker_id in gang.members]
    broken = [(member, how) for member in launched if (how := broke(member, gang.members[member.worker_id]))]
    if broken:
        first, how = min(broken, key=lambda one: one[0].since)
        return _incident(gang, first, how, limits, roll)
    if launched and all(_finished(member) for member in launched):
        return GangStep("finish", because("gang.finished", n=len(launched)), attempts=gang.attempts)
    if gang.attempts and healthy_s >= HEALTHY_AFTER_S:
        return GangStep("give_back", because("gang.healthy", healthy_s=HEALTHY_AFTER_S))
    return _keep(gang)


def broke(member: Member, mark: Mark) -> Reason:
    """The failure of this member of a running gang; NONE if there is none. An unreachable host is not a failure until
    its member is confirmed stopped, because the job may still run there."""
    if member.epoch != mark.epoch:
        return because("gang.given", host=member.host)
    if _finished(member):
        return NONE
    if member.lost and member.gone:
        return because("gang.host_lost", host=member.host)
    if not member.current:
        return NONE  # it has not received this launch yet
    if member.state == states.FAILED:
        return member.reason or because("gang.member_failed")
    if member.attempt <= mark.attempt_base:
        return NONE  # not started yet: it waits for its lease, or for GPUs
    if member.state in (states.STOPPED, states.BACKOFF):
        return member.reason or because("gang.member_is", state=member.state)
    if mark.attempt and member.attempt != mark.attempt:
        return because("gang.alone", attempt=member.attempt)
    return NONE


def _finished(member: Member) -> bool:
    return member.current and member.state == states.EXITED


def _incident(gang: GangRecord, first: Member, how: Reason, limits: GangLimits, roll: float) -> GangStep:
    what = because("gang.culprit", member=first.worker_id, host=first.host, why=how)
    if not limits.auto:
        reason = what.then(because("gang.auto_off"))
        return GangStep("fail", reason, first.worker_id, what, gang.attempts)
    if first.never_on and first.state == states.FAILED:
        limit = first.never_on == "time_limit"
        reason = what.then(
            because("restart.time_limit") if limit else because("restart.never_on", cause=first.never_on)
        )
        return GangStep("fail", reason, first.worker_id, what, gang.attempts)
    if gang.attempts >= limits.max_attempts:
        most = limits.max_attempts
        spent = because("gang.none_allowed") if most == 0 else because("gang.spent", n=most)
        return GangStep("fail", what.then(spent), first.worker_id, what, gang.attempts)
    pause_s = limits.backoff_s[min(gang.attempts, len(limits.backoff_s) - 1)] * (1.0 + JITTER * (2.0 * roll - 1.0))
    attempts = gang.attempts + 1
    reason = what.then(because("gang.restart", k=attempts, n=limits.max_attempts, delay_s=pause_s))
    return GangStep("hold", reason, first.worker_id, what, attempts, pause_s)


def _gather(gang: GangRecord, members: Sequence[Member], waited_s: float) -> GangStep:
    """The step of a held gang, which waits until all members are confirmed stopped, their hosts are connected and the
    pause is over."""
    alive = [member.worker_id for member in members if not member.gone]
    if alive:
        return GangStep("wait", because("gang.wait_ended", n=len(alive), members=alive))
    away = sorted({member.host for member in members if not member.ready})
    if away:
        return GangStep("wait", because("gang.wait_hosts", n=len(away), hosts=away))
    left_s = gang.delay_s - waited_s
    if left_s > 0:
        return GangStep("wait", because("gang.wait_pause", delay_s=gang.delay_s))
    return GangStep("launch", because("gang.start_together", n=len(members)), attempts=gang.attempts)


# ------------------------------------------------------------------------------------------------ a gang's beginning


def begin(group: str, members: Sequence[Member], epochs_of: dict[str, int], now_wall: float) -> GangRecord:
    """The record of a group that has become a gang. Running workers continue; they are a gang from its next restart."""
    gang = GangRecord(group, since=now_wall)
    ran = [member for member in members if member.attempt > 0]
    if any(member.state in (*states.ALIVE, states.BACKOFF) for member in ran):
        gang.phase, gang.reason = "running", because("gang.begun_running")
        gang.members = {
            member.worker_id: Mark(rank, epochs_of[member.worker_id], max(0, member.attempt - 1))
            for rank, member in enumerate(ran)
        }
    elif ran and all(member.state == states.EXITED for member in ran):
        gang.phase, gang.reason = "finished", because("gang.begun_finished")
    elif any(member.state == states.FAILED for member in ran):
        failed = next(member for member in ran if member.state == states.FAILED)
        gang.phase, gang.reason = "failed", because("gang.begun_failed", member=failed.worker_id)
    else:
        gang.reason = because("gang.begun_new")
    return gang
