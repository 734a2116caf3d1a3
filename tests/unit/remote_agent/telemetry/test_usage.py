"""Measuring: whole trees, honest rates, from /proc alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.system.bounded import Bounded, HangsError
from remote_agent.telemetry import host as usage
from remote_agent.telemetry import procfs
from tests.waiting import wait_until

BURN = "while True: pass"
MIB = 1024 * 1024


# A fake runner: the parent of the measured tree only (pytest has other tests' children).
RUNNER = "import subprocess,sys; subprocess.call([sys.executable,'-c',*sys.argv[1:]])"


@contextlib.contextmanager
def child(script: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The runner of a child that has said "up"; the whole tree ends with the block."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUNNER, script, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == b"up\n"
        yield process
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


WITH_GRANDCHILD = (
    f"import subprocess,sys; p=subprocess.Popen([sys.executable,'-c','{BURN}']); print('up',flush=True); p.wait()"
)


def of(runner: subprocess.Popen[bytes]) -> dict[str, int]:
    return {"w": runner.pid}


def test_the_host_is_measured_without_any_package(tmp_path: Path) -> None:
    meter = usage.choose_meter(str(tmp_path))
    assert isinstance(meter, procfs.ProcMeter) and meter.available
    meter.sample({}, now=100.0)
    time.sleep(0.05)
    host = meter.sample({}, now=101.0).host
    assert host is not None and 0 <= host.cpu_percent <= 100
    assert host.memory_used_bytes > 0 and host.disk_total_bytes >= host.disk_free_bytes > 0
    facts = usage.host_facts()
    assert facts.hostname and facts.cpus >= 1 and facts.memory_bytes > 0 and facts.python.startswith("3.")
    assert host.memory_used_bytes < facts.memory_bytes


def test_without_proc_usage_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a host works nevertheless."""
    monkeypatch.setattr(procfs, "available", lambda: False)
    meter = usage.choose_meter(str(tmp_path))
    assert not meter.available
    assert meter.sample({"w": 1}).host is None


def test_the_whole_tree_below_the_runner_is_measured_without_the_runner(tmp_path: Path) -> None:
    """A busy grandchild counts; its parent's parent, the runner, does not."""
    meter = procfs.ProcMeter(str(tmp_path))
    with child(WITH_GRANDCHILD) as runner:
        assert wait_until(
            lambda: meter.sample(of(runner)).workers["w"].processes == 2, what="child and grandchild seen"
        )
        time.sleep(0.3)
        measured = meter.sample(of(runner)).workers["w"]
        assert measured.cpu_percent > 2  # of a core; on a busy machine it gets little of one
        assert MIB < measured.rss_bytes < 1000 * MIB
        assert measured.threads >= 2


def test_memory_shared_by_a_fork_is_counted_once_in_pss(tmp_path: Path) -> None:
    """RSS counts the parent's 60 MiB in the child again; PSS does not."""
    script = "import os,time; a=bytearray(60*1024*1024); p=os.fork(); p and print('up',flush=True); time.sleep(60)"
    with child(script) as runner:
        measured = procfs.ProcMeter(str(tmp_path)).sample(of(runner)).workers["w"]
        assert measured.processes == 2
        assert measured.rss_bytes > 110 * MIB
        assert measured.pss_bytes is not None and 55 * MIB < measured.pss_bytes < 100 * MIB


def test_files_and_threads_are_counted_over_the_tree(tmp_path: Path) -> None:
    script = (
        "import threading,time; f=[open('/dev/null') for _ in range(40)];"
        "[threading.Thread(target=time.sleep,args=(60,),daemon=True).start() for _ in range(5)];"
        "print('up',flush=True); time.sleep(60)"
    )
    with child(script) as runner:
        measured = procfs.ProcMeter(str(tmp_path)).sample(of(runner)).workers["w"]
        assert measured.fds is not None and 40 <= measured.fds < 60
        assert measured.threads == 6


def test_bytes_written_to_disk_become_a_rate(disk_path: Path) -> None:
    """What a collected child wrote stays counted: its parent inherits it."""
    script = (
        "import subprocess,sys,time; print('up',flush=True); sys.stdin.readline();"
        "subprocess.run([sys.executable,'-c','import os; f=open(sys.argv[1],\"wb\"); f.write(bytes(8*1024*1024));"
        "f.flush(); os.fsync(f.fileno())'.replace('import os','import os,sys'),sys.argv[1]]); time.sleep(60)"
    )
    with child(script, str(disk_path / "out")) as runner:
        assert runner.stdin is not None
        meter = procfs.ProcMeter(str(disk_path))
        first = meter.sample(of(runner), now=100.0).workers["w"]
        if first.written_bytes is None:
            pytest.skip("this kernel does not account I/O by process")
        runner.stdin.write(b"go\n")
        runner.stdin.flush()
        written = disk_path / "out"
        wait_until(lambda: written.exists() and written.stat().st_size == 8 * MIB, what="written")
        wait_until(lambda: len(procfs.trees_below(of(runner))["w"]) == 1, what="the writer collected")
        second = meter.sample(of(runner), now=102.0).workers["w"]
        if second.written_bytes == first.written_bytes:
            pytest.skip("this file system does not account what is written")
        assert second.written_bytes is not None and second.written_bytes - first.written_bytes >= 8 * MIB
        assert second.written_bytes_per_s is not None and second.written_bytes_per_s >= 4 * MIB


def test_a_zombie_is_in_the_tree_but_counts_for_nothing(tmp_path: Path) -> None:
    """The hang detection needs its state."""
    script = "import os,time; p=os.fork() or os._exit(0); time.sleep(0.2); print('up',flush=True); time.sleep(60)"
    with child(script) as runner:
        sample = procfs.ProcMeter(str(tmp_path)).sample(of(runner))
        assert sample.workers["w"].processes == 1
        assert sorted(process.state for process in sample.trees["w"])[-1] == "Z"


def test_a_runner_that_has_gone_measures_as_nothing(tmp_path: Path) -> None:
    """Between exit and report the pid may be reused or free."""
    process = subprocess.Popen(["true"])
    process.wait()
    assert procfs.ProcMeter(str(tmp_path)).sample({"w": process.pid}).workers["w"].processes == 0


def test_a_call_that_hangs_is_left_and_not_made_again_while_it_hangs() -> None:
    """One thread at most is lost to a hung file system."""
    import threading

    bounded, gate, calls = Bounded(), threading.Event(), []

    def hang() -> str:
        calls.append(1)
        gate.wait(30)
        return "back"

    with pytest.raises(HangsError, match=r"within 0\.05 s"):
        bounded.call("disk", hang, 0.05)
    with pytest.raises(HangsError, match="still hangs"):
        bounded.call("disk", hang, 0.05)
    assert len(calls) == 1
    assert bounded.call("other", lambda: 7, 5.0) == 7
    gate.set()

    def comes_back() -> bool:
        try:
            return bool(bounded.call("disk", lambda: "again", 5.0) == "again")
        except HangsError:
            return False

    assert wait_until(comes_back, what="the key is free again")
    with pytest.raises(FileNotFoundError):
        bounded.call("disk", lambda: os.stat("/no/such/file"), 5.0)
