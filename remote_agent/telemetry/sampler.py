"""Schedules the agent's measurements: usage of host and workers, GPUs, and signs of a hang.

Owns the meters and their intervals. Readings are made in helper threads and returned through `take`. Main loop only.
Knows no manager.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import TYPE_CHECKING, Any, Callable, Mapping, Optional, Protocol
from remote_agent.protocol.messages import GpuUsage, HostUsage, WorkerUsage
from remote_agent.protocol.reasons import NONE, Reason
from remote_agent.protocol.states import RUNNING
from remote_agent.system import paths
from remote_agent.telemetry.gpus import NO_GPUS, GpuReader, Reading, attribute, driver_shows, fill_usage
from remote_agent.telemetry.hang import Rhythm, Suspicion
from remote_agent.telemetry.host import choose_meter
from remote_agent.telemetry.listening import Listening
from remote_agent.telemetry.procfs import Proc, Sample

USAGE_EVERY_S = 5.0
GPUS_EVERY_S = 5.0
GPUS_AWAITED_EVERY_S = 1.0  # while a worker waits for one
DRIVER_POLL_INTERVAL_S = 60.0
REMEMBER_EVERY_S = 60.0

Submit = Callable[[Any, Callable[[], Any]], bool]


if TYPE_CHECKING:  # not loaded by the agent

    class MeasuredWorker(Protocol):
        """The attributes of a worker that are used and set here; implemented by agent/worker.py."""

        worker_id: str
        directory: str
        status: dict[str, Any]
        gpus: list[int]
        usage: Optional[WorkerUsage]
        tree: list[tuple[int, int]]
        suspect: Reason
        idle_because: str

        @property
        def state(self) -> str: ...

        @property
        def attempt(self) -> int: ...

        @property
        def link(self) -> object: ...


class Measuring:
    def __init__(self, agent_dir: str, python: str, submit: Submit) -> None:
        self._meter = choose_meter(agent_dir)
        self._listening = Listening()
        self._submit = submit
        self._reader: Optional[GpuReader] = None
        self._python = python
        self._busy: set[str] = set()
        self._next_usage = self._next_gpus = self._next_driver = self._next_remember = 0.0  # monotonic
        self._trees: dict[str, list[Proc]] = {}
        self._suspicions: dict[str, Suspicion] = {}
        self._remembered: dict[str, dict[str, Any]] = {}
        self._host: Optional[HostUsage] = None
        self.reading: Optional[Reading] = None  # the newest reading of the GPUs
        self.owner_of: Callable[[int], str] = lambda index: ""  # GPU -> the worker that it is allocated to

    @property
    def available(self) -> bool:
        return bool(self._meter.available)

    def next_at(self) -> float:
        """The latest time of the next call of `tick`."""
        times = [self._next_driver]
        if "usage" not in self._busy and self.available:
            times.append(self._next_usage)
        if "gpus" not in self._busy and self._reader is not None:
            times.append(self._next_gpus)
        return min(times)

    def end(self) -> None:
        if self._reader is not None:
            self._reader.end()

    # ------------------------------------------------------------------------------------------------- schedule

    def tick(self, workers: Mapping[str, MeasuredWorker], now: float, interval_s: float, gpus_awaited: bool) -> None:
        if now >= self._next_driver:
            self._next_driver = now + DRIVER_POLL_INTERVAL_S
            if self._reader is None and driver_shows():
                self._reader = GpuReader(self._python)
            elif self._reader is None:
                self.reading = NO_GPUS
        if gpus_awaited:
            self._next_gpus = min(self._next_gpus, now + GPUS_AWAITED_EVERY_S)
        runners = {
            worker.worker_id: int(worker.status.get("runner_pid") or 0) for worker in workers.values() if worker.link
        }
        if self.available and now >= self._next_usage and "usage" not in self._busy:
            attempts = {worker_id: (workers[worker_id].directory, workers[worker_id].attempt) for worker_id in runners}
            if self._submit("usage", lambda: self._measure(runners, attempts, now)):
                self._busy.add("usage")
            self._next_usage = now + max(USAGE_EVERY_S, interval_s)
        if self._reader is not None and now >= self._next_gpus and "gpus" not in self._busy:
            reader, trees = self._reader, self._trees
            held = {worker_id: list(worker.gpus) for worker_id, worker in workers.items()}
            if self._submit("gpus", lambda: _read_gpus(reader, now, runners, trees, held)):
                self._busy.add("gpus")
            self._next_gpus = now + max(GPUS_EVERY_S, interval_s)

    def _measure(
        self, runners: dict[str, int], attempts: dict[str, tuple[str, int]], now: float
    ) -> tuple[Sample, dict[str, Any], set[str]]:
        """Measure; called on a helper thread."""
        directories = {worker_id: directory for worker_id, (directory, _) in attempts.items()}
        sample = self._meter.sample(runners, directories=directories)
        return sample, log_marks(attempts), self._listening.probe(sample, now)

    # ------------------------------------------------------------------------------------------------ results

    def take(self, tag: Any, value: Any, workers: Mapping[str, MeasuredWorker], now: float) -> bool:
        """Process a helper's result. False if it does not belong to this module."""
        if tag not in ("usage", "gpus"):
            return False
        self._busy.discard(tag)
        if isinstance(value, Exception):
            return True
        if tag == "gpus":
            self.reading = value
        else:
            sample, marks, waiting = value
            self._take_sample(sample, marks, waiting, workers, now)
        return True

    def _take_sample(
        self,
        sample: Sample,
        marks: dict[str, Any],
        waiting: set[str],
        workers: Mapping[str, MeasuredWorker],
        now: float,
    ) -> None:
        self._host, self._trees = sample.host, sample.trees
        for worker_id, worker in workers.items():
            worker.usage = sample.workers.get(worker_id)
            if sample.trees.get(worker_id):  # if empty, its runner may just have died: keep the known tree
                worker.tree = [(one.pid, one.start) for one in sample.trees[worker_id] if one.state not in "ZX"]
            suspicion = self._suspicion(worker)
            worker.suspect = self._suspicion_of(worker, sample, marks.get(worker_id), worker_id in waiting, now)
            worker.idle_because = suspicion.idle_because
        for gone in [worker_id for worker_id in self._suspicions if worker_id not in workers]:
            del self._suspicions[gone]
        if now >= self._next_remember:
            self._next_remember = now + REMEMBER_EVERY_S
            self._remember(workers)

    def _suspicion_of(self, worker: MeasuredWorker, sample: Sample, mark: Any, waiting: bool, now: float) -> Reason:
        suspicion = self._suspicion(worker)
        if worker.state != RUNNING or worker.worker_id not in sample.trees or mark is None or mark[0] != worker.attempt:
            if worker.state != RUNNING:
                suspicion.stopped()
            return NONE
        gpus = self.gpus_of(worker.worker_id)
        return suspicion.observe(worker.attempt, sample.trees[worker.worker_id], mark, gpus, now, waiting)

    def _suspicion(self, worker: MeasuredWorker) -> Suspicion:
        found = self._suspicions.get(worker.worker_id)
        if found is None:
            try:
                stored = paths.read_json(_rhythm_file(worker.directory))
            except (OSError, ValueError):
                stored = None
            found = self._suspicions[worker.worker_id] = Suspicion(Rhythm(stored))
        return found

    def silence_limit_s(self, worker: MeasuredWorker) -> Optional[float]:
        """The longest pause in its output that is normal for this worker, in seconds; None: unknown."""
        return self._suspicion(worker).rhythm.limit_s

    def _remember(self, workers: Mapping[str, MeasuredWorker]) -> None:
        """Store the known rhythm of each job for the next start of the agent."""
        for worker_id, suspicion in self._suspicions.items():
            stored = suspicion.rhythm.stored()
            if worker_id in workers and stored["writes"] and self._remembered.get(worker_id) != stored:
                try:
                    paths.write_json(_rhythm_file(workers[worker_id].directory), stored)
                    self._remembered[worker_id] = stored
                except OSError:
                    return  # retried in a minute

    # --------------------------------------------------------------------------------------------------- reports

    def host_usage(self, workers: Mapping[str, MeasuredWorker]) -> Optional[HostUsage]:
        """The usage for the heartbeat; also fills in the workers' GPU usage."""
        reading = self.reading
        if reading is None or not reading.present:
            return self._host
        for gpu in reading.gpus:
            gpu.worker_id = self.owner_of(gpu.index)
        for worker in workers.values():
            if worker.usage is not None:
                fill_usage(worker.usage, worker.worker_id, reading.gpus, worker.gpus)
        if self._host is not None:
            self._host.gpus, self._host.gpu_trouble = reading.gpus, reading.trouble
            self._host.gpu_faults, self._host.kernel_log_trouble = list(reading.faults), reading.kernel_log
        return self._host

    def gpus_of(self, worker_id: str) -> list[GpuUsage]:
        """The GPUs that the worker uses, and those allocated to it."""
        gpus = self.reading.gpus if self.reading is not None else []
        return [
            gpu
            for gpu in gpus
            if self.owner_of(gpu.index) == worker_id or any(one.worker_id == worker_id for one in gpu.processes)
        ]


def _read_gpus(
    reader: GpuReader, now: float, runners: dict[str, int], trees: dict[str, list[Proc]], held: dict[str, list[int]]
) -> Reading:
    reading = reader.read(now)
    attribute(reading, runners, trees, held)
    return reading


def log_marks(attempts: dict[str, tuple[str, int]]) -> dict[str, Any]:
    return {worker_id: log_mark(directory, attempt) for worker_id, (directory, attempt) in attempts.items()}


def log_mark(directory: str, attempt: int) -> tuple[int, int, int]:
    """(attempt, bytes of stdout, bytes of stderr), which changes with every output, because logs are append-only."""
    sizes = []
    for stream in ("out", "err"):
        try:
            sizes.append(os.stat(paths.log_file(directory, attempt, stream)).st_size)
        except OSError:
            sizes.append(0)
    return attempt, sizes[0], sizes[1]


def _rhythm_file(directory: str) -> str:
    return os.path.join(directory, "rhythm.json")
