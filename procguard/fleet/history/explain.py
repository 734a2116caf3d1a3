"""Why a worker is in its state and what happened to it, in sentences. Pure: facts in, sentences out, no I/O.

Built from structured data (states, exit record, causes, lease, budget), never by parsing English reasons: free text of
a runner, a check or SSH is quoted as evidence. `gather` collects the facts from the fleet; `explain` renders them in a
language of procguard/i18n. docs/protocol.md shows an example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from typing_extensions import TypedDict

from procguard.fleet import leases
from procguard.fleet.fleet import Fleet
from procguard.fleet.gangs.decider import GangFailure
from procguard.fleet.history import causes, foreground
from procguard.fleet.history.query import Event, EventQuery
from procguard.fleet.model import records
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord
from procguard.fleet.recovery.incident import Incident
from procguard.fleet.shapes import gpus
from procguard.fleet.shapes.sources import HostSource, WorkerSource
from procguard.i18n.reasons import Reason, reason_of
from procguard.i18n.words import Words
from remote_agent.protocol import messages

TIMELINE_EVENTS = 15
# Events of a host that belong to the timeline of each of its workers.
HOST_KINDS = (
    "agent_suspect", "agent_unreachable", "agent_connected", "recovery", "agent_addresses", "tunnel_down", "tunnel_up",
    "host_disk_full", "host_disk_ok",
)  # fmt: skip


@dataclass(frozen=True)
class GangFacts:
    """The facts about the gang of which the worker is a member. `allowed`: attempts before it fails."""

    group: str
    members: int
    phase: str
    attempts: int
    allowed: int
    incident: GangFailure | None = None  # the last one
    held: bool = False  # the gang prevents the worker from running now


@dataclass(frozen=True)
class Facts:
    """The facts about one worker; times are Unix seconds."""

    now: float
    worker: WorkerSource
    host: HostSource
    desired_by: str = ""
    desired_at: float = 0.0
    desired_cause: str = ""
    allowed_restarts: int = 3
    restart_policy: str = "on-failure"
    healthy_after_s: float = 600.0
    progress: str = ""  # the progress that resets its restart budget, if any, in place of healthy_after_s
    auto_recovery: bool = True
    never_on: tuple[str, ...] = ()  # causes that are not restarted
    hopeless: bool = False  # it could not be started, and a retry would fail in the same way
    in_hand: bool = True  # its host has reported it under its current epoch
    fenced: bool = False
    leased: bool = False  # the host has confirmed that it holds a lease
    lease_s: float = 0.0
    lease_left_s: float | None = None
    gone: leases.InstanceStatus | None = None  # of a fenced worker whose agent is unreachable
    incident: Incident | None = None  # the open one of its agent
    gang: GangFacts | None = None
    commands: tuple[CommandRecord, ...] = ()  # still open
    cordoned_gpus: tuple[tuple[int, Reason], ...] = ()  # of the GPUs that it holds
    events: tuple[Event, ...] = ()  # oldest first

    @property
    def last_exit(self) -> messages.ExitRecord | None:
        return self.worker.report.last_exit if self.worker.report is not None else None


class Sentence(TypedDict):
    topic: str
    text: str


class Happened(TypedDict):
    """An event of the timeline. `at`: ISO 8601."""

    seq: int
    at: str | None
    kind: str
    cause: str | None
    text: str


@dataclass(frozen=True)
class Explanation:
    headline: str
    sentences: list[Sentence] = field(default_factory=list)
    next_steps: list[str] = field(default_factory=list)
    timeline: list[Happened] = field(default_factory=list)


def gather(fleet: Fleet, worker_id: str, now: Now) -> Facts:
    """Collect the facts about a worker. Raises NotFound."""
    worker = fleet.state.find(worker_id)
    source, host = fleet.state.worker_source(worker), fleet.state.host_source(worker.agent_id)
    report = source.report
    restart = fleet.agents.assignments.resolved(worker.spec).restart
    fenced = records.fenced(worker)
    incidents = (one for one in fleet.state.incidents() if one.agent_id == worker.agent_id)
    return Facts(
        now=now.wall,
        worker=source,
        host=host,
        desired_by=worker.desired_by,
        desired_at=worker.desired_at,
        desired_cause=worker.desired_cause,
        allowed_restarts=restart.max_attempts or 0,
        restart_policy=restart.policy,
        healthy_after_s=restart.healthy_after_s,
        progress=restart.progress,
        never_on=tuple(restart.never_on),
        auto_recovery=fleet.state.settings.enable_auto_recovery,
        hopeless=causes.hopeless(report.last_exit if report else None),
        in_hand=report is not None and report.generation == worker.generation,
        fenced=fenced,
        leased=worker.leased,
        lease_s=worker.spec.lease_s,
        lease_left_s=report.lease_left_s if report else None,
        gone=fleet.leases.judge(worker_id, now) if fenced and source.state == "unknown" else None,
        incident=next((one for one in incidents if one.outcome == "open"), None),
        commands=tuple(
            record
            for record in fleet.state.command_queue.open_of_agent(worker.agent_id)
            if record.worker_id == worker_id
        ),
        gang=_gang_of(fleet, worker_id),
        cordoned_gpus=_cordoned_gpus(fleet, worker.agent_id, report),
        events=tuple(_story(fleet, worker_id, worker.host if host.agent.kind == "deployed" else "")),
    )


def _cordoned_gpus(fleet: Fleet, agent_id: str, report: messages.WorkerReport | None) -> tuple[tuple[int, Reason], ...]:
    beat = fleet.state.agent_status[agent_id].heartbeat
    if beat is None or beat.usage is None or report is None or report.usage is None:
        return ()
    return gpus.cordoned_of(report.usage.gpus or (), beat.usage.gpus, fleet.state.agents_by_id[agent_id])


def _gang_of(fleet: Fleet, worker_id: str) -> GangFacts | None:
    worker = fleet.state.find(worker_id)
    group = worker.spec.group
    record = fleet.gangs.records.get(group) if worker.gang else None
    if record is None:
        return None
    allowed = fleet.gangs.groups.policy(group).max_attempts
    return GangFacts(
        group,
        len(fleet.gangs.groups.members(group)),
        record.phase,
        record.attempts,
        fleet.state.settings.max_recovery_attempts if allowed is None else allowed,
        record.incident,
        worker.held,
    )


def _story(fleet: Fleet, worker_id: str, host: str) -> list[Event]:
    """The newest events of the worker, and those of its host in between; a failure appears once. `host` "": a worker of
    a launcher, whose events are the worker's own."""
    found = fleet.state.find_events(EventQuery(worker=(worker_id,)), TIMELINE_EVENTS)
    own = [event for before, event in zip([None, *found], found, strict=False) if not _repeats(before, event)]
    first = own[0]["seq"] if len(found) == TIMELINE_EVENTS else 0  # earlier events are left out
    query = EventQuery(host=(host,), kind=HOST_KINDS, after=first)
    around = fleet.state.find_events(query, TIMELINE_EVENTS) if host else []
    others = [event for event in around if not event["worker_id"]]
    if fleet.state.find(worker_id).desired_cause == "stop_all":
        others += fleet.state.find_events(EventQuery(kind=("stop_all",)), 1)
    return sorted([*own, *others], key=lambda event: int(event["seq"]))[-TIMELINE_EVENTS:]


def _repeats(before: Event | None, event: Event) -> bool:
    """Whether the event only repeats the change of state before it, as `worker_failed` does, which is derived from
    it."""
    return event["kind"] == "worker_failed" and before is not None and before["after"] == "failed"


# ------------------------------------------------------------------------------------------------ sentences


def explain(facts: Facts, language: str) -> Explanation:
    words = Words(language)
    headline = _headline(facts, words)
    sentences = [
        Sentence(topic=topic, text=text)
        for topic, say in _TOPICS
        for text in say(facts, words)
        if text != headline  # a topic with nothing to add repeats the headline
    ]
    return Explanation(headline, sentences, _next_steps(facts, words), _timeline(facts, words))


def _headline(facts: Facts, words: Words) -> str:
    worker, record = facts.worker, facts.worker.worker
    state, since = worker.state, worker.since
    values = {"worker": record.worker_id, "host": record.host, "attempt": worker.attempt}
    if state == "unknown":
        if facts.host.seen.state == "never" and not worker.last_seen_wall and not since:
            return words.say("is.unknown_never", **values)
        return words.say("is.unknown", last=words.state(worker.known), **values)
    if state == "exited" and _left_running(facts):
        return words.say("is.exited_left", ago=words.ago(since or facts.now, facts.now), **values)
    if state == "stopped" and since:
        return words.say("is.stopped_since", d=words.duration(facts.now - since), **values)
    return words.say(
        f"is.{state}", d=words.duration(facts.now - since), ago=words.ago(since or facts.now, facts.now), **values
    )


def _why(facts: Facts, words: Words) -> list[str]:
    """Sentences on what led to the state; for a running worker, how its previous attempt ended."""
    state, ended = facts.worker.state, facts.last_exit
    said = []
    if ended and state != "unknown":
        said.append(words.say("why.last_exit", attempt=ended.attempt, ending=words.ending(messages.encode(ended))))
    if state == "backoff":
        said.append(_countdown(facts, words))
        said += _saving(facts, words)
    elif state == "failed":
        said += [*_why_no_restart(facts, words), *_saving(facts, words)]
    elif state == "exited":
        if _left_running(facts):
            said.append(words.say("why.background"))
        said.append(words.say("why.done"))
    elif state == "stopped" and facts.worker.worker.desired == "running" and facts.host.seen.state != "ended":
        said.append(_why_waiting(facts, words))
    return said


def _cause(facts: Facts) -> str:
    """The cause of the last attempt's failure; "" if unknown."""
    return facts.last_exit.cause if facts.last_exit is not None else ""


def _saving(facts: Facts, words: Words) -> list[str]:
    """A hint to use restart.never_on, if the same permanent cause has ended several attempts in a row."""
    cause = _cause(facts)
    if facts.worker.state not in ("backoff", "failed") or cause not in causes.LASTING or cause in facts.never_on:
        return []
    attempts = set()
    for event in reversed(facts.events):
        record = words.exit_of(event)
        if record is None:
            continue
        if record.get("cause") != cause:
            break
        attempts.add(record.get("attempt"))
    saved = len(attempts) - 1
    return [words.say("why.never_on_saves", n=saved, cause=cause)] if saved > 0 else []


def _left_running(facts: Facts) -> bool:
    """Whether the last attempt exited with 0 but left background processes, as a daemon does."""
    ended = facts.last_exit
    return ended is not None and ended.code == 0 and bool(ended.left)


def _countdown(facts: Facts, words: Words) -> str:
    report = facts.worker.report
    if report is None or report.next_start_in_s is None:
        return words.say("why.waits", detail=words.reason(facts.worker.reason))
    reported_ago_s = max(0.0, facts.now - (facts.worker.last_seen_wall or facts.now))
    left_s, used = max(0.0, report.next_start_in_s - reported_ago_s), report.restarts
    if used == 0:
        return words.say("why.restart_in_open", d=words.duration(left_s))
    if left_s < 0.05:
        return words.say("why.restart_now", used=used, allowed=facts.allowed_restarts)
    return words.say("why.restart_in", d=words.duration(left_s), used=used, allowed=facts.allowed_restarts)


def _why_no_restart(facts: Facts, words: Words) -> list[str]:
    if facts.gang:
        return []
    if facts.hopeless:
        return [words.say("why.hopeless")]
    if not facts.auto_recovery:
        return [words.say("why.auto_off")]
    cause = _cause(facts)
    by_runner = facts.last_exit is not None and not facts.last_exit.line
    if cause == "time_limit" and facts.restart_policy != "always" and by_runner:
        return [words.say("why.time_limit")]
    if cause and cause in facts.never_on:
        return [words.say("why.never_on", cause=cause)]
    if facts.restart_policy == "never" or facts.allowed_restarts == 0:
        return [words.say("why.no_restarts")]
    if facts.worker.restarts < facts.allowed_restarts:
        return []  # the budget is not the reason
    return [words.say("why.budget_spent", n=facts.allowed_restarts)]


def _why_waiting(facts: Facts, words: Words) -> str:
    """Why a worker whose desired state is running is stopped."""
    if facts.gang and facts.gang.held:
        return words.say("why.held_by_gang")
    if facts.fenced and facts.worker.attempt and facts.in_hand:
        return words.say("why.stopped_fence")
    return words.say("why.stopped_waiting" if facts.worker.attempt else "why.not_started")


def _budget(facts: Facts, words: Words) -> list[str]:
    worker = facts.worker
    if worker.state not in ("running", "starting", "backoff") or facts.allowed_restarts == 0 or facts.gang:
        return []
    if not worker.restarts and not worker.restarts_total:
        return [words.say("why.budget_none", allowed=facts.allowed_restarts)]
    values = {"used": worker.restarts, "allowed": facts.allowed_restarts, "total": worker.restarts_total}
    if facts.progress:
        return [words.say("why.budget_progress", what=facts.progress, **values)]
    return [words.say("why.budget", d=words.duration(facts.healthy_after_s), **values)]


def _desired(facts: Facts, words: Words) -> list[str]:
    desired = facts.worker.worker.desired
    if desired == "removed":
        return [words.say("desired.removed")]
    if not facts.desired_by:
        return [words.say(f"desired.{desired}_declared")]
    key = f"desired.{desired}_{facts.desired_cause}"
    ago = words.ago(facts.desired_at, facts.now)
    return [words.say(key if words.has(key) else f"desired.{desired}", actor=words.actor(facts.desired_by), ago=ago)]


def _host(facts: Facts, words: Words) -> list[str]:
    agent, seen = facts.host.agent, facts.host.seen
    state, name, observed = seen.state, agent.host, seen.last_seen_wall or 0.0
    disk = _disk(facts, words) if state == "connected" else []
    if state == "connected" and facts.worker.state == "running":
        return disk  # the host has no other problem
    said = [
        *disk,
        words.say(f"host.{state}" if observed else "host.never", host=name, ago=words.ago(observed, facts.now)),
    ]
    if state not in ("unreachable", "never"):
        return said
    if agent.tunnel and seen.tunnel is not None and seen.tunnel.state == "down":
        said.append(words.say("host.tunnel_down", reason=words.reason(seen.tunnel.reason) or "?"))
    ssh = seen.recovery_ssh
    if agent.kind == "launcher":
        said.append(words.say("host.by_hand"))
    elif ssh.ok is False:
        said.append(words.say("host.ssh_failed", host=name, reason=words.reason(ssh.reason) or "?"))
    elif ssh.ok:
        said.append(words.say("host.ssh_ok", host=name))
    if facts.incident:
        lasted = words.duration(facts.now - facts.incident.opened.wall)
        step = words.reason(facts.incident.steps[-1].text) if facts.incident.steps else "?"
        said.append(words.say("host.recovering", d=lasted, step=step))
    if not facts.fenced:
        said.append(words.say("unknown.keep"))
    return said


def _disk(facts: Facts, words: Words) -> list[str]:
    trouble, host = facts.host.disk_trouble, facts.host.agent.host
    if not trouble:
        return []
    what = words.say(f"host.disk_{trouble}", host=host, path=facts.host.disk_path or "procguard_home")
    return [what, words.say("host.disk_meanwhile", host=host)]


def _fence(facts: Facts, words: Words) -> list[str]:
    if not facts.fenced:
        return []
    if facts.gone is not None:
        if facts.gone.gone:
            return [words.say("fence.gone")]
        if facts.gone.wait_s is not None:
            return [words.say("fence.may_run", d=words.duration(facts.gone.wait_s))]
        return [words.say("unknown.keep")]
    if not facts.leased and facts.worker.state in ("running", "starting", "stopping"):
        return [words.say("fence.unproven")]
    said = [words.say("fence.held", lease=words.duration(facts.lease_s))]
    if facts.lease_left_s is not None and facts.worker.state == "running":
        said.append(words.say("fence.left", d=words.duration(facts.lease_left_s)))
    return said


def _gang(facts: Facts, words: Words) -> list[str]:
    gang, group = facts.gang, facts.worker.worker.spec.group
    if not gang:
        return [words.say("group.member", group=group)] if group else []
    said = [words.say("gang.member", group=gang.group, n=gang.members)]
    if gang.phase in ("restarting", "failed"):
        said.append(words.say(f"gang.{gang.phase}"))
    incident = gang.incident
    if incident is not None and incident.member:
        said.append(words.say("gang.culprit", member=incident.member, reason=words.reason(incident.reason) or "?"))
    if gang.attempts:
        said.append(words.say("gang.budget", used=gang.attempts, allowed=gang.allowed))
    return said


def _moved(facts: Facts, words: Words) -> list[str]:
    """Sentences on moves: the previous host, the next one, or why there is none although its host is lost."""
    worker, said = facts.worker, []
    if worker.moving_to:
        said.append(words.say("moved.to", host=worker.moving_to))
    status = worker.seen.recovery_status
    if status is not None:
        key = f"moved.{status.state}"
        said.append(words.say(key if words.has(key) else "moved.waiting", reason=words.reason(status.reason)))
    if worker.worker.home:
        said.append(words.say("moved.home", host=worker.worker.home))
    moved = [event for event in facts.events if event["kind"] in ("reassigned", "takeover") and event["worker_id"]]
    if moved:
        ago = words.ago(_unix(moved[-1]["at"]), facts.now)
        said.append(words.say("reassigned", host=moved[-1]["host"], ago=ago, reason=words.reason(moved[-1])))
    return said


def _pending(facts: Facts, words: Words) -> list[str]:
    said = [
        words.say(
            "pending.command",
            verb=words.say(f"verb.{one.command}"),
            actor=words.actor(one.actor),
            ago=words.ago(one.accepted_wall, facts.now),
        )
        for one in facts.commands
    ]
    if facts.worker.restart_pending:
        said.append(words.say("pending.restart"))
    if facts.worker.worker.undeclared:
        said.append(words.say("pending.undeclared"))
    return said


def _signs(facts: Facts, words: Words) -> list[str]:
    health = facts.worker.report.health if facts.worker.report is not None else None
    suspicion = facts.worker.suspicion
    said = []
    if suspicion:
        said.append(words.say("suspect", evidence=words.reason(suspicion)))
    if health is not None and health.status == "failing":
        said.append(words.say("health.failing", detail=words.reason(reason_of(health.detail)) or "?"))
    if facts.worker.state in ("starting", "running", "backoff", "stopping"):
        said += [
            words.say("signs.gpu_cordoned", index=index, why=words.reason(reason) or "?")
            for index, reason in facts.cordoned_gpus
        ]
    return said


def _acknowledged(facts: Facts, words: Words) -> list[str]:
    """The acknowledgements of this attempt's failure."""
    seen = (one for one in reversed(facts.events) if one["kind"] == "acknowledged")
    event = next((one for one in seen if one["attempt"] == facts.worker.attempt), None)
    if event is None:
        return []
    ago = words.ago(_unix(event["at"]), facts.now)
    return [words.say("why.acknowledged", actor=words.actor(event["actor"] or ""), ago=ago, note=words.reason(event))]


# In the order in which they are shown.
_TOPICS: tuple[tuple[str, Callable[[Facts, Words], list[str]]], ...] = (
    ("why", _why),
    ("signs", _signs),
    ("signs", _acknowledged),
    ("desired", _desired),
    ("budget", _budget),
    ("host", _host),
    ("fence", _fence),
    ("gang", _gang),
    ("moved", _moved),
    ("pending", _pending),
)


def _next_steps(facts: Facts, words: Words) -> list[str]:
    record, state = facts.worker.worker, facts.worker.state
    name = record.worker_id
    steps = []
    if state == "failed" and facts.hopeless:
        return [words.say("next.fix", worker=name)]
    if state == "failed":
        steps.append(words.say("next.logs", worker=name, attempt=facts.worker.attempt))
    if state == "failed" and facts.gang:
        steps.append(words.say("next.group", group=facts.gang.group))
    elif state == "failed" or (state == "stopped" and record.desired == "stopped"):
        steps.append(words.say("next.start", worker=name))
    if state == "unknown" and facts.host.agent.kind == "deployed":
        steps.append(words.say("next.deploy", host=record.host))
    if state in ("exited", "backoff", "failed") and facts.last_exit is not None and _left_running(facts):
        how = foreground.how(facts.last_exit.left_names)
        steps.insert(0, words.say("next.foreground" if how else "next.foreground_option", how=how))
    trouble = facts.host.disk_trouble
    if trouble and facts.host.seen.state == "connected":
        path = facts.host.disk_path or "procguard_home"
        steps.insert(0, words.say(f"next.disk_{trouble}", host=record.host, path=path))
    if facts.worker.restart_pending and state == "running":
        steps.append(words.say("next.restart", worker=name))
    return steps


def _timeline(facts: Facts, words: Words) -> list[Happened]:
    return [
        {
            "seq": event["seq"],
            "at": event["at"],
            "kind": event["kind"],
            "cause": event.get("cause"),
            "text": words.event(event),
        }
        for event in facts.events
    ]


def _unix(moment: str | None) -> float:
    """Unix seconds of an ISO 8601 time of an event; 0 if there is none."""
    return datetime.fromisoformat(moment).timestamp() if moment else 0.0
