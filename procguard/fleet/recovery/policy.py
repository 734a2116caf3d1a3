"""Decides what the manager does about each failure. Pure; handler.py carries the decisions out.

    failure                                     row                        action
    ------------------------------------------------------------------------------------------------------------------
    a silent agent (`decide`): the first row that applies
      a launcher is gone                        started_by_hand            report it: only its user can start it
      recovery is disabled                      switched_off               start nothing
      the manager has just started              manager_just_started       wait: agents get heartbeat_timeout x 3
      many hosts became silent at once          circuit_breaker_is_open    wait until the circuit breaker closes
      all starts failed                         attempts_are_spent         give up, with an alert, until a heartbeat
      the agent died, its host is up            not_probed_yet             probe over SSH at once, start it if absent
      the host is unreachable, or SSH fails     host_out_of_reach          probe again; its workers show unknown
      the agent is frozen (SIGSTOP, debugger)   agent_is_frozen            replace it after heartbeat_timeout
      it was started, or runs (the probe gave   waiting_for_heartbeat      wait for recovery_timeout
        it the manager's current addresses
        if none of its own worked)
      it sent no heartbeat                      no_heartbeat_after_start   probe again, with increasing delay

    a worker that failed, or whose host is lost (`decide_task`), if recovery.task_reassignment is true
      it should not run, or runs again          nothing_to_do              drop the case
      it was started by hand                    hand_started_task          leave it: nobody can start it elsewhere
      recovery is disabled or suspended         held_back                  wait
      it may still be running (keep: no limit;  may_be_alive               wait: two copies are worse than none
        fence: until its lease has expired)
      its agent was just started                agent_is_coming            wait for the agent
      it was moved too often without health     moves_are_spent            give up, with an alert
      it is confirmed stopped                   is_confirmed_stopped       start it on a spare, with a new epoch

Not decided here: exits of a process (runner/restart.py), zombies and hangs (the agent), members of a gang
(fleet/gangs/decider.py), the circuit breaker and the allowance for a delayed manager (monitor.py).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from procguard.fleet.leases import InstanceStatus
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.incident import Incident
from procguard.i18n.reasons import NONE, Reason, because

PROBE_RETRY_S = (2.0, 4.0, 8.0, 15.0)  # host unreachable: the last one repeats
START_AGAIN_S = (0.0, 5.0, 30.0, 120.0, 300.0)  # agent started without a heartbeat: the last one repeats


@dataclass(frozen=True)
class RecoveryPolicy:
    """The conditions of all incidents at this moment. `circuit_open`, `in_grace`: determined by the monitor."""

    settings: FleetSettings
    circuit_open: bool = False
    in_grace: bool = False


class Decision(NamedTuple):
    """The next step. `replace_frozen`: the probe may kill an agent that is stopped by a signal and start another
    one."""

    action: Literal["probe", "wait", "give_up", "leave"]
    delay_s: float  # seconds until the next probe or check
    reason: Reason
    replace_frozen: bool = False


# ---------------------------------------------------------------------------------------------- a silent agent


def started_by_hand(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    if incident.reachable_by_ssh:
        return None
    return Decision("leave", 0.0, because("recovery.by_hand"))


def switched_off(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    if policy.settings.enable_auto_recovery:
        return None
    return Decision("leave", 0.0, because("recovery.off"))


def manager_just_started(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    if not policy.in_grace or incident.connection_closed:
        return None
    return Decision("wait", 1.0, because("recovery.manager_started"))


def circuit_breaker_is_open(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    return Decision("wait", 5.0, because("recovery.frozen")) if policy.circuit_open else None


def attempts_are_spent(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    """Also true if an earlier manager used all attempts; this one then need not probe."""
    most, probe = policy.settings.max_recovery_attempts, incident.last_probe
    waited = probe is not None and _since_probe_s(incident, now) >= policy.settings.recovery_timeout_s
    by_predecessor = probe is None and incident.starts > 0
    if incident.starts < most or not (waited or by_predecessor) or _out_of_reach(incident):
        return None
    next_step = probe.message if probe is not None and probe.no_way else because("recovery.see_log")
    return Decision("give_up", 0.0, because("recovery.spent", n=incident.starts).then(next_step))


def not_probed_yet(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    if incident.last_probe is not None:
        return None
    return Decision("probe", 0.0, because("recovery.looking"), _silent_for_long(incident, policy, now))


def host_out_of_reach(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    if not _out_of_reach(incident) or incident.last_probe is None:
        return None
    delay_s = PROBE_RETRY_S[min(incident.failed_probes, len(PROBE_RETRY_S)) - 1]
    reason = because("recovery.no_ssh", why=incident.last_probe.message)
    left_s = max(0.0, delay_s - _since_probe_s(incident, now))
    return Decision("probe", left_s, reason, _silent_for_long(incident, policy, now))


def agent_is_frozen(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    """A debugger or SIGSTOP stopped it: tolerated for a short time, and handled after heartbeat_timeout."""
    if incident.last_probe is None or incident.last_probe.agent != "frozen":
        return None
    silent_s = now.monotonic - (incident.last_heartbeat or 0.0)
    left_s = max(0.0, policy.settings.heartbeat_timeout_s - silent_s)
    return Decision("probe", left_s, because("recovery.agent_frozen"), replace_frozen=True)


def waiting_for_heartbeat(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    left_s = policy.settings.recovery_timeout_s - _since_probe_s(incident, now)
    if incident.last_probe is None or left_s <= 0:
        return None
    return Decision("wait", left_s, because("recovery.waiting", agent=incident.last_probe.agent))


def no_heartbeat_after_start(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision | None:
    assert incident.last_probe is not None
    delay_s = START_AGAIN_S[min(incident.starts, len(START_AGAIN_S) - 1)]
    reason = because("recovery.looking_again", agent=incident.last_probe.agent)
    return Decision("probe", max(0.0, delay_s - _since_probe_s(incident, now)), reason, replace_frozen=True)


SILENT_AGENT: tuple[Callable[[Incident, RecoveryPolicy, Now], Decision | None], ...] = (
    started_by_hand,
    switched_off,
    manager_just_started,
    circuit_breaker_is_open,
    attempts_are_spent,
    not_probed_yet,
    host_out_of_reach,
    agent_is_frozen,
    waiting_for_heartbeat,
    no_heartbeat_after_start,
)


def decide(incident: Incident, policy: RecoveryPolicy, now: Now) -> Decision:
    """Decide the next step for a silent agent."""
    return next(decision for row in SILENT_AGENT if (decision := row(incident, policy, now)) is not None)


def _out_of_reach(incident: Incident) -> bool:
    return incident.last_probe is not None and not incident.last_probe.reached


def _since_probe_s(incident: Incident, now: Now) -> float:
    return now.monotonic - incident.last_probe_at


def _silent_for_long(incident: Incident, policy: RecoveryPolicy, now: Now) -> bool:
    last_heartbeat = incident.last_heartbeat
    return last_heartbeat is None or now.monotonic - last_heartbeat > policy.settings.heartbeat_timeout_s


# ------------------------------------------------------------------------------------------------------ a task


@dataclass(frozen=True)
class TaskCase:
    """The current state of a worker that may have to be moved."""

    cause: Literal["failed", "host_lost"]
    wanted: bool  # its desired state is running
    well: bool  # it was restarted, or its host is back
    by_hand: bool
    instance: InstanceStatus  # whether its instance is confirmed stopped
    moves: int  # reassignments without health since
    agent_coming_s: float = 0.0  # seconds in which its agent, started over SSH, may still send its first heartbeat


class TaskDecision(NamedTuple):
    """`state`: its name in the worker's view and in events."""

    action: Literal["drop", "leave", "wait", "give_up", "reassign"]
    state: str
    delay_s: float
    reason: Reason


def nothing_to_do(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    return TaskDecision("drop", "", 0.0, NONE) if case.well or not case.wanted else None


def hand_started_task(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    if not case.by_hand:
        return None
    return TaskDecision("leave", "by_hand", 0.0, because("task.by_hand"))


def held_back(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    if not policy.settings.enable_auto_recovery:
        return TaskDecision("leave", "switched_off", 0.0, because("task.off"))
    if case.cause == "failed":
        return None  # reported by its agent: not caused by the manager's start or a network failure
    if policy.in_grace:
        return TaskDecision("wait", "waiting", 1.0, because("task.manager_started"))
    if policy.circuit_open:
        return TaskDecision("wait", "waiting", 1.0, because("task.frozen"))
    return None


def may_be_alive(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    if case.instance.gone:
        return None
    if case.instance.wait_s is None:
        return TaskDecision("wait", "not_proven_gone", 1.0, because("task.alive", why=case.instance.reason))
    return TaskDecision("wait", "waiting", case.instance.wait_s, because("task.alive_still", why=case.instance.reason))


def agent_is_coming(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    if case.agent_coming_s <= 0:
        return None
    return TaskDecision("wait", "waiting", case.agent_coming_s, because("task.agent_coming"))


def moves_are_spent(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    if case.moves < policy.settings.max_recovery_attempts:
        return None
    return TaskDecision("give_up", "gave_up", 0.0, because("task.moves_spent", n=case.moves))


def is_confirmed_stopped(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision | None:
    why = because("task.failed") if case.cause == "failed" else because("task.host_lost")
    return TaskDecision("reassign", "", 0.0, why)


TASK: tuple[Callable[[TaskCase, RecoveryPolicy], TaskDecision | None], ...] = (
    nothing_to_do,
    hand_started_task,
    held_back,
    may_be_alive,
    agent_is_coming,
    moves_are_spent,
    is_confirmed_stopped,
)


def decide_task(case: TaskCase, policy: RecoveryPolicy) -> TaskDecision:
    """Decide the next step for a worker that failed or whose host is lost."""
    return next(decision for row in TASK if (decision := row(case, policy)) is not None)
