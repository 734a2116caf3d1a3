"""Evidence before a kill: recorded within bounds of time and size, and without unrequested signals."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from remote_agent.health import evidence
from remote_agent.health.evidence import Scene
from remote_agent.protocol.messages import GpuUsage
from remote_agent.system import paths
from remote_agent.telemetry import procfs
from tests.waiting import wait_until


class Job(NamedTuple):
    """A child and a fake runner: the parent of this tree only."""

    pid: int
    runner_pid: int

    def alive(self) -> bool:
        found = procfs.read(self.pid)
        return found is not None and found.state != "Z"


RUNNER = "import subprocess,sys; subprocess.call([sys.executable,'-u','-c',sys.argv[1]])"


@contextlib.contextmanager
def job(tmp_path: Path, code: str) -> Iterator[Job]:
    """A child whose output goes to the log of attempt 2."""
    os.makedirs(paths.attempts_dir(str(tmp_path)), exist_ok=True)
    with open(paths.log_file(str(tmp_path), 2), "wb") as log:
        runner = subprocess.Popen([sys.executable, "-c", RUNNER, code], stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: "up" in log_text(tmp_path), what="the job is up")
        yield Job(procfs.trees_below({"w": runner.pid})["w"][0].pid, runner.pid)
    finally:
        os.killpg(runner.pid, signal.SIGKILL)
        runner.wait()


def log_text(tmp_path: Path) -> str:
    return Path(paths.log_file(str(tmp_path), 2)).read_text(errors="replace")


def scene(tmp_path: Path, process: Job, **more: Any) -> Scene:
    found = procfs.read(process.pid)
    assert found is not None
    facts = dict(
        worker_id="w1", directory=str(tmp_path), attempt=2, runner_pid=process.runner_pid, pid=process.pid,
        pid_start=found.start, reason="exec check failed 3 times in a row", gpus=[], signal="", path="/usr/bin:/bin",
        python=sys.executable,
    )  # fmt: skip
    return Scene(**{**facts, **more})


SLEEPS = "import time; print('up'); print('step 512 loss 0.1'); time.sleep(600)"


def test_it_reports_every_thread_the_last_lines_and_the_gpus(tmp_path: Path) -> None:
    with job(tmp_path, SLEEPS) as process:
        found = evidence.collect(scene(tmp_path, process, gpus=[GpuUsage(3, name="H100", power_w=88.0)]))
        text = Path(found.path).read_text()
        assert "exec check failed 3 times in a row" in text and "w1, attempt 2" in text
        assert f"process {process.pid}" in text and f"thread {process.pid} state=S" in text and "wchan=" in text
        assert "VmRSS" in text and "step 512 loss 0.1" in text and "GPU 3 H100" in text and "88.0 of" in text
        assert os.stat(found.path).st_mode & 0o077 == 0
        assert found.path.startswith(str(tmp_path / "evidence"))
        assert found.summary.startswith(f"process {process.pid} (python") and "step 512" in found.summary
        assert process.alive()


def test_the_worker_s_own_signal_makes_it_print_its_stacks(tmp_path: Path) -> None:
    code = (
        "import faulthandler,signal,time; faulthandler.register(signal.SIGUSR1); print('up')\n"
        "def waits_for_rank_3(): time.sleep(600)\nwaits_for_rank_3()"
    )
    with job(tmp_path, code) as process:
        assert "in waits_for_rank_3" not in Path(evidence.collect(scene(tmp_path, process)).path).read_text()
        found = evidence.collect(scene(tmp_path, process, signal="USR1"))
        text = Path(found.path).read_text()
        assert "USR1 sent to" in text and "in waits_for_rank_3" in text
        assert process.alive()


def test_a_pid_given_to_somebody_else_and_a_word_that_is_no_signal_send_nothing(tmp_path: Path) -> None:
    """USR1 would have ended this one."""
    with job(tmp_path, SLEEPS) as process:
        stranger = evidence.collect(scene(tmp_path, process, signal="USR1", pid_start=1))
        assert "could not be sent" in Path(stranger.path).read_text()
        nonsense = evidence.collect(scene(tmp_path, process, signal="LOUD"))
        assert "is no signal" in Path(nonsense.path).read_text()
        time.sleep(0.1)
        assert process.alive()


def test_py_spy_of_the_job_s_path_is_asked_and_ended_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bin_dir = tmp_path / "bin"
    bin_dir.mkdir()
    spy = bin_dir / "py-spy"
    spy.write_text("#!/bin/sh\necho Thread MainThread of $4; case $0 in *slow*) sleep 60;; esac\n")
    spy.chmod(0o755)
    with job(tmp_path, SLEEPS) as process:
        text = Path(evidence.collect(scene(tmp_path, process, path=f"{bin_dir}:/bin")).path).read_text()
        assert f"py-spy of {process.pid}" in text and f"Thread MainThread of {process.pid}" in text
        monkeypatch.setattr(evidence, "PY_SPY_S", 0.5)
        spy.write_text("#!/bin/sh\nsleep 60\n")
        started = time.monotonic()
        text = Path(evidence.collect(scene(tmp_path, process, path=str(bin_dir))).path).read_text()
        assert "no answer within" in text and time.monotonic() - started < 10


def test_a_process_that_hangs_its_readers_costs_its_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "PROCESS_S", 0.1)
    monkeypatch.setattr(evidence, "_examine", lambda pid: time.sleep(5))
    with job(tmp_path, SLEEPS) as process:
        started = time.monotonic()
        text = Path(evidence.collect(scene(tmp_path, process)).path).read_text()
        assert "cannot be looked at: no answer within" in text and "step 512" in text
        assert time.monotonic() - started < 4


def test_the_file_is_bounded_and_only_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evidence, "MAX_BYTES", 600)
    folder = tmp_path / "evidence"
    folder.mkdir()
    for number in range(15):
        (folder / f"old-{number}.txt").write_text("")
    with job(tmp_path, SLEEPS) as process:
        path = Path(evidence.collect(scene(tmp_path, process)).path)
        assert path.stat().st_size < 800 and "cut off" in path.read_text()
        assert len(list(folder.iterdir())) == evidence.KEEP_FILES and path.exists()
