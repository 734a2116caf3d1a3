"""What the agent measures and when, with simulated readings."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol.messages import GpuProcess, GpuUsage, HostUsage, WorkerUsage
from remote_agent.system import paths
from remote_agent.telemetry import sampler as module
from remote_agent.telemetry.gpus import Reading
from remote_agent.telemetry.procfs import Proc, Sample
from remote_agent.telemetry.sampler import Measuring, log_mark

STOPPED = Proc(42, 41, "python", "T", 5, 1, 1000, 10)


class AccessRig:
    """Measuring over one running worker; what it submits is kept instead of run."""

    def __init__(self, tmp_path: Path) -> None:
        self.submitted: list[tuple[Any, Callable[[], Any]]] = []
        self.directory = str(tmp_path / "worker")
        os.makedirs(paths.attempts_dir(self.directory))
        self.worker = WorkerHandle("w1", self.directory, str(tmp_path / "runtime"))
        self.worker.status = {"state": "running", "attempt": 1, "runner_pid": 41}
        self.workers = {"w1": self.worker}
        self.tmp_path = tmp_path
        self.measuring = self.new()

    def new(self) -> Measuring:
        return Measuring(str(self.tmp_path), "/no/such/python", self._submit)

    def _submit(self, tag: Any, job: Callable[[], Any]) -> bool:
        self.submitted.append((tag, job))
        return True

    def sampled(self, now: float, *, size: int = 0, tree: tuple[Proc, ...] = ()) -> None:
        sample = Sample(HostUsage(load1=1.0), {"w1": WorkerUsage(cpu_percent=3.0)}, {"w1": list(tree)}, now)
        assert self.measuring.take("usage", (sample, {"w1": (1, size, 0)}, set()), self.workers, now)


@pytest.fixture
def rig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AccessRig:
    monkeypatch.setattr(module, "driver_shows", lambda: False)
    return AccessRig(tmp_path)


def test_usage_is_taken_every_five_seconds_and_never_twice_at_once(rig: AccessRig) -> None:
    for now in (100.0, 101.0, 105.5):
        rig.measuring.tick(rig.workers, now, 2.0, False)
    assert [tag for tag, _ in rig.submitted] == ["usage"]
    rig.sampled(106.0)
    rig.measuring.tick(rig.workers, 106.0, 2.0, False)
    assert len(rig.submitted) == 2
    assert rig.measuring.reading is not None and not rig.measuring.reading.present


def test_a_measurement_that_failed_is_made_again(rig: AccessRig) -> None:
    rig.measuring.tick(rig.workers, 100.0, 2.0, False)
    assert rig.measuring.take("usage", OSError("no /proc"), rig.workers, 100.1)
    rig.measuring.tick(rig.workers, 105.0, 2.0, False)
    assert len(rig.submitted) == 2
    assert not rig.measuring.take("drained", "w1", rig.workers, 105.0)


def test_what_is_suspect_is_in_the_worker_s_report_and_leaves_it_again(rig: AccessRig) -> None:
    for now in (100.0, 105.0, 110.0):
        rig.sampled(now, tree=(STOPPED,))
    assert "stopped by a signal for 10 s" in rig.worker.report().suspect
    rig.sampled(115.0, tree=(STOPPED._replace(state="S"),))
    assert rig.worker.report().suspect == ""


def test_the_rhythm_of_a_job_is_remembered_for_the_next_agent(rig: AccessRig) -> None:
    for step in range(30):
        rig.sampled(100.0 + 5 * step, size=step // 4)
    assert rig.measuring.silence_limit_s(rig.worker) is None  # seven outputs say too little
    for step in range(30, 60):
        rig.sampled(100.0 + 5 * step, size=step // 4)
    assert rig.measuring.silence_limit_s(rig.worker) == 60.0
    rig.sampled(500.0, size=15)
    assert rig.new().silence_limit_s(rig.worker) == rig.measuring.silence_limit_s(rig.worker)


def test_a_new_agent_s_first_scan_is_no_pause(rig: AccessRig) -> None:
    """Earlier output is unknown to it."""
    for step in range(12):
        rig.sampled(100.0 + 5 * step, size=step)
    rig.measuring = rig.new()
    rig.sampled(10_000.0, size=99)
    rig.sampled(10_030.0, size=99)
    assert rig.worker.suspect == ""


def test_gpus_are_the_host_s_and_the_worker_s(rig: AccessRig) -> None:
    rig.sampled(100.0)
    used = GpuUsage(1, utilization_percent=80.0, processes=[GpuProcess(42, 7, "python", "alice", "w1")])
    reading = Reading(True, [GpuUsage(0), used], {}, "", "nvml", 100.0)
    rig.measuring.owner_of = lambda index: "w1" if index == 0 else ""
    rig.worker.gpus = [0]
    assert rig.measuring.take("gpus", reading, rig.workers, 100.0)
    host = rig.measuring.host_usage(rig.workers)
    assert host is not None and [gpu.worker_id for gpu in host.gpus] == ["w1", ""]
    usage = rig.worker.usage
    assert usage is not None and (usage.gpus, usage.gpu_percent, usage.gpu_memory_bytes) == ([0, 1], 80.0, 7)
    assert [gpu.index for gpu in rig.measuring.gpus_of("w1")] == [0, 1]


def test_the_mark_of_a_log_changes_with_output_alone(tmp_path: Path) -> None:
    """Punching a hole touches the file's time, not its length."""
    os.makedirs(paths.attempts_dir(str(tmp_path)))
    path = Path(paths.log_file(str(tmp_path), 3))
    path.write_text("one")
    before = log_mark(str(tmp_path), 3)
    os.utime(path, (1, 1))
    assert log_mark(str(tmp_path), 3) == before
    path.write_text("one two")
    assert log_mark(str(tmp_path), 3) != before
    assert log_mark(str(tmp_path), 4) == (4, 0, 0)


def test_what_was_seen_of_a_tree_is_kept_for_the_runner_after_this_one(
    rig: AccessRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once its runner is dead a daemon is not a descendant of any known process: an empty tree resets nothing."""
    zombie = Proc(44, 41, "python", "Z", 0, 1, 1002, 0)
    rig.sampled(100.0, tree=(STOPPED, Proc(43, 42, "daemon", "S", 5, 1, 1001, 10), zombie))
    rig.sampled(105.0)
    started: list[list[str]] = []
    monkeypatch.setattr("subprocess.Popen", lambda argv, **_: started.append(argv))
    rig.worker._start(106.0, "python3", "/release")
    assert started[0][started[0].index("--seen") + 1] == "42:1000,43:1001"
