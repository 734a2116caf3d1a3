"""Views of numbers from a worker's log: values, progress and the remaining time. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from remote_agent.protocol.records import values_of

if TYPE_CHECKING:
    from remote_agent.protocol.messages import LogMetric, WorkerReport


def listed(report: WorkerReport | None) -> list[Mapping[str, object]]:
    return [dict(values_of(one)) for one in report.metrics] if report is not None else []


def values(report: WorkerReport | None) -> dict[str, float | None] | None:
    """The values for the live feed; None if there are none."""
    if report is None or not report.metrics:
        return None
    return {one.name: one.value for one in report.metrics}


def progress_percent(report: WorkerReport | None) -> float | None:
    """The progress of the first metric with a total, in percent."""
    found = _with_total(report.metrics) if report is not None else None
    if found is None or found.value is None or not found.total:
        return None
    return round(min(100.0, max(0.0, 100.0 * found.value / found.total)), 1)


def eta_s(report: WorkerReport | None) -> float | None:
    """The remaining time in seconds, estimated at that metric's last change."""
    found = _with_total(report.metrics) if report is not None and report.state == "running" else None
    return found.eta_s if found is not None else None


def _with_total(metrics: Iterable[LogMetric]) -> LogMetric | None:
    return next((one for one in metrics if one.total is not None and one.total > 0), None)
