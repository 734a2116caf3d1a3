"""Detects workers that appear to hang: reported by their host (`suspect`), or idle in both CPU and memory. Alerts
only.

Examines only reports that are new since the last round, so that its cost does not depend on the size of the fleet. A
sleeping process may be healthy: nothing is restarted because of a finding.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import WorkerObserved
from procguard.fleet.model.settings import FleetSettings
from procguard.i18n.reasons import NONE, Reason, because, reason_of

IDLE_FOR_S = 60.0
FORGET_EVERY_S = 60.0
_NUMBERS = re.compile(r"[0-9.]+")


class Hang(NamedTuple):
    worker_id: str
    evidence: Reason  # NONE: no longer suspect


class Hangs:
    def __init__(self, fleet: Fleet, settings: FleetSettings) -> None:
        self._fleet = fleet
        self._settings = settings
        self._idle_since: dict[str, float] = {}
        self._flagged: dict[str, str] = {}  # worker -> the evidence it was flagged for, without numbers
        self._forget_at = 0.0

    def tick(self, now: Now) -> list[Hang]:
        fresh, self._fleet.state.fresh_reports = self._fleet.state.fresh_reports, set()
        found = [hang for worker_id in fresh if (hang := self._probe(worker_id, now)) is not None]
        if now.monotonic >= self._forget_at:
            self._forget_at = now.monotonic + FORGET_EVERY_S
            self._forget_the_removed()
        return found

    def later(self, late_s: float) -> None:
        self._idle_since = {worker_id: at + late_s for worker_id, at in self._idle_since.items()}

    def _probe(self, worker_id: str, now: Now) -> Hang | None:
        observed = self._fleet.state.worker_status.get(worker_id)
        if observed is None or self._is_busy(worker_id, observed):
            return None
        evidence = self._host_evidence(worker_id).then(self._idle_evidence(worker_id, now))
        if evidence:
            signs = _NUMBERS.sub("", evidence)
            if self._flagged.get(worker_id) == signs:
                return None
            self._flagged[worker_id] = signs
            return Hang(worker_id, evidence)
        if worker_id in self._flagged or observed.suspect:
            self._flagged.pop(worker_id, None)
            return Hang(worker_id, NONE)
        return None

    def _is_busy(self, worker_id: str, observed: WorkerObserved) -> bool:
        """Fast path for the usual case: the worker uses CPU, and its host does not suspect it."""
        report = observed.report
        if report is None or report.usage is None or report.suspect or observed.suspect or worker_id in self._flagged:
            return False
        if report.usage.cpu_percent < self._settings.cpu_threshold_percent:
            return False
        self._idle_since.pop(worker_id, None)
        return True

    def _host_evidence(self, worker_id: str) -> Reason:
        """The evidence reported by its agent: process states, no output, a GPU that is busy without progress."""
        report = self._fleet.state.worker_status[worker_id].report
        return reason_of(report.suspect) if report is not None and report.state == "running" else NONE

    def _idle_evidence(self, worker_id: str, now: Now) -> Reason:
        report = self._fleet.state.worker_status[worker_id].report
        if report is None or report.state != "running" or report.usage is None:
            self._idle_since.pop(worker_id, None)
            return NONE
        settings, cpu = self._settings, report.usage.cpu_percent
        health = report.health
        if cpu >= settings.cpu_threshold_percent or report.idle_because or (health and health.status == "ok"):
            self._idle_since.pop(worker_id, None)
            return NONE
        beat = self._fleet.state.agent_status[self._fleet.state.workers_by_id[worker_id].agent_id].heartbeat
        memory = beat.facts.memory_bytes if beat else 0
        share = 100.0 * report.usage.rss_bytes / memory if memory else 100.0
        if share >= settings.memory_threshold_percent:
            self._idle_since.pop(worker_id, None)
            return NONE
        idle_s = now.monotonic - self._idle_since.setdefault(worker_id, now.monotonic)
        if idle_s < IDLE_FOR_S:
            return NONE
        return because(
            "worker.idle",
            cpu_percent=f"{cpu:.2f}",
            memory_percent=f"{share:.3f}",
            cpu_limit=settings.cpu_threshold_percent,
            memory_limit=settings.memory_threshold_percent,
            for_s=IDLE_FOR_S,
        )

    def _forget_the_removed(self) -> None:
        present = self._fleet.state.worker_status
        self._flagged = {worker_id: signs for worker_id, signs in self._flagged.items() if worker_id in present}
        self._idle_since = {worker_id: at for worker_id, at in self._idle_since.items() if worker_id in present}
