"""Numbers from a worker's log as they are shown: values, progress and the time left. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remote_agent.protocol.messages import LogMetric, WorkerReport


def listed(report: WorkerReport | None) -> list[dict[str, Any]]:
    return [dict(vars(one)) for one in report.metrics] if report is not None else []


def values(report: WorkerReport | None) -> dict[str, float | None] | None:
    """The metrics for the live feed; None if there are none."""
    if report is None or not report.metrics:
        return None
    return {one.name: one.value for one in report.metrics}


def progress_percent(report: WorkerReport | None) -> float | None:
    """Of the first metric with a total."""
    found = _with_total(report.metrics) if report is not None else None
    if found is None or found.value is None or not found.total:
        return None
    return round(min(100.0, max(0.0, 100.0 * found.value / found.total)), 1)


def eta_s(report: WorkerReport | None) -> float | None:
    """The time left as of that metric's last change."""
    found = _with_total(report.metrics) if report is not None and report.state == "running" else None
    return found.eta_s if found is not None else None


def _with_total(metrics: Iterable[LogMetric]) -> LogMetric | None:
    return next((one for one in metrics if one.total is not None and one.total > 0), None)
