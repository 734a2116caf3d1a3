"""What the API shows of workers and hosts. Pure: records in, JSON-ready dicts out."""

from __future__ import annotations

import shlex
from typing import Any

from procguard.fleet.agents import host_disks
from procguard.fleet.history import causes
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import (
    AgentObserved,
    AgentRecord,
    CommandRecord,
    PendingLauncher,
    WorkerObserved,
    WorkerRecord,
    to_dict,
)
from remote_agent.protocol import messages


def command_text(command: str | list[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def observed_state(worker: WorkerRecord, seen: WorkerObserved, agent_reachable: bool) -> tuple[str, str]:
    """(state, last known state): the state is "unknown" while the agent is out of reach."""
    known = seen.report.state if seen.report else worker.last_state
    return (known if agent_reachable else "unknown"), known


def declared_digest(worker: WorkerRecord, seen: WorkerObserved) -> str:
    """The launch digest of what is declared; specifications are replaced, never changed in place."""
    if seen.launch_digest is None or seen.launch_digest[0] is not worker.spec:
        seen.launch_digest = (worker.spec, messages.launch_digest(worker.spec))
    return seen.launch_digest[1]


def worker_view(
    worker: WorkerRecord, seen: WorkerObserved, agent_reachable: bool, agent_reason: str, last_seen_wall: float | None
) -> dict[str, Any]:
    report = seen.report
    state, known = observed_state(worker, seen, agent_reachable)
    running_digest = report.launch_digest if report else ""
    return {
        "worker_id": worker.worker_id,
        "state": state,
        "last_known_state": known,
        "desired": worker.desired,
        "host": worker.host,
        "agent": worker.agent_id,
        "pid": report.pid if report else None,
        "attempt": max(worker.attempt, report.attempt if report else 0),
        "epoch": worker.epoch,
        "generation": worker.generation,
        # Whether what its host reports is of what was asked last.
        "current": report is not None and report.generation >= worker.generation and report.epoch == worker.epoch,
        "restarts": report.restarts if report else 0,
        "restarts_total": report.restarts_total if report else 0,
        "command": command_text(worker.spec.command),
        "group": worker.spec.group,
        "labels": worker.spec.labels,
        "last_seen": iso(last_seen_wall),
        "since": iso(report.since if report else worker.last_since),
        "usage": messages.encode(report.usage) if report and report.usage else None,
        "last_exit": messages.encode(report.last_exit) if report and report.last_exit else None,
        "health": messages.encode(report.health) if report and report.health else None,
        "suspect": suspicion(seen),
        "reason": shown_reason(worker, seen, state, agent_reason),
        "restart_pending": bool(running_digest) and running_digest != declared_digest(worker, seen),
        "undeclared": worker.undeclared,
        "next_start_in_s": report.next_start_in_s if report else None,
        "home": worker.home or None,
        "moving_to": worker.moving.get("to"),
        "moves": worker.moves,
        "recovery": seen.plight or None,
    }


def shown_reason(worker: WorkerRecord, seen: WorkerObserved, state: str, agent_reason: str) -> str:
    """Why it is as it is; `agent_reason` is said where its agent is out of reach."""
    reason = causes.true_reason(seen.report.reason if seen.report else worker.last_reason, worker)
    if state == "unknown":
        reason = agent_reason or "the agent is out of reach"
    plight = seen.plight.get("reason")
    return "; ".join(filter(None, (reason, plight))) if plight else reason


def suspicion(seen: WorkerObserved) -> str | None:
    """The evidence with its newest numbers, once the monitor has called the worker suspect."""
    if not seen.suspect:
        return None
    return (seen.report.suspect if seen.report else "") or seen.suspect


def command_view(record: CommandRecord) -> dict[str, Any]:
    """A command's whole life: who asked, when, why, and what became of it."""
    return {
        **to_dict(record),
        "accepted_at": iso(record.accepted_wall),
        "finished_at": iso(record.finished_wall),
    }


def shown_address(agent: AgentRecord, seen: AgentObserved) -> str:
    return "local" if agent.ssh.get("local") else agent.ssh.get("hostname", "") or seen.address


def tunnel(agent: AgentRecord, seen: AgentObserved) -> dict[str, Any] | None:
    return {"state": "opening", **seen.tunnel, "port": agent.tunnel_port} if agent.tunnel else None


def rotation(agent: AgentRecord) -> dict[str, Any] | None:
    """{"id", "state": "asked" or "taken", "at", "actor"}; None: no new secret is asked for."""
    if not agent.rotation:
        return None
    return {**agent.rotation, "at": iso(agent.rotation["at"]), "state": "taken" if agent.next_sha256 else "asked"}


def host_view(agent: AgentRecord, seen: AgentObserved, workers: int) -> dict[str, Any]:
    beat = seen.heartbeat
    return {
        "host": agent.host,
        "agent": agent.agent_id,
        "kind": agent.kind,
        "agent_state": seen.state,
        "last_seen": iso(seen.last_seen_wall),
        "address": shown_address(agent, seen),
        "release": beat.release if beat else agent.release,
        "usage": messages.encode(beat.usage) if beat and beat.usage else None,
        "facts": messages.encode(beat.facts) if beat else None,
        "agent_pid": beat.pid if beat else None,
        "agent_started": iso(beat.started_at) if beat else None,
        "workers": workers,
        "channel": seen.channel,
        "channel_trouble": beat.channel_trouble if beat else "",
        "disk_trouble": host_disks.trouble_of(beat),
        "disk_path": beat.disk_path if beat else "",
        "recovery_ssh": seen.recovery_ssh,
        "tunnel": tunnel(agent, seen),
        "reason": seen.reason,
        "spare": agent.spare,
        "labels": agent.labels,
        "undeclared": agent.undeclared,
        "cordoned": agent.cordon or None,
        "recovery": {key: value for key, value in agent.incident.items() if key != "manager_urls"} or None,
        "rotation": rotation(agent),
        "failures": len(agent.ledger),
        "last_failure": {**agent.ledger[-1], "at": iso(agent.ledger[-1]["at"])} if agent.ledger else None,
    }


def pending_view(pending: PendingLauncher) -> dict[str, Any]:
    return {
        "host": pending.registration.host,
        "agent": pending.agent_id,
        "kind": "launcher",
        "agent_state": "pending",
        "last_seen": iso(pending.last_seen),
        "address": pending.peer,
        "fingerprint": pending.fingerprint,
        "worker_id": pending.registration.worker_id,
        "command": command_text(pending.registration.command),
        "release": "",
        "usage": None,
        "facts": None,
        "workers": 0,
        "recovery_ssh": {"ok": False, "reason": "hand-started launcher"},
        "reason": f"waits for approval: invoke agents approve {pending.agent_id}",
    }
