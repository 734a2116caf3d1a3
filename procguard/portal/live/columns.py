"""Columns of the portal's lists of workers and hosts, with measurements separate from state.

fleet/shapes declares the fields and how they are read; a row has the same values as a view, with times as Unix
seconds. Columns change with events, measurements continuously. Pure except for reading the fleet's records.
"""

from __future__ import annotations

from collections.abc import Mapping

from procguard.fleet.fleet import Fleet
from procguard.fleet.model.records import PendingLauncher
from procguard.fleet.shapes import views as shapes
from procguard.fleet.shapes.views import HOST_FEED, WORKER_FEED, Row
from procguard.fleet.workers import views

WAITING_SHOWN_WITHIN_S = 2.0  # differences of a countdown between heartbeats below this are ignored
_STARTS_AT = WORKER_FEED.columns.index("next_start_at")


class WorkerColumns:
    """Rows of the fleet's workers, by id."""

    columns = WORKER_FEED.columns
    measures = WORKER_FEED.measures
    key = "worker_id"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def ids(self) -> list[str]:
        return list(self._fleet.state.workers_by_id)

    def row(self, worker_id: str, before: Row | None, wall: float) -> Row | None:
        """None for an unknown worker. `before`: its row as last sent."""
        state = self._fleet.state
        worker = state.workers_by_id.get(worker_id)
        if worker is None or worker_id not in state.worker_status or worker.agent_id not in state.agent_status:
            return None
        source = state.worker_source(worker, wall)
        row = WORKER_FEED.row(source)
        starts_at, shown = row[_STARTS_AT], before[_STARTS_AT] if before is not None else None
        if starts_at is not None and shown is not None and abs(shown - starts_at) <= WAITING_SHOWN_WITHIN_S:
            row[_STARTS_AT] = shown
        return tuple(row)

    def measured(self, worker_id: str) -> Row | None:
        seen = self._fleet.state.worker_status.get(worker_id)
        if seen is None or (report := seen.report) is None or (report.usage is None and not report.metrics):
            return None
        return shapes.measured(WORKER_FEED, seen, report.usage)


class HostColumns:
    """Rows of the fleet's agents by id, and of launchers pending approval."""

    columns = HOST_FEED.columns
    measures = HOST_FEED.measures
    key = "agent"

    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet

    def ids(self) -> list[str]:
        return [*self._fleet.state.agents_by_id, *self._fleet.agents.enrolment.waiting()]

    def row(self, item_id: str, before: Row | None, wall: float) -> Row | None:
        state = self._fleet.state
        if item_id not in state.agents_by_id or item_id not in state.agent_status:
            pending = self._fleet.agents.enrolment.waiting().get(item_id)
            return self._pending(pending) if pending is not None else None
        source = state.host_source(item_id)
        return tuple(HOST_FEED.row(source))

    def measured(self, item_id: str) -> Row | None:
        state = self._fleet.state
        if item_id not in state.agents_by_id or item_id not in state.agent_status:
            pending = self._fleet.agents.enrolment.waiting().get(item_id)
            if pending is None:
                return None
            return tuple(round(pending.last_seen) if name == "last_seen" else None for name in self.measures)
        source = state.host_source(item_id)
        return shapes.measured(HOST_FEED, source, source.usage)

    @staticmethod
    def _pending(pending: PendingLauncher) -> Row:
        view: Mapping[str, object] = views.pending_view(pending)
        empty: Mapping[str, object] = {
            "cpus": None,
            "memory_bytes": None,
            "gpus": 0,
            "gpu_trouble": "",
            "labels": {},
            "failures": 0,
        }
        return tuple(view.get(name, empty.get(name)) for name in HOST_FEED.columns)
