"""Values derived from records of workers and hosts, for views (fleet/shapes). Pure."""

from __future__ import annotations

import shlex
from typing import Literal

from typing_extensions import TypedDict

from procguard.fleet.history import causes
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import (
    AgentObserved,
    AgentRecord,
    CommandRecord,
    CommandStatus,
    HostCordon,
    HostFailure,
    PendingLauncher,
    RecoverySsh,
    RecoveryStatus,
    TunnelStatus,
    WorkerObserved,
    WorkerRecord,
)
from procguard.fleet.shapes.parts import (
    Checked,
    Cordon,
    Failure,
    HostRecovery,
    PendingLauncherView,
    Rotation,
    TunnelAnswer,
    WorkerRecoveryStatus,
)
from procguard.i18n.reasons import Reason, because, reason_of
from procguard.json_types import ReasonParams
from remote_agent.protocol import messages, reasons


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


class CommandView(TypedDict):
    """A command with its actor, time, reason and status."""

    command_id: str
    seq: int
    worker_id: str
    agent_id: str
    command: messages.Verb
    attempt: int
    generation: int
    actor: str
    accepted_wall: float
    status: CommandStatus
    message: str
    reason: str
    operation_id: str
    origin: str
    by_manager: bool
    finished_wall: float
    accepted_at: str | None
    finished_at: str | None
    message_code: str
    message_params: ReasonParams


def command_view(record: CommandRecord, status: CommandStatus) -> CommandView:
    message, code, params = reasons.values(record.message)
    return {
        "command_id": record.command_id,
        "seq": record.seq,
        "worker_id": record.worker_id,
        "agent_id": record.agent_id,
        "command": record.command,
        "attempt": record.attempt,
        "generation": record.generation,
        "actor": record.actor,
        "accepted_wall": record.accepted_wall,
        "status": status,
        "message": message,
        "message_code": code,
        "message_params": params,
        "reason": record.reason,
        "operation_id": record.operation_id,
        "origin": record.origin,
        "by_manager": record.by_manager,
        "finished_wall": record.finished_wall,
        "accepted_at": iso(record.accepted_wall),
        "finished_at": iso(record.finished_wall),
    }


def shown_address(agent: AgentRecord, observed: AgentObserved) -> str:
    return "local" if agent.ssh.get("local") else agent.ssh.get("hostname", "") or observed.address


def tunnel(status: TunnelStatus | None, port: int) -> TunnelAnswer:
    """`status`: None until the tunnel process has reported one."""
    if status is None:
        return {"state": "opening", "port": port}
    reason, code, params = reasons.values(status.reason)
    shown: TunnelAnswer = {
        "state": status.state,
        "reason": reason,
        "code": status.code,
        "since": status.since,
        "port": port,
    }
    if code:
        shown["reason_code"] = code
    if params:
        shown["reason_params"] = params
    return shown


def rotation(agent: AgentRecord) -> Rotation | None:
    """None: no rotation is in progress."""
    asked = agent.rotation
    if asked is None:
        return None
    state: Literal["asked", "taken"] = "taken" if agent.next_sha256 else "asked"
    return {"id": asked.id, "at": iso(asked.at), "actor": asked.actor, "state": state}


def recovery(agent: AgentRecord) -> HostRecovery | None:
    spent = agent.incident
    if spent is None:
        return None
    reason, code, params = reasons.values(spent.reason)
    return {
        "starts": spent.starts,
        "outcome": spent.outcome,
        "reason": reason,
        "reason_code": code,
        "reason_params": params,
    }


def recovery_ssh(checked: RecoverySsh) -> Checked:
    reason, code, params = reasons.values(checked.reason)
    shown: Checked = {"ok": checked.ok, "reason": reason, "reason_code": code, "reason_params": params}
    if checked.checked_at:
        shown["checked_at"] = checked.checked_at
    return shown


def failure(found: HostFailure) -> Failure:
    what, code, params = reasons.values(found.what)
    return {"at": iso(found.at), "kind": found.kind, "what": what, "what_code": code, "what_params": params}


def cordoned(cordon: HostCordon) -> Cordon:
    reason, code, params = reasons.values(cordon.reason)
    return {
        "reason": reason,
        "reason_code": code,
        "reason_params": params,
        "actor": cordon.actor,
        "at": cordon.at,
    }


def waiting(status: RecoveryStatus) -> WorkerRecoveryStatus:
    reason, code, params = reasons.values(status.reason)
    return {"state": status.state, "reason": reason, "reason_code": code, "reason_params": params}


def pending_view(pending: PendingLauncher) -> PendingLauncherView:
    by_hand, how = because("agent.by_hand"), because("agent.how_to_approve", agent=pending.agent_id)
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
        "recovery_ssh": {
            "ok": False,
            "reason": by_hand,
            "reason_code": by_hand.code,
            "reason_params": by_hand.params,
        },
        "reason": how,
        "reason_code": how.code,
        "reason_params": how.params,
    }
