"""Which groups exist: their policies, the origin of each, and their members.

The configuration takes precedence over the inventory, whose policies arrive with a deployment and are durable. Knows
nothing of what a gang is doing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from procguard.config.groups import ALONE, GroupPolicy, PolicySource
from procguard.fleet.gangs import rendezvous
from procguard.fleet.model.records import WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Tables
from procguard.fleet.transaction import Transaction
from remote_agent.protocol import messages


class FleetGroups:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._declared: dict[str, GroupPolicy] = {}  # declared by inventories
        self._members: dict[str, list[WorkerRecord]] = {}
        self._members_version = -1

    def restore(self, stored: Mapping[str, Any]) -> None:
        for name, data in stored.items():
            self._declared[name] = GroupPolicy.model_validate(data)

    def tables(self) -> Tables:
        return {"groups": {name: policy.model_dump() for name, policy in self._declared.items()}}

    def policy(self, group: str) -> GroupPolicy:
        return self._state.settings.groups.get(group) or self._declared.get(group) or ALONE

    def policies(self) -> dict[str, GroupPolicy]:
        return {**self._declared, **self._state.settings.groups}

    def said_by(self, group: str) -> PolicySource:
        if group in self._state.settings.groups:
            return "configuration"
        return "inventory" if group in self._declared else ""

    def declare(self, tx: Transaction, declared: Mapping[str, GroupPolicy], used: set[str]) -> None:
        """Store the group policies of a deployment. `used`: the groups of its workers; any of these without a policy
        becomes an ordinary group again."""
        for name in used - set(declared):
            if name in self._declared:
                self._declare(tx, name, None)
        for name, policy in declared.items():
            if self._declared.get(name) != policy:
                self._declare(tx, name, policy)

    def _declare(self, tx: Transaction, name: str, policy: GroupPolicy | None) -> None:
        before = self._declared
        self._declared = {other: one for other, one in before.items() if other != name}
        if policy is not None:
            self._declared[name] = policy
        tx.undo(lambda: setattr(self, "_declared", before))
        tx.put("groups", name, None if policy is None else policy.model_dump())

    def members(self, group: str) -> list[WorkerRecord]:
        """The workers of a group that can be gang members, ordered by rank."""
        if self._members_version != self._state.workers_version:
            self._members_version = self._state.workers_version
            self._members = self._by_group()
        return self._members.get(group, [])

    def _by_group(self) -> dict[str, list[WorkerRecord]]:
        found: dict[str, list[WorkerRecord]] = {}
        for worker in self._state.workers_by_id.values():
            if worker.spec.group and worker.desired != "removed" and not by_hand(worker):
                found.setdefault(worker.spec.group, []).append(worker)
        for name, workers in found.items():
            order = rendezvous.ranks(worker.worker_id for worker in workers)
            found[name] = sorted(workers, key=lambda worker: order[worker.worker_id])
        return found


def by_hand(worker: WorkerRecord) -> bool:
    """Whether the worker was started by hand. Such a worker is never a gang member: only its user can restart it."""
    return worker.agent_id.startswith(messages.LAUNCHER_PREFIX)
