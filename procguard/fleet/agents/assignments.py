"""Builds an agent's assignments: its workers' specifications with the fleet's defaults, and a digest of all of them.

Reads the fleet's tables; the digest is cached until the agent's assignments change.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

from procguard import log_metrics
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.model.records import ResolvedSpec, WorkerRecord, fenced
from procguard.fleet.state import FleetState
from remote_agent.protocol import messages
from remote_agent.protocol.records import values_of


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
            spec = self.resolved(worker.spec)
            observed.resolved = ResolvedSpec(worker.spec, spec, messages.canonical_digest(messages.encode(spec)))
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
            observed.rev = messages.canonical_digest([self._comparable(one) for one in self.of(agent_id)])
        return observed.rev

    def _comparable(self, assignment: messages.Assignment) -> dict[str, Any]:
        """The assignment as input for the digest; its specification is represented by the specification's own
        digest."""
        comparable = dict(values_of(assignment))
        observed = self._state.worker_status.get(assignment.worker_id)
        same = observed is not None and observed.resolved is not None and observed.resolved.spec is assignment.spec
        comparable["spec"] = observed.resolved.digest if same else messages.encode(assignment.spec)  # type: ignore[union-attr]
        return comparable
