"""GPUs: read through NVML or nvidia-smi without the risk of a hang, and the processes that use them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.protocol.messages import GpuProcess, GpuUsage, WorkerUsage
from remote_agent.telemetry import gpus, procfs
from tests.fake_gpus import GIB, FakeGpus, gpu
from tests.waiting import Stopwatch, wait_until


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """A fake driver's file; `with_library` or `with_smi` make it visible."""
    one = FakeGpus(tmp_path / "driver")
    for name, value in one.environment().items():
        monkeypatch.setenv(name, value)
    return one


@pytest.fixture
def library(fake: FakeGpus) -> FakeGpus:
    try:
        fake.with_library()
    except FileNotFoundError:
        pytest.skip("needs a C compiler")
    return fake.with_smi(broken="nvidia-smi must not be asked")


@pytest.fixture
def reader() -> Iterator[gpus.GpuReader]:
    one = gpus.GpuReader(sys.executable, read_timeout_s=10.0)
    yield one
    one.end()


def test_nvml_reports_every_gpu(library: FakeGpus, reader: gpus.GpuReader) -> None:
    library.say(gpu(97, 8 * GIB, 80 * GIB, 412.5, 700, 4242, 4243), gpu())
    reading = reader.read(0.0)
    assert (reading.present, reading.source, reading.trouble) == (True, "nvml", "")
    first, second = reading.gpus
    assert first == GpuUsage(
        0, "GPU-fake-0", "Fake GPU", 97.0, 8 * GIB, 80 * GIB, 412.5, 700.0, 40.0,
        [GpuProcess(4242, GIB), GpuProcess(4243, GIB)],
    )  # fmt: skip
    assert second.index == 1 and second.utilization_percent == 0.0 and second.processes == []
    library.say(gpu(3))
    assert [one.utilization_percent for one in reader.read(5.0).gpus] == [3.0]  # the same helper, asked again


def test_a_lost_gpu_is_named_and_the_others_are_read(library: FakeGpus, reader: gpus.GpuReader) -> None:
    library.say("lost", gpu(5))
    first, second = reader.read(0.0).gpus
    assert (first.index, first.trouble) == (0, "GPU is lost")
    assert second.utilization_percent == 5.0


def test_without_the_library_nvidia_smi_is_asked(fake: FakeGpus, reader: gpus.GpuReader) -> None:
    fake.with_smi().say(gpu(50, 4 * GIB, 80 * GIB, 300, 700, 77))
    reading = reader.read(0.0)
    assert reading.source == "nvidia-smi"
    (one,) = reading.gpus
    assert (one.uuid, one.utilization_percent, one.memory_used_bytes, one.power_w) == ("GPU-fake-0", 50.0, 4 * GIB, 300)
    assert one.processes == [GpuProcess(77, GIB)]


def test_a_driver_that_answers_with_an_error_is_reported_in_words(fake: FakeGpus, reader: gpus.GpuReader) -> None:
    fake.with_smi(broken="NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.")
    reading = reader.read(0.0)
    assert reading.present and reading.gpus == [] and "couldn't communicate" in reading.trouble


def test_a_hung_driver_costs_its_time_limit_once_and_no_second_helper(library: FakeGpus) -> None:
    """The helper is killed; nothing else waits for it."""
    library.say("hang")
    reader = gpus.GpuReader(sys.executable, read_timeout_s=0.5)
    reader._answered = True  # not the first time, which may take longer
    watch = Stopwatch()
    reading = reader.read(0.0)
    assert watch.seconds < 5
    assert reading.gpus == [] and "does not answer within 0.5 s" in reading.trouble
    watch = Stopwatch()
    assert reader.read(5.0).trouble == reading.trouble and watch.seconds < 0.2
    library.say(gpu(1))
    wait_until(lambda: reader.read(1000.0).gpus != [], what="read again once the driver answers")
    reader.end()


def test_a_host_without_a_driver_starts_no_helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(gpus, "driver_shows", lambda: False)
    reader = gpus.GpuReader("/no/such/python")
    assert reader.read(0.0).present is False


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "600"])
    wait_until(lambda: (found := procfs.read(process.pid)) is not None and found.name == "sleep", what="exec")
    yield process
    process.kill()
    process.wait()


def reading_with(*pids: int, used: int = GIB) -> gpus.Reading:
    one = GpuUsage(
        0, utilization_percent=40.0, memory_used_bytes=used, processes=[GpuProcess(pid, GIB) for pid in pids]
    )
    return gpus.Reading(True, [one], {0: 0}, "", "nvml", 0.0)


def test_a_process_below_a_runner_is_its_worker_s_and_any_other_has_a_name(sleeper: subprocess.Popen[bytes]) -> None:
    reading = reading_with(sleeper.pid, os.getppid())
    gpus.attribute(reading, {"w1": os.getpid()}, {})
    own, other = reading.gpus[0].processes
    assert (own.worker_id, own.name) == ("w1", "sleep") and own.user
    assert other.worker_id == "" and other.name
    usage = WorkerUsage()
    gpus.fill_usage(usage, "w1", reading.gpus, [])
    assert (usage.gpus, usage.gpu_percent, usage.gpu_memory_bytes) == ([0], 40.0, GIB)


def test_pids_of_another_namespace_are_not_mistaken_for_ours(
    sleeper: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a container: a process of the tree that has the device open uses the GPU."""
    nobody = 2**22 + 5
    trees = {"w1": [procfs.read(sleeper.pid)]}
    reading = reading_with(nobody)
    gpus.attribute(reading, {"w1": os.getpid()}, trees)  # type: ignore[arg-type]
    assert [(one.pid, one.worker_id, one.name) for one in reading.gpus[0].processes] == [(nobody, "", "")]
    monkeypatch.setattr(gpus, "_has_open", lambda pid, device: device == "/dev/nvidia0" and pid == sleeper.pid)
    gpus.attribute(reading, {"w1": os.getpid()}, trees)  # type: ignore[arg-type]
    assert [(one.pid, one.worker_id) for one in reading.gpus[0].processes] == [(sleeper.pid, "w1")]


def test_an_open_device_counts_only_where_pids_fail_and_only_on_its_own_gpus(
    sleeper: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA opens every device: an idle GPU beside a worker's must stay free."""
    monkeypatch.setattr(gpus, "_has_open", lambda pid, device: True)
    process = procfs.read(sleeper.pid)
    assert process is not None
    trees, runners = {"w1": [process]}, {"w1": os.getpid()}
    own = GpuUsage(0, memory_used_bytes=8 * GIB, processes=[GpuProcess(sleeper.pid, GIB)])
    idle = GpuUsage(1, memory_used_bytes=8 * GIB)
    gpus.attribute(gpus.Reading(True, [own, idle], {0: 0, 1: 1}, "", "nvml", 0.0), runners, trees)
    assert idle.processes == [] and own.processes[0].worker_id == "w1"

    def hidden() -> list[GpuUsage]:
        """No pid is reported."""
        return [GpuUsage(0, memory_used_bytes=8 * GIB), GpuUsage(1, memory_used_bytes=8 * GIB), GpuUsage(2)]

    some = hidden()
    gpus.attribute(gpus.Reading(True, some, {0: 0, 1: 1, 2: 2}, "", "nvml", 0.0), runners, trees, {"w1": [1]})
    assert [[one.worker_id for one in gpu.processes] for gpu in some] == [[], ["w1"], []]
