"""Full disk, read-only home: one clear reason for FAILED, and recovery once there is space."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.agent.worker import WorkerHandle
from remote_agent.protocol.messages import Assignment, WorkerSpec
from remote_agent.system import paths
from tests.unit.runner_rig import Rig, make_rig, remove


def mounted(directory: Path, options: str) -> bool:
    directory.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(directory)]
    return os.geteuid() == 0 and subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; the test may fill it."""
    directory = tmp_path / "small"
    if not mounted(directory, "size=64k"):
        pytest.skip("no right to mount a file system here")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


def fill(directory: Path) -> Path:
    path = directory / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while file.write(b"x" * 4096):
                pass
        except OSError:
            return path
    return path


def slot_in(directory: Path) -> WorkerHandle:
    worker = WorkerHandle("w1", str(directory / "w1-0123456789"), str(directory / "r"))
    worker.assign(Assignment("w1", WorkerSpec("sleep 1000"), generation=4), "/", {"PATH": "/bin"})
    return worker


def test_worker_on_a_full_disk_is_failed_with_the_reason_and_well_once_there_is_room(small: Path) -> None:
    filler = fill(small)
    worker = slot_in(small)
    report = worker.report()
    assert (report.state, report.generation) == ("failed", 4)
    assert report.reason == f"cannot write {worker.directory}: No space left on device; free some space there"
    filler.unlink()
    worker.assign_again("/", {"PATH": "/bin"})
    assert worker.report().state == "stopped" and worker.report().reason == ""


def test_worker_in_a_read_only_home_is_failed_with_the_reason(small: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
    report = slot_in(small).report()
    assert (
        report.state == "failed" and "Read-only file system; mount it writable, or set procguard_home" in report.reason
    )


def test_worker_that_is_not_to_run_is_not_failed_by_a_full_disk(small: Path) -> None:
    fill(small)
    worker = slot_in(small)
    worker.assign(Assignment("w1", WorkerSpec("sleep 1000"), desired="stopped"), "/", {})
    assert worker.report().state == "stopped"


@pytest.fixture
def rig() -> Iterator[Rig]:
    made, directory = make_rig()
    yield made
    made.clean_up()
    remove(directory)


def test_log_that_cannot_be_made_fails_the_attempt_with_the_file_s_name(rig: Rig) -> None:
    """The policy keeps trying, then the worker is failed."""
    rig.shell("echo up; exec sleep 1000", restart={"max_attempts": 1, "backoff_s": [0.0]}).run()
    pid = rig.until("running")["pid"]
    attempts = paths.attempts_dir(rig.worker_dir)
    os.rename(attempts, attempts + ".away")
    Path(attempts).touch()
    os.kill(pid, signal.SIGKILL)
    reason = rig.until("failed")["reason"]
    assert f"cannot start: Not a directory: {attempts}/2.log" in reason
