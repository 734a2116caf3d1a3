"""API views of groups and gangs. Pure: records in, JSON-ready dicts out."""

from __future__ import annotations

from typing import Any

from procguard.config.groups import GroupPolicy
from procguard.fleet.gangs.decider import GangRecord
from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import WorkerRecord, settled
from procguard.i18n.reasons import NONE, Reason, because
from remote_agent.protocol import states
from remote_agent.protocol.reasons import fields as reason_fields


def of_member(gang: GangRecord, worker: WorkerRecord) -> dict[str, Any]:
    """The field `gang` of a worker's view. `rank` None: the worker was not part of the last launch."""
    mark = gang.members.get(worker.worker_id)
    return {
        "phase": gang.phase,
        "rank": mark.rank if mark is not None and mark.rank >= 0 else None,
        "epoch": gang.epoch,
        "attempts": gang.attempts,
        "held": worker.held,
        **reason_fields("reason", gang.reason),
        "reason": gang.reason,
    }


def applied(gang: dict[str, Any], desired: str, state: str, known: str, reason: Reason) -> tuple[str, str, Reason]:
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
    said_by: str,
    gang: GangRecord | None,
    members: list[dict[str, Any]],
    max_attempts: int,
) -> dict[str, Any]:
    """The view of one group. `said_by`: configuration, inventory, or "" if the group has no policy."""
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
        **reason_fields("reason", gang.reason if gang else NONE),
        "incident": _incident(gang) if gang else None,
        "members": sorted((_member(view) for view in members), key=_by_rank),
    }


def _incident(gang: GangRecord) -> dict[str, Any] | None:
    """The gang's last incident, None if there was none. `ended` null: it is in progress."""
    found = gang.incident
    if found is None:
        return None
    return {
        "member": found.member,
        **reason_fields("reason", found.reason),
        "at": iso(found.at),
        "ended": iso(found.ended),
    }


def _member(view: dict[str, Any]) -> dict[str, Any]:
    return {
        "worker_id": view["worker_id"],
        "host": view["host"],
        "state": view["state"],
        "rank": view["gang"]["rank"] if view["gang"] else None,
        "epoch": view["epoch"],
        "attempt": view["attempt"],
        **{name: view[name] for name in ("reason", "reason_code", "reason_params")},
    }


def _by_rank(member: dict[str, Any]) -> tuple[bool, int, str]:
    rank = member["rank"]
    return rank is None, rank or 0, member["worker_id"]
