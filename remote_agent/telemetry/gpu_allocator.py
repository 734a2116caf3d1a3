"""Who has which GPU: hands them out, never one to two of this agent's workers, and says for whom it waits.

Owns gpus.json (a restarted agent must not hand out again what a living child uses). Knows neither drivers nor runners:
it is given what was read of the GPUs. Main loop only.
"""

from __future__ import annotations

import os
from typing import Optional

from remote_agent.protocol.messages import GpuProcess, GpuUsage
from remote_agent.system import paths
from remote_agent.telemetry.gpus import Reading

CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"
# CUDA numbers the fastest first by default; NVML and nvidia-smi count along the bus, and so do we.
CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class Allotment:
    def __init__(self, agent_dir: str) -> None:
        self._path = os.path.join(agent_dir, "gpus.json")
        self.held: dict[str, list[int]] = _read(self._path)

    def of(self, worker_id: str) -> list[int]:
        return self.held.get(worker_id, [])

    def take(self, worker_id: str, wanted: int, reading: Optional[Reading], allowed: Optional[list[int]]) -> str:
        """Make it `wanted` GPUs in all, those it has first. Returns "" or for what it waits. Raises OSError."""
        chosen, reason = choose(worker_id, wanted, reading, self.held, allowed)
        if chosen is None:
            return reason
        if chosen != self.of(worker_id):
            self._store({**self.held, worker_id: chosen})
        return ""

    def release(self, worker_id: str) -> bool:
        """Returns whether it had any. Raises OSError."""
        if worker_id not in self.held:
            return False
        self._store({key: value for key, value in self.held.items() if key != worker_id})
        return True

    def owner_of(self, index: int) -> str:
        return next((worker_id for worker_id, indexes in self.held.items() if index in indexes), "")

    def _store(self, held: dict[str, list[int]]) -> None:
        """On disk before anybody acts on it."""
        paths.write_json(self._path, {"v": 1, "held": held}, durable=True)
        self.held = held


def choose(
    worker_id: str, wanted: int, reading: Optional[Reading], held: dict[str, list[int]], allowed: Optional[list[int]]
) -> tuple[Optional[list[int]], str]:
    """(the GPUs, "") or (None, why it has to wait). Pure. `allowed` None: any. `reading` None: none made yet."""
    own = held.get(worker_id, [])
    if len(own) >= wanted:
        return own[:wanted], ""
    need = f"waits for {wanted} GPU{'s' if wanted > 1 else ''}"
    if reading is None:
        return None, f"{need}: reading the host's GPUs"
    if not reading.present:
        return None, f"{need}: no NVIDIA driver on this host"
    if not reading.gpus:
        return None, f"{need}: the GPUs cannot be read: {reading.trouble or 'the driver names none'}"
    usable = [gpu for gpu in reading.gpus if allowed is None or gpu.index in allowed]
    if len(usable) < wanted:
        limit = "" if allowed is None else f" that {CUDA_DEVICES} allows"
        return None, f"{need}: this host has {len(usable)}{limit}"
    free, busy = [], []
    for gpu in usable:
        why = "" if gpu.index in own else _occupied(gpu, worker_id, held)
        if why:
            busy.append(why)
        elif gpu.index not in own:
            free.append(gpu.index)
    if len(own) + len(free) < wanted:
        return None, f"{need}: {'; '.join(busy)}"
    return sorted(own + free[: wanted - len(own)]), ""


def _occupied(gpu: GpuUsage, worker_id: str, held: dict[str, list[int]]) -> str:
    """Who has this GPU, in words; "" = free."""
    for other, indexes in held.items():
        if other != worker_id and gpu.index in indexes:
            return f"GPU {gpu.index} is handed to {other}"
    if gpu.trouble:
        return f"GPU {gpu.index} cannot be used: {gpu.trouble}"
    users = [_named(process) for process in gpu.processes if process.worker_id != worker_id and _still_there(process)]
    if not users:
        return ""
    more = f" and {len(users) - 2} more" if len(users) > 2 else ""
    return f"GPU {gpu.index} is used by {', '.join(users[:2])}{more}"


def _named(process: GpuProcess) -> str:
    if process.worker_id:
        return f"{process.worker_id} (pid {process.pid}, {process.name})"
    known = ", ".join(text for text in (process.user, process.name) if text)
    return f"pid {process.pid} ({known or 'not of this container'})"


def _still_there(process: GpuProcess) -> bool:
    """A process that could be seen when the GPU was read, and has ended since, holds nothing."""
    return not process.name or os.path.exists(f"/proc/{process.pid}")


def allowed_by(environment: dict[str, str]) -> Optional[list[int]]:
    """The GPUs that an environment's own CUDA_VISIBLE_DEVICES leaves to choose from; None: any."""
    text = environment.get(CUDA_DEVICES)
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [int(word) for word in words] if all(word.isdigit() for word in words) else None


def environment(indexes: list[int]) -> dict[str, str]:
    """What the job is told of its GPUs."""
    return {**CUDA_ORDER, CUDA_DEVICES: ",".join(str(index) for index in indexes)} if indexes else {}


def _read(path: str) -> dict[str, list[int]]:
    try:
        value = paths.read_json(path)
    except (OSError, ValueError):
        return {}
    held = value.get("held") if isinstance(value, dict) else None
    if not isinstance(held, dict):
        return {}
    return {
        str(key): [one for one in indexes if isinstance(one, int)]
        for key, indexes in held.items()
        if isinstance(indexes, list)
    }
