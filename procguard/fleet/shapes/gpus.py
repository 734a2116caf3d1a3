"""Views of every GPU of the fleet: its user and its utilisation state. Pure."""

from __future__ import annotations

from typing import Literal

from typing_extensions import TypedDict

from remote_agent.protocol.messages import GpuUsage

State = Literal["free", "busy", "idle", "hung", "other", "nobody", "lost"]
BUSY_PERCENT = 5.0  # below this utilisation a GPU counts as idle
OWN_BYTES = 1 << 30  # memory that the driver and a desktop use themselves


class GpuView(TypedDict):
    """`state`: `free`; allocated to a worker and `busy`, `idle`, or `hung` (its worker looks hung); used by `other`
    processes; `nobody`: memory is in use, and no process is known that uses it; `lost`: it cannot be read."""

    agent: str
    host: str
    index: int
    name: str
    state: State
    workers: list[str]
    others: list[str]
    utilization_percent: float | None
    memory_used_bytes: int | None
    memory_total_bytes: int | None
    temperature_c: float | None
    power_w: float | None
    trouble: str


def view(gpu: GpuUsage, agent: str, host: str, *, away: bool, hung: frozenset[str]) -> GpuView:
    """`away`: its host is unreachable; `hung`: ids of the workers that look hung."""
    workers = {process.worker_id for process in gpu.processes if process.worker_id} | ({gpu.worker_id} - {""})
    others = [f"{one.pid} {one.user} {one.name}".strip() for one in gpu.processes if not one.worker_id]
    return {
        "agent": agent,
        "host": host,
        "index": gpu.index,
        "name": gpu.name,
        "state": "lost" if away or gpu.trouble else _state(gpu, workers, bool(others), hung),
        "workers": sorted(workers),
        "others": others,
        "utilization_percent": gpu.utilization_percent,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "temperature_c": gpu.temperature_c,
        "power_w": gpu.power_w,
        "trouble": gpu.trouble,
    }


def _state(gpu: GpuUsage, workers: set[str], others: bool, hung: frozenset[str]) -> State:
    if workers & hung:
        return "hung"
    if workers:
        return "busy" if (gpu.utilization_percent or 0.0) >= BUSY_PERCENT else "idle"
    if others:
        return "other"
    busy = (gpu.utilization_percent or 0.0) >= BUSY_PERCENT or (gpu.memory_used_bytes or 0) > OWN_BYTES
    return "nobody" if busy else "free"
