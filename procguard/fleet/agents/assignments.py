"""Builds an agent's assignments: its workers' specifications with the fleet's defaults, and a digest of all of them.

Reads the fleet's tables; the digest is cached until the agent's assignments change.
"""

from __future__ import annotations

import copy
import dataclasses

import msgspec

from procguard import log_metrics
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.model.records import ResolvedSpec, WorkerRecord, fenced
from procguard.fleet.state import FleetState
from remote_agent.protocol import messages
from remote_agent.protocol.digests import sha256_hex

# Every agent that returns after a restart of the manager needs a digest: this takes a tenth of the time of json.
_encode = msgspec.json.Encoder(order="deterministic").encode


class AssignmentBuilder:
    def __init__(self, state: FleetState, gangs: Gangs) -> None:
        self._state = state
        self._gangs = gangs

    def of(self, agent_id: str) -> list[messages.Assignment]:
        """The agent's assignments, ordered by worker id, with the fleet's defaults filled in."""
        own = [
            messages.Assignment(
                worker_id=worker.worker_id,
                spec=self._resolved_once(worker),
                desired=worker.assigned_state,
                generation=worker.generation,
                epoch=worker.epoch,
                attempt_base=worker.attempt if not self._runs_here(worker) else 0,
                lease_s=worker.spec.lease_s if fenced(worker) else None,
                gang=worker.gang,
                env=self._gangs.environment(worker),
                grant=self._state.grant(worker.worker_id, worker.epoch, agent_id),
                causes=self._state.settings.causes,
                metrics=log_metrics.for_hosts(worker.spec.metrics) if worker.spec.metrics else {},
            )
            for worker in self._state.workers_of(agent_id)
        ]
        gone = [
            messages.Assignment(worker_id, messages.WorkerSpec(command=one.command), "removed", one.generation)
            for worker_id, one in self._state.agents_by_id[agent_id].withdrawn.items()
        ]
        for assignment, withdrawal in zip(gone, self._state.agents_by_id[agent_id].withdrawn.values(), strict=True):
            assignment.epoch = withdrawal.epoch
        return sorted(own + gone, key=lambda one: one.worker_id)

    def _runs_here(self, worker: WorkerRecord) -> bool:
        """Whether this worker's agent has reported it. Its local attempt numbers are then authoritative, and the
        assignment (with its digest) need not change with each attempt."""
        report = self._state.worker_status[worker.worker_id].report
        return report is not None and report.attempt > 0

    def _resolved_once(self, worker: WorkerRecord) -> messages.WorkerSpec:
        """Cached `resolved`. A specification is replaced, never changed in place, so its identity is the cache key.

        Stopping ten thousand workers calls it thirty thousand times; without the cache, copying dominated the manager's
        processor time.
        """
        observed = self._state.worker_status[worker.worker_id]
        if observed.resolved is None or observed.resolved.declared is not worker.spec:
            observed.resolved = ResolvedSpec(worker.spec, self.resolved(worker.spec))
        return observed.resolved.spec

    def resolved(self, spec: messages.WorkerSpec) -> messages.WorkerSpec:
        """The specification with the manager's recovery settings filled in. Unchanged parts are shared, not copied."""
        settings, own = self._state.settings, spec.restart
        most = settings.max_recovery_attempts if own.max_attempts is None else own.max_attempts
        usual = own.start_timeout_s == messages.RestartPolicy.start_timeout_s  # otherwise the worker's own value
        start_timeout_s = settings.recovery_timeout_s if usual else own.start_timeout_s
        resolved, restart = copy.copy(spec), copy.copy(own)  # not dataclasses.replace, which takes ten times as long
        restart.max_attempts, restart.start_timeout_s = most, start_timeout_s
        resolved.restart = restart
        if not settings.enable_auto_recovery:
            restart.policy = "never"
            resolved.health = [dataclasses.replace(check, action="alert") for check in spec.health]
        return resolved

    def rev(self, agent_id: str) -> str:
        observed = self._state.agent_status[agent_id]
        if not observed.rev:
            observed.rev = digest(self.of(agent_id))
        return observed.rev


def digest(assignments: list[messages.Assignment]) -> str:
    """16 hexadecimal digits, the same for equal assignments whatever the order of their mappings."""
    try:
        return sha256_hex(_encode(assignments))[:16]
    except (TypeError, UnicodeEncodeError):  # a text with a reason's code, or one that UTF-8 cannot encode
        return messages.canonical_digest([messages.encode(one) for one in assignments])
