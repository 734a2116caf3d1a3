"""Allocates GPUs: a GPU is never allocated to two of this agent's workers, and waiting workers are reported.

Owns gpus.json (a restarted agent must not reallocate GPUs that a running process uses). A worker keeps its GPUs from
before its first attempt until it has ended, across its own restarts and those of the agent. Knows neither drivers nor
runners; GPU readings are passed in. Main loop only.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import TYPE_CHECKING, Callable, Mapping, Optional, Protocol
from remote_agent.protocol.messages import Assignment, GpuProcess, GpuUsage
from remote_agent.protocol.reasons import NONE, Reason, because
from remote_agent.protocol.states import BACKOFF
from remote_agent.system import paths
from remote_agent.telemetry.gpus import Reading

if TYPE_CHECKING:  # not loaded by the agent

    class GpuWorker(Protocol):
        """The attributes of a worker that are used and set here; implemented by agent/worker.py."""

        worker_id: str
        gpus: list[int]
        gpu_wait: Reason
        assignment: Optional[Assignment]

        @property
        def idle(self) -> bool: ...

        @property
        def state(self) -> str: ...

        def needs_runner(self) -> bool: ...

    class GpuReadings(Protocol):
        """The GPU reading and the callback for GPU owners; implemented by telemetry/sampler.py."""

        owner_of: Callable[[int], str]

        @property
        def reading(self) -> Optional[Reading]: ...


CUDA_DEVICES = "CUDA_VISIBLE_DEVICES"
# By default CUDA numbers the fastest GPU first; NVML, nvidia-smi and ProcGuard number GPUs by PCI bus.
CUDA_ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}


class GpuAllocator:
    def __init__(self, agent_dir: str, measuring: GpuReadings, base_env: dict[str, str]) -> None:
        self._path = os.path.join(agent_dir, "gpus.json")
        self.held, self._cordoned = _read(self._path)
        self._measuring = measuring
        self._base_env = base_env
        self._waiting: set[str] = set()
        measuring.owner_of = self.owner_of

    def cordon(self, gpus: Optional[list[str]]) -> None:
        """Set the GPUs that the manager has cordoned (UUIDs, or "#" and an index); None: unchanged. An attempt that
        runs on such a GPU keeps it."""
        if gpus is None or set(gpus) == self._cordoned:
            return
        self._cordoned = frozenset(gpus)
        try:
            self._store(self.held)
        except OSError:
            pass  # after a restart, the manager's next reply contains them again

    def adopt(self, workers: Mapping[str, GpuWorker]) -> None:
        """Record the GPUs of running processes, before any spec.json is written."""
        for worker in workers.values():
            self._note(worker)

    @property
    def awaited(self) -> bool:
        """Whether a worker waits for GPUs, which should then be read more often."""
        return bool(self._waiting)

    def settle(self, worker: GpuWorker) -> bool:
        """Adjust this worker's GPUs to its requirement. Returns whether they changed (spec.json must be rewritten).
        Afterwards `worker.gpu_wait` is the reason for which it waits, if any."""
        wanted = worker.assignment.spec.gpus if worker.assignment is not None else 0
        held = self.of(worker.worker_id)
        if wanted <= 0 and not held:
            worker.gpu_wait = NONE
            self._waiting.discard(worker.worker_id)
            return self._note(worker)
        try:
            worker.gpu_wait = self._settle(worker, wanted, len(held))
        except OSError as exc:
            worker.gpu_wait = because("gpu.not_recorded", error=exc.strerror or str(exc))
        if worker.gpu_wait:
            self._waiting.add(worker.worker_id)
        else:
            self._waiting.discard(worker.worker_id)
        return self._note(worker)

    def forget(self, worker_id: str) -> None:
        self._waiting.discard(worker_id)
        try:
            self.release(worker_id)
        except OSError:
            pass  # the GPUs are released soon, because the next change writes the file

    def _settle(self, worker: GpuWorker, wanted: int, held: int) -> Reason:
        starts = worker.needs_runner()
        if worker.idle and not starts:
            self.release(worker.worker_id)
            return NONE
        if worker.assignment is None:
            return NONE
        if held == wanted:
            if worker.state == BACKOFF:
                self._exchange(worker.worker_id, wanted, worker.assignment)
            return NONE
        if not worker.idle and wanted < held:
            return NONE  # the running attempt may use them all: released once it has ended
        waits = self.take(worker.worker_id, wanted, self._measuring.reading, self._allowed(worker.assignment))
        if waits and not worker.idle:
            return waits.then(because("gpu.goes_on", held=held)) if held else because("gpu.next_start", why=waits)
        return waits

    def _allowed(self, assignment: Assignment) -> Optional[list[int]]:
        return allowed_by({**self._base_env, **assignment.spec.env})

    def _exchange(self, worker_id: str, wanted: int, assignment: Assignment) -> None:
        """Between two attempts: give the worker other GPUs for its cordoned ones, if enough are free. Raises OSError.

        An attempt that the runner starts meanwhile still uses the old ones, which are allocated to nobody else."""
        reading, own = self._measuring.reading, self.of(worker_id)
        if reading is None or not self._cordoned:
            return
        bad = {gpu.index for gpu in reading.gpus if gpu.uuid in self._cordoned or f"#{gpu.index}" in self._cordoned}
        if bad.isdisjoint(own):
            return
        held = {**self.held, worker_id: [index for index in own if index not in bad]}
        chosen, _ = choose(worker_id, wanted, reading, held, self._allowed(assignment), self._cordoned)
        if chosen is not None:
            self._store({**self.held, worker_id: chosen})

    def _note(self, worker: GpuWorker) -> bool:
        held = self.of(worker.worker_id)
        changed = worker.gpus != held
        worker.gpus = list(held)
        return changed

    # ---------------------------------------------------------------------------------------------- allocations

    def of(self, worker_id: str) -> list[int]:
        return self.held.get(worker_id, [])

    def take(self, worker_id: str, wanted: int, reading: Optional[Reading], allowed: Optional[list[int]]) -> Reason:
        """Allocate `wanted` GPUs in total, including those it has. Returns NONE, or the reason to wait. Raises
        OSError."""
        chosen, reason = choose(worker_id, wanted, reading, self.held, allowed, self._cordoned)
        if chosen is None:
            return reason
        if chosen != self.of(worker_id):
            self._store({**self.held, worker_id: chosen})
        return NONE

    def release(self, worker_id: str) -> bool:
        """Release the worker's GPUs. Returns whether it had any. Raises OSError."""
        if worker_id not in self.held:
            return False
        self._store({key: value for key, value in self.held.items() if key != worker_id})
        return True

    def owner_of(self, index: int) -> str:
        return next((worker_id for worker_id, indexes in self.held.items() if index in indexes), "")

    def _store(self, held: dict[str, list[int]]) -> None:
        """Write the allocation to disk before it takes effect."""
        content = {"v": 1, "held": held, "cordoned": sorted(self._cordoned)}
        paths.write_json(self._path, content, durable=True)
        self.held = held


def choose(
    worker_id: str,
    wanted: int,
    reading: Optional[Reading],
    held: dict[str, list[int]],
    allowed: Optional[list[int]],
    cordoned: frozenset[str] = frozenset(),
) -> tuple[Optional[list[int]], Reason]:
    """Choose GPUs. Returns (GPUs, NONE) or (None, the reason to wait). Pure. `allowed` None: any GPU. `reading` None:
    no reading yet."""
    own = held.get(worker_id, [])
    if len(own) >= wanted:
        return own[:wanted], NONE
    if reading is None:
        return None, _waits(wanted, because("gpu.reading"))
    if not reading.present:
        return None, _waits(wanted, because("gpu.no_driver"))
    if not reading.gpus:
        none = because("gpu.unreadable", error=reading.trouble) if reading.trouble else because("gpu.none_named")
        return None, _waits(wanted, none)
    usable = [gpu for gpu in reading.gpus if allowed is None or gpu.index in allowed]
    if len(usable) < wanted:
        code = "gpu.too_few" if allowed is None else "gpu.too_few_allowed"
        return None, _waits(wanted, because(code, has=len(usable)))
    free: list[int] = []
    busy: list[Reason] = []
    for gpu in usable:
        why = NONE if gpu.index in own else _occupied(gpu, worker_id, held, cordoned)
        if why:
            busy.append(why)
        elif gpu.index not in own:
            free.append(gpu.index)
    if len(own) + len(free) < wanted:
        return None, _waits(wanted, *busy)
    return sorted(own + free[: wanted - len(own)]), NONE


def _waits(wanted: int, *why: Reason) -> Reason:
    return because("gpu.waits", n=wanted, why=list(why[:8]))


def _occupied(gpu: GpuUsage, worker_id: str, held: dict[str, list[int]], cordoned: frozenset[str]) -> Reason:
    """The owner of this GPU, as a reason; NONE if it is free."""
    if gpu.uuid in cordoned or f"#{gpu.index}" in cordoned:
        return because("gpu.cordoned", index=gpu.index)
    for other, indexes in held.items():
        if other != worker_id and gpu.index in indexes:
            return because("gpu.handed", index=gpu.index, worker=other)
    if gpu.trouble:
        return because("gpu.trouble", index=gpu.index, error=gpu.trouble)
    users = [_named(process) for process in gpu.processes if process.worker_id != worker_id and _still_there(process)]
    if not users:
        return NONE
    if len(users) > 2:
        return because("gpu.used_more", index=gpu.index, users=users[:2], more=len(users) - 2)
    return because("gpu.used", index=gpu.index, users=users)


def _named(process: GpuProcess) -> str:
    if process.worker_id:
        return f"{process.worker_id} (pid {process.pid}, {process.name})"
    known = ", ".join(text for text in (process.user, process.name) if text)
    return f"pid {process.pid} ({known or 'not of this container'})"


def _still_there(process: GpuProcess) -> bool:
    """Whether a process still exists. A process that has ended since the reading occupies nothing."""
    return not process.name or os.path.exists(f"/proc/{process.pid}")


def allowed_by(environment: dict[str, str]) -> Optional[list[int]]:
    """The GPUs permitted by an environment's own CUDA_VISIBLE_DEVICES; None: any."""
    text = environment.get(CUDA_DEVICES)
    if text is None:
        return None
    words = [word.strip() for word in text.split(",") if word.strip()]
    return [int(word) for word in words] if all(word.isdigit() for word in words) else None


def environment(indexes: list[int]) -> dict[str, str]:
    """The environment variables for the job's GPUs."""
    return {**CUDA_ORDER, CUDA_DEVICES: ",".join(str(index) for index in indexes)} if indexes else {}


def _read(path: str) -> tuple[dict[str, list[int]], frozenset[str]]:
    """(worker -> its GPUs, cordoned GPUs) from the file."""
    try:
        value = paths.read_json(path)
    except (OSError, ValueError):
        return {}, frozenset()
    held = value.get("held") if isinstance(value, dict) else None
    if not isinstance(value, dict) or not isinstance(held, dict):
        return {}, frozenset()
    cordoned = value.get("cordoned")
    return {
        str(key): [one for one in indexes if isinstance(one, int)]
        for key, indexes in held.items()
        if isinstance(indexes, list)
    }, frozenset(map(str, cordoned) if isinstance(cordoned, list) else ())
