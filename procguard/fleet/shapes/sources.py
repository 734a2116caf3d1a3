"""Sources for the fields of workers and hosts: their records, and values derived from several of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from procguard.fleet.agents import host_disks
from procguard.fleet.gangs import views as gang_views
from procguard.fleet.model.records import KNOWN_STATES, AgentObserved, AgentRecord, WorkerObserved, WorkerRecord
from procguard.fleet.shapes import parts
from procguard.fleet.workers import views
from procguard.i18n.reasons import Reason, reason_of
from remote_agent.protocol import messages, states


class WorkerSource:
    """The current knowledge of a worker. `gang`: its membership, None if it has no gang. `wall`: Unix seconds."""

    __slots__ = (
        "declared_digest", "gang", "known", "last_seen_wall", "reachable", "reason", "report", "seen", "state", "usage",
        "wall", "worker",
    )  # fmt: skip

    def __init__(
        self,
        worker: WorkerRecord,
        observed: WorkerObserved,
        agent: AgentObserved,
        agent_reason: Reason,
        gang: gang_views.GangOfWorker | None,
        declared_digest: Callable[[WorkerRecord], str],
        wall: float = 0.0,
    ) -> None:
        """`declared_digest(worker)`: the launch digest of what is declared."""
        self.worker = worker
        self.seen = observed
        self.report = report = observed.report
        self.usage = report.usage if report is not None else None
        self.reachable = agent.state in KNOWN_STATES
        self.last_seen_wall = agent.last_seen_wall
        self.gang = gang
        self.declared_digest = declared_digest
        self.wall = wall
        self.known: str = report.state if report is not None else worker.last_state
        self.state: str = self.known if self.reachable else states.UNKNOWN
        self.reason = views.shown_reason(worker, observed, self.state, agent_reason)
        if gang is not None:
            said = gang_views.applied(gang, worker.desired, self.state, self.known, self.reason)
            self.state, self.known, self.reason = said

    def encoded(self, name: str) -> Any:
        """A part of the worker's report as JSON values."""
        value = getattr(self.report, name) if self.report is not None else None
        return None if value is None else messages.encode(value)

    @property
    def attempt(self) -> int:
        return max(self.worker.attempt, self.report.attempt if self.report is not None else 0)

    @property
    def restarts(self) -> int:
        return self.report.restarts if self.report is not None else 0

    @property
    def restarts_total(self) -> int:
        return self.report.restarts_total if self.report is not None else 0

    @property
    def since(self) -> float:
        return self.report.since if self.report is not None else self.worker.last_since

    @property
    def is_current(self) -> bool:
        report, worker = self.report, self.worker
        return report is not None and report.generation >= worker.generation and report.epoch == worker.epoch

    @property
    def moving_to(self) -> str | None:
        return self.worker.moving.to if self.worker.moving is not None else None

    @property
    def recovery(self) -> parts.WorkerRecoveryStatus | None:
        status = self.seen.recovery_status
        return views.waiting(status) if status is not None else None

    @property
    def restart_pending(self) -> bool:
        running = self.report.launch_digest if self.report else ""
        return bool(running) and running != self.declared_digest(self.worker)

    @property
    def suspicion(self) -> Reason | None:
        return views.suspicion(self.seen)

    @property
    def health(self) -> list[Any] | None:
        """[status, detail of its checks], for the live feed."""
        health = self.report.health if self.report is not None else None
        return None if health is None else [health.status, reason_of(health.detail).plain()]

    @property
    def command(self) -> str:
        return views.command_text(self.worker.spec.command)

    @property
    def next_start_at(self) -> int | None:
        in_s = self.report.next_start_in_s if self.report else None
        return None if in_s is None or self.state != "backoff" else round(self.wall + in_s)


class HostSource:
    """The current knowledge of a host and its agent. `workers`: the number of workers on it."""

    __slots__ = ("agent", "beat", "facts", "seen", "usage", "workers")

    def __init__(self, agent: AgentRecord, observed: AgentObserved, workers: int) -> None:
        self.agent = agent
        self.seen = observed
        self.workers = workers
        self.beat = beat = observed.heartbeat
        self.usage = beat.usage if beat is not None else None
        self.facts = beat.facts if beat is not None else None

    def encoded(self, name: str) -> Any:
        value = getattr(self, name)
        return None if value is None else messages.encode(value)

    @property
    def release(self) -> str:
        return self.beat.release if self.beat else self.agent.release

    @property
    def address(self) -> str:
        return str(views.shown_address(self.agent, self.seen))

    @property
    def disk_trouble(self) -> str:
        return host_disks.trouble_of(self.beat)

    @property
    def disk_path(self) -> str:
        return self.beat.disk_path if self.beat is not None else ""

    @property
    def tunnel(self) -> parts.TunnelAnswer | None:
        return views.tunnel(self.seen.tunnel, self.agent.tunnel_port) if self.agent.tunnel else None

    @property
    def rotation(self) -> parts.Rotation | None:
        return views.rotation(self.agent)

    @property
    def recovery(self) -> parts.HostRecovery | None:
        return views.recovery(self.agent)

    @property
    def last_failure(self) -> parts.Failure | None:
        return views.failure(self.agent.failures[-1]) if self.agent.failures else None

    @property
    def newest_failure(self) -> Mapping[str, object] | None:
        """Like `last_failure`, with the time in Unix seconds."""
        failures = self.agent.failures
        return {**views.failure(failures[-1]), "at": failures[-1].at} if failures else None

    @property
    def cordoned(self) -> parts.Cordon | None:
        return views.cordoned(self.agent.cordon) if self.agent.cordon is not None else None

    @property
    def recovery_ssh(self) -> parts.Checked:
        return views.recovery_ssh(self.seen.recovery_ssh)
