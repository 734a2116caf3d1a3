"""Values derived from records of workers and hosts, for views (fleet/shapes). Pure."""

from __future__ import annotations

import shlex
from typing import Any

from procguard.fleet.history import causes
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import (
    AgentObserved,
    AgentRecord,
    CommandRecord,
    CommandStatus,
    PendingLauncher,
    WorkerObserved,
    WorkerRecord,
)
from procguard.i18n.reasons import Reason, because, reason_of
from remote_agent.protocol import messages
from remote_agent.protocol.reasons import fields as reason_fields


def command_text(command: str | list[str]) -> str:
    return command if isinstance(command, str) else shlex.join(command)


def observed_state(worker: WorkerRecord, observed: WorkerObserved, agent_reachable: bool) -> tuple[str, str]:
    """(state, last known state): the state is "unknown" while the agent is unreachable."""
    known = observed.report.state if observed.report else worker.last_state
    return (known if agent_reachable else "unknown"), known


def shown_reason(worker: WorkerRecord, observed: WorkerObserved, state: str, agent_reason: Reason) -> Reason:
    """The reason for the worker's state; `agent_reason` if its agent is unreachable."""
    reason = causes.true_reason(reason_of(observed.report.reason) if observed.report else worker.last_reason, worker)
    if state == "unknown":
        reason = agent_reason or because("agent.out_of_reach")
    waits = observed.recovery_status
    return reason_of(reason).then(waits.reason) if waits is not None else reason


def suspicion(observed: WorkerObserved) -> Reason | None:
    """The evidence with current numbers, if the monitor has marked the worker as suspect."""
    if not observed.suspect:
        return None
    return reason_of((observed.report.suspect if observed.report else "") or observed.suspect)


def command_view(record: CommandRecord, status: CommandStatus) -> dict[str, Any]:
    """A command with its actor, times, reason and result."""
    return {
        **messages.encode(record),
        **reason_fields("message", record.message),
        "status": status,
        "accepted_at": iso(record.accepted_wall),
        "finished_at": iso(record.finished_wall),
    }


def shown_address(agent: AgentRecord, observed: AgentObserved) -> str:
    return "local" if agent.ssh.get("local") else agent.ssh.get("hostname", "") or observed.address


def tunnel(agent: AgentRecord, observed: AgentObserved) -> dict[str, Any] | None:
    if not agent.tunnel:
        return None
    return {
        **(messages.encode(observed.tunnel) if observed.tunnel else {"state": "opening"}),
        "port": agent.tunnel_port,
    }


def rotation(agent: AgentRecord) -> dict[str, Any] | None:
    """{"id", "state": "asked" or "taken", "at", "actor"}; None: no rotation is in progress."""
    if agent.rotation is None:
        return None
    asked = messages.encode(agent.rotation)
    return {**asked, "at": iso(agent.rotation.at), "state": "taken" if agent.next_sha256 else "asked"}


def recovery(agent: AgentRecord) -> dict[str, Any] | None:
    spent = agent.incident
    return (
        {"starts": spent.starts, "outcome": spent.outcome, **reason_fields("reason", spent.reason)}
        if spent is not None
        else None
    )


def last_failure(agent: AgentRecord) -> dict[str, Any] | None:
    return {**messages.encode(agent.failures[-1]), "at": iso(agent.failures[-1].at)} if agent.failures else None


def plain(value: Any) -> dict[str, Any] | None:
    return None if value is None else messages.encode(value)


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
        "recovery_ssh": {"ok": False, **reason_fields("reason", because("agent.by_hand"))},
        **reason_fields("reason", because("agent.how_to_approve", agent=pending.agent_id)),
    }
