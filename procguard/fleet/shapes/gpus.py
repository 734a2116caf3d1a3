"""Views of every GPU of the fleet: its user and its utilisation state. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from typing_extensions import TypedDict

from procguard.fleet.model.clock import iso
from procguard.fleet.model.records import AgentRecord
from procguard.fleet.telemetry.gpu_faults import gpu_key, is_fatal, meaning
from procguard.i18n.reasons import Reason
from procguard.json_types import ReasonParams
from remote_agent.protocol.messages import GpuFault, GpuUsage

State = Literal["free", "failed", "busy", "idle", "hung", "other", "nobody", "lost"]
BUSY_PERCENT = 5.0  # below this utilisation a GPU counts as idle
OWN_BYTES = 1 << 30  # memory that the driver and a desktop use themselves


MAX_SHOWN = 8  # faults of one GPU


class GpuFaultView(TypedDict):
    """A fault of a GPU that its host has reported since its boot. `fatal`: the GPU needs a reset or a replacement."""

    kind: str
    code: int
    fatal: bool
    at: str | None
    count: int
    reason: str
    reason_code: str
    reason_params: ReasonParams


class GpuCordonView(TypedDict):
    reason: str
    reason_code: str
    reason_params: ReasonParams
    actor: str
    at: str | None


class GpuView(TypedDict):
    """`state`: `free`; `failed`: cordoned, or with a fault that needs a reset or a replacement; allocated to a worker
    and `busy`, `idle`, or `hung` (its worker looks hung); used by `other` processes; `nobody`: memory is in use, and no
    process is known that uses it; `lost`: it cannot be read."""

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
    throttled: list[str]
    faults: list[GpuFaultView]
    cordoned: GpuCordonView | None


def view(
    gpu: GpuUsage,
    agent: AgentRecord,
    faults: Sequence[GpuFault] = (),
    *,
    away: bool = False,
    hung: frozenset[str] = frozenset(),
) -> GpuView:
    """`faults`: those of its host. `away`: its host is unreachable. `hung`: the workers that look hung."""
    own = [one for one in faults if gpu_key(one.uuid, one.gpu) == gpu_key(gpu.uuid, gpu.index)]
    cordon = agent.gpu_cordons.get(gpu.uuid) or agent.gpu_cordons.get(f"#{gpu.index}")
    failed = cordon is not None or any(is_fatal(one) for one in own)
    workers = {process.worker_id for process in gpu.processes if process.worker_id} | ({gpu.worker_id} - {""})
    others = [f"{one.pid} {one.user} {one.name}".strip() for one in gpu.processes if not one.worker_id]
    return {
        "agent": agent.agent_id,
        "host": agent.host,
        "index": gpu.index,
        "name": gpu.name,
        "state": "lost"
        if away
        else "failed"
        if failed
        else "lost"
        if gpu.trouble
        else _state(gpu, workers, bool(others), hung),
        "workers": sorted(workers),
        "others": others,
        "utilization_percent": gpu.utilization_percent,
        "memory_used_bytes": gpu.memory_used_bytes,
        "memory_total_bytes": gpu.memory_total_bytes,
        "temperature_c": gpu.temperature_c,
        "power_w": gpu.power_w,
        "trouble": gpu.trouble,
        "throttled": gpu.throttled,
        "faults": [_fault_view(one) for one in own[:MAX_SHOWN]],
        "cordoned": None
        if cordon is None
        else GpuCordonView(
            reason=str(cordon.reason),
            reason_code=cordon.reason.code,
            reason_params=dict(cordon.reason.params),
            actor=cordon.actor,
            at=cordon.at,
        ),
    }


def cordoned_of(indexes: Sequence[int], gpus: Sequence[GpuUsage], agent: AgentRecord) -> tuple[tuple[int, Reason], ...]:
    """(index, reason) of the cordoned ones among a worker's GPUs. `gpus`: of its host's last heartbeat."""
    uuids = {gpu.index: gpu.uuid for gpu in gpus}
    keys = (
        (index, agent.gpu_cordons.get(uuids.get(index, "")) or agent.gpu_cordons.get(f"#{index}")) for index in indexes
    )
    return tuple((index, cordon.reason) for index, cordon in keys if cordon is not None)


def _fault_view(fault: GpuFault) -> GpuFaultView:
    reason = meaning(fault)
    return {
        "kind": fault.kind,
        "code": fault.code,
        "fatal": is_fatal(fault),
        "at": iso(fault.at) if fault.at else None,
        "count": fault.count,
        "reason": str(reason),
        "reason_code": reason.code,
        "reason_params": dict(reason.params),
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
