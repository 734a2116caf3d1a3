"""What the portal's lists show of each worker and each host: one row of columns, and apart from it what is measured.

Ten thousand rows are read often, so nothing here builds a view (fleet/workers/views.py); what a row says is what a view
would say, with times as Unix seconds. Columns change when something happened, measures all the time. Pure but for
reading the fleet's records.
"""

from __future__ import annotations

from typing import Any

from procguard.fleet.fleet import Fleet
from procguard.fleet.model.records import AgentRecord, PendingLauncher, WorkerRecord
from procguard.fleet.workers import views
from remote_agent.protocol import messages

Row = tuple[Any, ...]

WORKER_COLUMNS: tuple[str, ...] = (
    "worker_id",
    "state",
    "last_known_state",
    "desired",
    "host",
    "agent",
    "group",
    "labels",
    "attempt",
    "restarts",
    "restarts_total",
    "command",
    "since",
    "reason",
    "suspect",
    "health",
    "restart_pending",
    "undeclared",
    "last_seen",  # only while its agent is out of reach; else its host's row says it
    "next_start_at",
    "gpus",
)
WORKER_MEASURES: tuple[str, ...] = ("cpu_percent", "rss_bytes", "gpu_percent", "gpu_memory_bytes")

HOST_COLUMNS: tuple[str, ...] = (
    "agent",
    "host",
    "kind",
    "agent_state",
    "address",
    "release",
    "reason",
    "workers",
    "recovery_ssh",
    "tunnel",
    "spare",
    "labels",
    "cordoned",
    "recovery",
    "failures",
    "last_failure",
    "cpus",
    "memory_bytes",
    "gpus",
    "gpu_trouble",
    "agent_started",
    "fingerprint",  # of a launcher that waits for approval; so are the next two
    "worker_id",
    "command",
)
HOST_MEASURES: tuple[str, ...] = (
    "last_seen",
    "cpu_percent",
    "load1",
    "memory_used_bytes",
    "disk_free_bytes",
    "disk_total_bytes",
    "network_received_bytes_per_s",
    "network_sent_bytes_per_s",
    "gpu_percent",
    "gpu_memory_used_bytes",
    "gpu_memory_total_bytes",
    "gpus_used",
)
_WAITING_SHOWN_WITHIN_S = 2.0  # a countdown told anew with every heartbeat is the same moment


class WorkerColumns:
    """Rows of the fleet's workers, by id."""

    columns = WORKER_COLUMNS
    measures = WORKER_MEASURES
    key = "worker_id"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def ids(self) -> list[str]:
        return list(self._fleet.state.workers_by_id)

    def row(self, worker_id: str, before: Row | None, wall: float) -> Row | None:
        """None: there is no such worker. `before`: its row as it was told last."""
        fleet = self._fleet
        worker: WorkerRecord | None = fleet.state.workers_by_id.get(worker_id)
        seen = fleet.state.worker_seen.get(worker_id)
        agent = fleet.state.seen.get(worker.agent_id) if worker is not None else None
        if worker is None or seen is None or agent is None:
            return None
        report, spec = seen.report, worker.spec
        reachable = agent.state in ("connected", "suspect")
        if worker.gang:  # its gang may say more of it than its runner can know
            view = fleet.state.worker_view(worker)
            state, known, reason = view["state"], view["last_known_state"], view["reason"]
        else:
            state, known = views.observed_state(worker, seen, reachable)
            reason = views.shown_reason(worker, seen, state, fleet.state.agent_reason(worker.agent_id))
        starts_in_s = report.next_start_in_s if report else None
        starts_at = None if starts_in_s is None or state != "backoff" else round(wall + starts_in_s)
        told = before[_STARTS_AT] if before is not None else None
        if starts_at is not None and told is not None and abs(told - starts_at) <= _WAITING_SHOWN_WITHIN_S:
            starts_at = told
        health = report.health if report else None
        running = report.launch_digest if report else ""
        return (
            worker_id,
            state,
            known,
            worker.desired,
            worker.host,
            worker.agent_id,
            spec.group,
            spec.labels,
            max(worker.attempt, report.attempt if report else 0),
            report.restarts if report else 0,
            report.restarts_total if report else 0,
            views.command_text(spec.command),
            round(report.since if report else worker.last_since, 1) or None,
            reason,
            views.suspicion(seen),
            [health.status, health.detail] if health else None,
            bool(running) and running != views.declared_digest(worker, seen),
            worker.undeclared,
            None if reachable or not agent.last_seen_wall else round(agent.last_seen_wall, 1),
            starts_at,
            report.usage.gpus if report and report.usage else None,
        )

    def measured(self, worker_id: str) -> Row | None:
        seen = self._fleet.state.worker_seen.get(worker_id)
        usage: messages.WorkerUsage | None = seen.report.usage if seen is not None and seen.report else None
        if usage is None:
            return None
        gpu = usage.gpu_percent
        return (
            round(usage.cpu_percent, 1),
            _three_digits(usage.rss_bytes),
            None if gpu is None else round(gpu),
            _three_digits(usage.gpu_memory_bytes),
        )


_STARTS_AT = WORKER_COLUMNS.index("next_start_at")


class HostColumns:
    """Rows of the fleet's agents by their id, and of launchers that wait for approval."""

    columns = HOST_COLUMNS
    measures = HOST_MEASURES
    key = "agent"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def ids(self) -> list[str]:
        return [*self._fleet.state.agents_by_id, *self._fleet.agents.enrolment.waiting()]

    def row(self, item_id: str, before: Row | None, wall: float) -> Row | None:
        fleet = self._fleet
        agent: AgentRecord | None = fleet.state.agents_by_id.get(item_id)
        seen = fleet.state.seen.get(item_id)
        if agent is None or seen is None:
            pending = fleet.agents.enrolment.waiting().get(item_id)
            return self._pending(pending) if pending is not None else None
        beat = seen.heartbeat
        usage, facts = (beat.usage, beat.facts) if beat else (None, None)
        failure = agent.ledger[-1] if agent.ledger else None
        return (
            item_id,
            agent.host,
            agent.kind,
            seen.state,
            views.shown_address(agent, seen),
            beat.release if beat else agent.release,
            seen.reason,
            fleet.state.worker_count(item_id),
            seen.recovery_ssh,
            views.tunnel(agent, seen),
            agent.spare,
            agent.labels,
            agent.cordon or None,
            agent.incident or None,
            len(agent.ledger),
            failure,
            facts.cpus if facts else None,
            facts.memory_bytes if facts else None,
            len(usage.gpus) if usage else 0,
            usage.gpu_trouble if usage else "",
            round(beat.started_at, 1) if beat and beat.started_at else None,
            "",
            "",
            "",
        )

    def measured(self, item_id: str) -> Row | None:
        seen = self._fleet.state.seen.get(item_id)
        if seen is None:
            pending = self._fleet.agents.enrolment.waiting().get(item_id)
            return (round(pending.last_seen), *([None] * (len(HOST_MEASURES) - 1))) if pending is not None else None
        heard = None if not seen.last_seen_wall else round(seen.last_seen_wall)
        usage: messages.HostUsage | None = seen.heartbeat.usage if seen.heartbeat else None
        if usage is None:
            return (heard, *([None] * (len(HOST_MEASURES) - 1)))
        busy = [gpu.utilization_percent for gpu in usage.gpus if gpu.utilization_percent is not None]
        return (
            heard,
            round(usage.cpu_percent, 1),
            round(usage.load1, 2),
            _three_digits(usage.memory_used_bytes),
            _three_digits(usage.disk_free_bytes),
            _three_digits(usage.disk_total_bytes),
            _three_digits(usage.network_received_bytes_per_s),
            _three_digits(usage.network_sent_bytes_per_s),
            round(sum(busy) / len(busy)) if busy else None,
            _three_digits(_sum(gpu.memory_used_bytes for gpu in usage.gpus)) if usage.gpus else None,
            _three_digits(_sum(gpu.memory_total_bytes for gpu in usage.gpus)) if usage.gpus else None,
            sum(1 for gpu in usage.gpus if gpu.worker_id or gpu.processes) if usage.gpus else None,
        )

    @staticmethod
    def _pending(pending: PendingLauncher) -> Row:
        view = views.pending_view(pending)
        empty: dict[str, Any] = {
            "cpus": None,
            "memory_bytes": None,
            "gpus": 0,
            "gpu_trouble": "",
            "labels": {},
            "failures": 0,
        }
        return tuple(view.get(name, empty.get(name)) for name in HOST_COLUMNS)


def _sum(values: Any) -> int:
    return int(sum(value or 0 for value in values))


def _three_digits(value: float | None) -> int | None:
    """As much of a size as a list shows. Its zeros compress well, and what hardly moves is not told anew."""
    if value is None:
        return None
    whole = int(value)
    return whole if whole < 1000 else round(whole, 3 - len(str(whole)))
