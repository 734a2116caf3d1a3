"""A real agent and real runners on a host with simulated GPUs: allocation, waiting, retention, release, reports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol.messages import HealthCheck, RestartPolicy
from tests.agent_host import Host, alive, running
from tests.fake_gpus import GIB, FakeGpus, gpu
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

SAYS_GPUS = [
    sys.executable,
    "-c",
    "import os,time; print(os.environ.get('CUDA_VISIBLE_DEVICES'), os.environ.get('CUDA_DEVICE_ORDER'), flush=True);"
    "time.sleep(600)",
]


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGpus:
    """Two idle GPUs, seen by whatever is started from now on."""
    fake = FakeGpus(tmp_path / "driver").with_smi()
    try:
        fake.with_library()
    except FileNotFoundError:
        pass  # nvidia-smi does as well
    for name, value in fake.environment().items():
        monkeypatch.setenv(name, value)
    fake.say(gpu(), gpu())
    return fake


@pytest.fixture
def host(tmp_path: Path, manager: FakeManager, driver: FakeGpus) -> Iterator[Host]:
    one = Host(tmp_path, manager)
    yield one
    one.end()


def gpus_reported(manager: FakeManager) -> list[dict[str, Any]]:
    usage = manager.beats[-1]["usage"] if manager.beats else None
    return list(usage["gpus"]) if usage else []


def test_each_worker_gets_its_own_gpu_and_the_third_waits_by_name(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SAYS_GPUS, gpus=1, stop_grace_s=1)
    manager.assign("w2", SAYS_GPUS, gpus=1, stop_grace_s=1)
    host.start()
    running(manager, "w1")
    running(manager, "w2")
    wait_until(lambda: manager.log("w1") and manager.log("w2"), what="what they see")
    assert sorted((manager.log("w1"), manager.log("w2"))) == [b"0 PCI_BUS_ID\n", b"1 PCI_BUS_ID\n"]
    manager.assign("w3", SAYS_GPUS, gpus=1)
    wait_until(lambda: manager.state("w3") == "backoff", what="waiting")
    reason = manager.report("w3")["reason"]
    assert reason.startswith("waits for 1 GPU: GPU 0 is allocated to w") and "GPU 1 is allocated to w" in reason
    freed = manager.log("w2").split()[0]
    manager.set_desired("w2", "stopped")
    running(manager, "w3")
    wait_until(lambda: manager.log("w3") != b"", what="what w3 sees")
    assert manager.log("w3").split()[0] == freed and manager.state("w2") == "stopped"


def test_a_gpu_in_somebody_s_use_is_waited_for_until_it_is_free(
    host: Host, manager: FakeManager, driver: FakeGpus
) -> None:
    other = subprocess.Popen(["sleep", "600"])
    try:
        driver.say(gpu(90, GIB, 80 * GIB, 300, 700, other.pid))
        manager.assign("w1", SAYS_GPUS, gpus=1)
        host.start()
        wait_until(lambda: f"GPU 0 is used by pid {other.pid} (" in manager.report("w1").get("reason", ""), what="told")
        assert manager.state("w1") == "backoff" and "sleep)" in manager.report("w1")["reason"]
        wait_until(lambda: gpus_reported(manager) != [], what="the GPU in the heartbeat")
        (reported,) = gpus_reported(manager)
        assert reported["processes"][0]["pid"] == other.pid and reported["processes"][0]["worker_id"] == ""
        manager.set_desired("w1", "stopped")
        wait_until(lambda: manager.state("w1") == "stopped", what="it no longer waits")
        manager.set_desired("w1", "running")
        wait_until(lambda: manager.state("w1") == "backoff", what="it waits again")
    finally:
        other.kill()
        other.wait()
    running(manager)


def test_a_restarted_agent_knows_what_it_had_handed_out(host: Host, manager: FakeManager) -> None:
    """The living child keeps its GPU, its own restarts too; a second worker gets the other one."""
    manager.assign("w1", SAYS_GPUS, gpus=1, restart=RestartPolicy("always", 3, [0.0], start_secs=0.1))
    host.start()
    pid = running(manager)
    host.kill_agent()
    assert alive(pid)
    manager.assign("w0", SAYS_GPUS, gpus=1)
    host.start()
    running(manager, "w0")
    wait_until(lambda: manager.log("w0") != b"", what="what w0 sees")
    assert manager.log("w0") == b"1 PCI_BUS_ID\n"
    assert manager.report("w1")["pid"] == pid and manager.report("w1")["attempt"] == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: manager.log("w1", "2.out") != b"", what="the second attempt")
    assert manager.log("w1", "2.out") == b"0 PCI_BUS_ID\n"


def test_an_attempt_keeps_a_cordoned_gpu_and_the_next_one_gets_another(host: Host, manager: FakeManager) -> None:
    """Otherwise a failed GPU would use up the restarts of its worker. If no other is free, it stays."""
    restart = RestartPolicy("always", 9, [1.5], start_secs=0.1)
    manager.assign("w1", SAYS_GPUS, gpus=1, restart=restart)
    manager.cordoned_gpus = []
    host.start()
    pid = running(manager)
    wait_until(lambda: manager.log("w1") == b"0 PCI_BUS_ID\n", what="what it sees")
    manager.assign("w2", SAYS_GPUS, gpus=1, stop_grace_s=1)
    running(manager, "w2")
    manager.cordoned_gpus = ["GPU-fake-0"]
    allocation = Path(host.directory, "gpus.json")
    wait_until(lambda: "GPU-fake-0" in allocation.read_text(), 20, "the cordon known to its agent")
    assert alive(pid) and manager.report("w1")["attempt"] == 1
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: manager.log("w1", "2.out") != b"", what="the second attempt")
    assert manager.log("w1", "2.out") == b"0 PCI_BUS_ID\n", "the other one is in use"
    manager.set_desired("w2", "stopped")
    wait_until(lambda: manager.state("w2") == "stopped", what="w2 gives its GPU back")
    os.kill(int(manager.report("w1")["pid"]), signal.SIGKILL)
    wait_until(lambda: manager.log("w1", "3.out") != b"", what="the third attempt")
    assert manager.log("w1", "3.out") == b"1 PCI_BUS_ID\n"
    wait_until(lambda: (manager.report("w1").get("usage") or {}).get("gpus") == [1], 20, "reported as its own")


def test_use_by_a_worker_is_reported_as_the_worker_s(host: Host, manager: FakeManager, driver: FakeGpus) -> None:
    manager.assign("w1", SAYS_GPUS, gpus=1)
    host.start()
    pid = running(manager)
    driver.say(gpu(97, 3 * GIB, 80 * GIB, 412, 700, pid), gpu())
    wait_until(lambda: (manager.report("w1").get("usage") or {}).get("gpu_memory_bytes") == GIB, 20, "GPU memory")
    usage = manager.report("w1")["usage"]
    assert usage["gpus"] == [0] and usage["gpu_percent"] == 97.0 and usage["pss_bytes"] > 0 and usage["fds"] >= 3
    first, second = gpus_reported(manager)
    assert (first["worker_id"], first["processes"][0]["worker_id"], second["worker_id"]) == ("w1", "w1", "")


def test_a_hung_driver_does_not_hang_the_agent(host: Host, manager: FakeManager, driver: FakeGpus) -> None:
    """Workers without GPUs start and report as usual."""
    driver.say("hang")
    (driver.directory / "nvidia-smi").write_text("#!/bin/sh\nsleep 1000\n")
    manager.assign("w1", SAYS_GPUS, gpus=1)
    manager.assign("w2", ["sleep", "600"])
    host.start()
    running(manager, "w2")
    wait_until(lambda: manager.report("w2").get("usage") is not None, 20, "usage measured all the same")
    assert manager.report("w1")["reason"] == "waits for 1 GPU: reading the host's GPUs"


def test_evidence_is_written_before_a_health_check_restarts(host: Host, manager: FakeManager) -> None:
    """Its path and what it was doing are in the event."""
    check = HealthCheck("exec", command="false", interval_s=0.5, failures=1, start_grace_s=0.5, action="restart")
    manager.assign("w1", SAYS_GPUS, gpus=1, health=[check], restart=RestartPolicy(start_secs=0.1, max_attempts=1))
    host.start()
    wait_until(lambda: manager.report("w1").get("attempt") == 2, 20, "restarted for its health")
    wait_until(lambda: any("evidence: " in event["reason"] for event in manager.events), what="the event")
    reason = next(event["reason"] for event in manager.events if "evidence: " in event["reason"])
    path = Path(reason.split("evidence: ", 1)[1].split(" on the host", 1)[0])
    text = path.read_text()
    assert "`false` ended with 1" in text and "GPU 0 Fake GPU" in text and "0 PCI_BUS_ID" in text
    assert "(python" in reason or "(pypy" in reason
