"""Decides, worker by worker, when GPUs are handed out and when they are given back.

Joins the allotment (who has what) with the slots (what each worker needs now). A worker keeps its GPUs from before its
first attempt until it is settled: through its restarts, and through restarts of the agent. Main loop only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Mapping, Optional, Protocol

from remote_agent.protocol.messages import Assignment
from remote_agent.telemetry.gpu_allocator import Allotment, allowed_by
from remote_agent.telemetry.sampler import Measuring

if TYPE_CHECKING:  # no agent need hold it in memory

    class GpuWorker(Protocol):
        """What is read here of a worker, and noted on it: agent/worker.py has them."""

        worker_id: str
        gpus: list[int]
        gpu_wait: str
        assignment: Optional[Assignment]

        @property
        def idle(self) -> bool: ...

        def needs_runner(self) -> bool: ...


class GpuDesk:
    def __init__(self, allotment: Allotment, measuring: Measuring, base_env: dict[str, str]) -> None:
        self._allotment = allotment
        self._measuring = measuring
        self._base_env = base_env
        self._waiting: set[str] = set()
        measuring.owner_of = allotment.owner_of

    def adopt(self, slots: Mapping[str, GpuWorker]) -> None:
        """What living children have is known before any spec.json is written."""
        for slot in slots.values():
            self._tell(slot)

    @property
    def awaited(self) -> bool:
        """Some worker waits: the GPUs should be read often."""
        return bool(self._waiting)

    def settle(self, slot: GpuWorker) -> bool:
        """Bring this worker's GPUs in line with what it needs. Returns whether they changed (spec.json must be
        written anew). Afterwards `slot.gpu_wait` says for what it waits."""
        wanted = slot.assignment.spec.gpus if slot.assignment is not None else 0
        held = self._allotment.of(slot.worker_id)
        if wanted <= 0 and not held:
            slot.gpu_wait = ""
            self._waiting.discard(slot.worker_id)
            return self._tell(slot)
        try:
            slot.gpu_wait = self._settle(slot, wanted, len(held))
        except OSError as exc:
            slot.gpu_wait = f"its GPUs cannot be recorded: {exc.strerror or exc}"
        if slot.gpu_wait:
            self._waiting.add(slot.worker_id)
        else:
            self._waiting.discard(slot.worker_id)
        return self._tell(slot)

    def forget(self, worker_id: str) -> None:
        self._waiting.discard(worker_id)
        try:
            self._allotment.release(worker_id)
        except OSError:
            pass  # nobody else is kept from them for long: the next change writes it

    def _settle(self, slot: GpuWorker, wanted: int, held: int) -> str:
        starts = slot.needs_runner()
        if slot.idle and not starts:
            self._allotment.release(slot.worker_id)
            return ""
        if held == wanted or slot.assignment is None:
            return ""
        if not slot.idle and wanted < held:
            return ""  # the running attempt may use them all: given back when it is settled
        environment = {**self._base_env, **slot.assignment.spec.env}
        waits = self._allotment.take(slot.worker_id, wanted, self._measuring.reading, allowed_by(environment))
        if waits and not slot.idle:
            return f"{waits}; it goes on with the {held} it has" if held else f"its next start {waits}"
        return waits

    def _tell(self, slot: GpuWorker) -> bool:
        held = self._allotment.of(slot.worker_id)
        changed = slot.gpus != held
        slot.gpus = list(held)
        return changed
