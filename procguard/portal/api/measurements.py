"""Measurements of a worker or a host over 15 minutes, an hour or a day, for charts; the current state of every GPU."""

from __future__ import annotations

from dataclasses import dataclass

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.declaration import choice, get
from procguard.fleet.model import clock
from procguard.fleet.shapes import gpus
from procguard.fleet.shapes.gpus import GpuView
from procguard.fleet.telemetry.timeseries import SPANS, Span
from procguard.portal.api.live import packed
from procguard.portal.api.resource import Resource

_SPANS = {span.name: span for span in SPANS}
_Read = tuple[list[float], dict[str, list[float | None]]]


@dataclass(frozen=True)
class SpanQuery:
    span: str = choice(*_SPANS, default=SPANS[0].name, says="the period")


@dataclass(frozen=True)
class Measured:
    """`at`: Unix seconds, ascending. `series`: for each name one value per time, null if nothing was measured then. A
    series without any value is left out."""

    at: list[float]
    series: dict[str, list[float | None]]


@dataclass(frozen=True)
class GpuMeasurements(Measured):
    index: int


@dataclass(frozen=True)
class MetricMeasurements(Measured):
    """A metric read from the worker's log. Its series is named `value`."""

    name: str


@dataclass(frozen=True)
class WorkerMeasurements(Measured):
    worker_id: str
    span: str
    step_s: int
    points: int
    metrics: list[MetricMeasurements]


@dataclass(frozen=True)
class HostMeasurements(Measured):
    agent_id: str
    span: str
    step_s: int
    points: int
    gpus: list[GpuMeasurements]


@dataclass(frozen=True)
class GpusAnswer:
    gpus: list[GpuView]


class MeasurementsApi(Resource):
    @get("/api/measurements/workers/<worker_id>", "viewer", tag="history", zh="worker 的历史度量", errors=(404,))
    def of_worker(self, worker_id: str, query: SpanQuery) -> WorkerMeasurements:
        """Measurements of a worker, for charts.

        [Below](#measurements).
        """
        worker = self.fleet.state.find(worker_id)  # raises NotFound (404) for an unknown worker
        span = _SPANS[query.span]
        read = self._read("workers", worker_id, span)
        names = worker.spec.metrics
        metrics = [MetricMeasurements(*self._read("metrics", f"{worker_id}/{name}", span), name) for name in names]
        return WorkerMeasurements(*read, worker_id, span.name, span.step_s, span.points, metrics)

    @get("/api/measurements/hosts/<agent_id>", "viewer", tag="history", zh="主机及其 GPU 的历史度量", errors=(404,))
    def of_host(self, agent_id: str, query: SpanQuery) -> HostMeasurements:
        """Measurements of a host and its GPUs, for charts.

        The host is named by its agent's id.
        """
        self.fleet.state.agent(agent_id)
        span = _SPANS[query.span]
        indexes = self.services.measurements.gpus_of(agent_id)
        gpus = [GpuMeasurements(*self._read("gpus", f"{agent_id}/{index}", span), index) for index in indexes]
        read = self._read("hosts", agent_id, span)
        return HostMeasurements(*read, agent_id, span.name, span.step_s, span.points, gpus)

    def _read(self, kind: str, item_id: str, span: Span) -> _Read:
        since = clock.read().wall - span.step_s * span.points
        return self.services.measurements.tables[kind].read(item_id, span, since) or ([], {})


class GpusApi(Resource):
    @get("/api/gpus", "viewer", tag="hosts", zh="全部主机的 GPU", answers={200: GpusAnswer})
    def gpus(self) -> bottle.HTTPResponse:
        """Every GPU of the fleet, by host and index.

        As reported by the host's last heartbeat. `state` is `free`, `failed` (cordoned, or with a fatal fault), `busy`,
        `idle`, `hung`, `other` (used by processes that belong to no worker), `nobody` (memory in use without a process)
        or `lost` (it cannot be read, or its host is unreachable). The response has an ETag: 304 while nothing has
        changed.
        """
        state = self.fleet.state
        hung = frozenset(name for name, seen in state.worker_status.items() if seen.suspect)
        machines: dict[str, list[GpuView]] = {}
        for agent_id in sorted(state.agents_by_id):
            host = state.host_source(agent_id)
            found = [
                gpus.view(gpu, host.agent, usage.gpu_faults, away=host.seen.state != "connected", hung=hung)
                for usage in (host.usage,)
                if usage is not None
                for gpu in usage.gpus
            ]
            known = machines.get(host.agent.host)
            if found and (
                known is None or known[0]["state"] == "lost"
            ):  # launchers beside an agent report the same ones
                machines[host.agent.host] = found
        body = http_io.dumps(GpusAnswer([gpu for host in sorted(machines) for gpu in machines[host]]))
        return packed(body, known=True)
