"""API views of groups and gangs. Pure: records in, JSON-ready dicts out."""

from __future__ import annotations

from typing_extensions import TypedDict

from procguard.client.types import WorkerInfo
from procguard.config.groups import GroupPolicy, PolicySource
from procguard.fleet.gangs.decider import GangRecord
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import WorkerRecord, settled
from procguard.i18n.reasons import NONE, Reason, because
from procguard.json_types import ReasonParams
from remote_agent.protocol import reasons, states


class GangOfWorker(TypedDict):
    phase: str
    rank: int | None
    epoch: int
    attempts: int
    held: bool
    reason: str
    reason_code: str
    reason_params: ReasonParams


class MemberAnswer(TypedDict):
    worker_id: str
    host: str
    state: str
    rank: int | None
    epoch: int
    attempt: int
    reason: str
    reason_code: str
    reason_params: ReasonParams


class GangIncident(TypedDict):
    member: str
    reason: str
    reason_code: str
    reason_params: ReasonParams
    at: str | None
    ended: str | None


class GroupAnswer(TypedDict):
    group: str
    restart: str
    rendezvous: str
    said_by: PolicySource
    phase: str | None
    epoch: int | None
    attempts: int | None
    max_attempts: int | None
    master: str | None
    since: str | None
    reason: str
    reason_code: str
    reason_params: ReasonParams
    incident: GangIncident | None
    members: list[MemberAnswer]


def of_member(gang: GangRecord, worker: WorkerRecord) -> GangOfWorker:
    """The field `gang` of a worker's view. `rank` None: the worker was not part of the last launch."""
    mark = gang.members.get(worker.worker_id)
    return {
        "phase": gang.phase,
        "rank": mark.rank if mark is not None and mark.rank >= 0 else None,
        "epoch": gang.epoch,
        "attempts": gang.attempts,
        "held": worker.held,
        "reason": gang.reason,
        "reason_code": gang.reason.code,
        "reason_params": gang.reason.params,
    }


def applied(gang: GangOfWorker, desired: str, state: str, known: str, reason: Reason) -> tuple[str, str, Reason]:
    """(state, last known state, reason) of a worker, adjusted for its gang, which a member's runner does not know.

    Members of a failed gang are failed, however each of them ended. The reason of a held member names the members that
    it waits for.
    """
    if not gang["held"] or not settled(known) or desired != "running":
        return state, known, reason
    unknown = state == states.UNKNOWN
    if gang["phase"] == "failed":
        known = states.FAILED
        if not unknown:
            state, reason = states.FAILED, because("gang.has_failed", why=gang["reason"])
    elif gang["phase"] in ("restarting", "running") and not unknown:
        why = gang["reason"] if gang["phase"] == "restarting" else because("gang.joins")
        reason = because("gang.held", why=why)
    return state, known, reason


def of_group(
    name: str,
    policy: GroupPolicy,
    said_by: PolicySource,
    gang: GangRecord | None,
    members: list[WorkerInfo],
    max_attempts: int,
) -> GroupAnswer:
    """The view of one group. `said_by`: configuration, inventory, or "" if the group has no policy."""
    reason, code, params = reasons.values(gang.reason if gang else NONE)
    return {
        "group": name,
        "restart": policy.restart,
        "rendezvous": policy.rendezvous,
        "said_by": said_by,
        "phase": gang.phase if gang else None,
        "epoch": gang.epoch if gang else None,
        "attempts": gang.attempts if gang else None,
        "max_attempts": (max_attempts if policy.max_attempts is None else policy.max_attempts) if gang else None,
        "master": f"{gang.master_addr}:{gang.master_port}" if gang and gang.master_addr else None,
        "since": iso(gang.since) if gang else None,
        "reason": reason,
        "reason_code": code,
        "reason_params": params,
        "incident": _incident(gang) if gang else None,
        "members": sorted((_member(view) for view in members), key=_by_rank),
    }


def _incident(gang: GangRecord) -> GangIncident | None:
    """The gang's last incident, None if there was none. `ended` null: it is in progress."""
    found = gang.incident
    if found is None:
        return None
    reason, code, params = reasons.values(found.reason)
    return {
        "member": found.member,
        "reason": reason,
        "reason_code": code,
        "reason_params": params,
        "at": iso(found.at),
        "ended": iso(found.ended),
    }


def _member(view: WorkerInfo) -> MemberAnswer:
    return {
        "worker_id": view["worker_id"],
        "host": view["host"],
        "state": view["state"],
        "rank": view["gang"]["rank"] if view["gang"] else None,
        "epoch": view["epoch"],
        "attempt": view["attempt"],
        "reason": view["reason"],
        "reason_code": view["reason_code"],
        "reason_params": view["reason_params"],
    }


def _by_rank(member: MemberAnswer) -> tuple[bool, int, str]:
    rank = member["rank"]
    return rank is None, rank or 0, member["worker_id"]
