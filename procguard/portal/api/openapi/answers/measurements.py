"""Measured values over time."""

from __future__ import annotations

from pydantic import BaseModel


class Measured(BaseModel):
    """`at`: Unix seconds; of each series as many values, null where nothing was measured. A series of which nothing is
    known is left out."""

    at: list[float]
    series: dict[str, list[float | None]]


class GpuMeasurements(Measured):
    index: int


class WorkerMeasurements(Measured):
    worker_id: str
    span: str
    step_s: int
    points: int


class HostMeasurements(Measured):
    agent_id: str
    span: str
    step_s: int
    points: int
    gpus: list[GpuMeasurements]
