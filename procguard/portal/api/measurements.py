"""What was measured of a worker or a host over 15 minutes, an hour or a day, for charts."""

from __future__ import annotations

from typing import Any

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.handlers import checked_worker_id
from procguard.errors import UsageError
from procguard.fleet.model import clock
from procguard.fleet.registry import Registry
from procguard.fleet.telemetry.timeseries import SPANS, Measurements, Span


class MeasurementsApi:
    def __init__(self, registry: Registry, measurements: Measurements) -> None:
        self._registry = registry
        self._measurements = measurements

    def mount(self, app: bottle.Bottle) -> None:
        app.route("/api/measurements/workers/<worker_id>", "GET", http_io.answered(self._worker))
        app.route("/api/measurements/hosts/<agent_id>", "GET", http_io.answered(self._host))

    def _worker(self, worker_id: str) -> dict[str, Any]:
        self._registry.worker(checked_worker_id(worker_id))  # 404 where there is none
        span = _span()
        return {"worker_id": worker_id, **_told(span), **self._read("workers", worker_id, span)}

    def _host(self, agent_id: str) -> dict[str, Any]:
        self._registry.agent(agent_id[:100])
        span = _span()
        gpus = [
            {"index": index, **self._read("gpus", f"{agent_id}/{index}", span)}
            for index in self._measurements.gpus_of(agent_id)
        ]
        return {"agent_id": agent_id, **_told(span), **self._read("hosts", agent_id, span), "gpus": gpus}

    def _read(self, kind: str, item_id: str, span: Span) -> dict[str, Any]:
        since = clock.read().wall - span.step_s * span.points
        at, series = self._measurements.tables[kind].read(item_id, span, since) or ([], {})
        return {"at": at, "series": series}


def _told(span: Span) -> dict[str, Any]:
    return {"span": span.name, "step_s": span.step_s, "points": span.points}


def _span() -> Span:
    name = http_io.query_text("span") or SPANS[0].name
    for span in SPANS:
        if span.name == name:
            return span
    raise UsageError(f"span={name[:20]!r}: not kept", f"use one of: {', '.join(span.name for span in SPANS)}")
