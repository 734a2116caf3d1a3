"""Signs of a hang: evidence with numbers, no false positives for a job with unchanged behaviour."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol.messages import GpuUsage
from remote_agent.telemetry.hang import Rhythm, Suspicion
from remote_agent.telemetry.procfs import Proc, read
from tests.waiting import wait_until


def proc(state: str, ticks: int = 0, pid: int = 42) -> Proc:
    return Proc(pid, 41, "python", state, ticks, 1, 1000, 10)


def watch(
    suspicion: Suspicion, until: float, *, start: float = 0.0, tree: Any = (), mark: Any = 1, gpus: Any = ()
) -> str:
    """A sample every 5 s; `tree`, `mark`, `gpus` are values or functions of the time."""
    said, now = "", start
    while now <= until:
        at = [value(now) if callable(value) else value for value in (tree, mark, gpus)]
        said = suspicion.observe(1, list(at[0]), at[1], list(at[2]), now)
        now += 5.0
    return said


def test_a_zombie_is_named_with_the_parent_that_does_not_collect_it() -> None:
    assert watch(Suspicion(), 25, tree=[proc("Z")]) == ""
    assert watch(Suspicion(), 35, tree=[proc("Z")]) == (
        "process 42 (python) has been a zombie for 35 s: its parent 41 does not collect it"
    )


def test_a_stopped_process_is_named_with_the_way_out() -> None:
    said = watch(Suspicion(), 20, tree=[proc("T")])
    assert "stopped by a signal for 20 s" in said and "kill -CONT 42" in said
    assert "debugger" in watch(Suspicion(), 20, tree=[proc("t")])


def test_waiting_in_the_kernel_counts_only_while_nothing_moves() -> None:
    """A disk-bound job is in state D at every sample, and works."""
    assert "state D" in watch(Suspicion(), 65, tree=[proc("D", 7)])
    assert watch(Suspicion(), 600, tree=lambda now: [proc("D", int(now))]) == ""


def test_a_sleeping_process_is_healthy() -> None:
    assert watch(Suspicion(), 3600, tree=[proc("S")]) == ""


def test_many_alike_are_counted_not_listed() -> None:
    said = watch(Suspicion(), 60, tree=[proc("Z", pid=pid) for pid in range(50, 60)])
    assert said.count("zombie") == 3 and said.endswith("and 7 more like it")


def test_silence_far_beyond_its_longest_pause_is_suspicious() -> None:
    """It printed every 30 s for ten minutes: three times that is the limit."""
    suspicion = Suspicion()
    assert watch(suspicion, 600, mark=lambda now: int(now) // 30) == ""
    assert watch(suspicion, 685, start=605, mark=20) == ""
    said = watch(suspicion, 720, start=690, mark=20)
    assert said == "no output for 2 min; its longest pause before was 30 s"
    assert watch(suspicion, 725, start=725, mark=21) == ""  # it speaks again, and has paused longer now
    assert watch(suspicion, 1000, start=730, mark=21) == ""


def test_a_server_without_a_connection_is_not_suspected_for_silence() -> None:
    suspicion = Suspicion()
    watch(suspicion, 600, mark=lambda now: int(now) // 30)
    assert suspicion.observe(1, [], 20, [], 9_000.0, True) == ""
    assert suspicion.idle_because == "listening"
    assert "no output" in suspicion.observe(1, [], 20, [], 9_005.0, False)
    assert suspicion.idle_because == ""


def test_output_of_the_last_minute_explains_an_idle_cpu() -> None:
    suspicion = Suspicion()
    watch(suspicion, 100, mark=lambda now: int(now) // 30)
    assert suspicion.idle_because == "output"
    watch(suspicion, 200, start=105, mark=3)
    assert suspicion.idle_because == ""


def test_a_chatty_job_gets_a_minute_at_least() -> None:
    suspicion = Suspicion()
    watch(suspicion, 300, mark=lambda now: now)
    assert watch(suspicion, 355, start=305, mark=300.0) == ""
    assert "no output" in watch(suspicion, 370, start=360, mark=300.0)


def test_a_job_that_never_said_much_is_not_suspected_for_silence() -> None:
    assert watch(Suspicion(), 7200, mark=lambda now: min(int(now) // 60, 3)) == ""


def test_a_new_attempt_begins_its_silence_again_but_keeps_the_rhythm() -> None:
    suspicion = Suspicion()
    watch(suspicion, 300, mark=lambda now: now)
    watch(suspicion, 500, start=305, mark=300.0)
    assert suspicion.evidence
    assert suspicion.observe(2, [], (2, 0), [], 505.0) == ""
    assert suspicion.rhythm.limit_s == 60.0


def test_the_rhythm_outlives_the_agent() -> None:
    suspicion = Suspicion()
    watch(suspicion, 1000, mark=lambda now: int(now) // 50)
    again = Rhythm(suspicion.rhythm.stored())
    assert again.limit_s == suspicion.rhythm.limit_s == 150.0
    assert Rhythm({"longest_s": "?", "writes": None}).limit_s is None


def busy(watts: float, percent: float = 100.0) -> list[GpuUsage]:
    return [GpuUsage(3, utilization_percent=percent, power_w=watts, power_limit_w=700.0)]


def test_a_gpu_that_is_busy_at_much_less_power_than_before_is_suspicious() -> None:
    """What a hung collective looks like: 100 % busy, spinning."""
    suspicion = Suspicion()
    assert watch(suspicion, 300, gpus=busy(600)) == ""
    assert watch(suspicion, 420, start=305, gpus=busy(120)) == ""
    said = watch(suspicion, 430, start=425, gpus=busy(120))
    assert "GPU 3 has been 100 % busy at only 120 of 700 W" in said and "it drew 600 W before" in said
    assert watch(suspicion, 435, start=435, gpus=busy(580)) == ""


def test_a_light_job_at_its_usual_power_is_left_alone() -> None:
    assert watch(Suspicion(), 7200, gpus=busy(200)) == ""
    assert watch(Suspicion(), 7200, gpus=busy(70, percent=10.0)) == ""
    assert watch(Suspicion(), 7200, gpus=[GpuUsage(0, utilization_percent=100.0)]) == ""  # power not told


def test_a_job_that_never_drew_power_gets_ten_minutes() -> None:
    assert watch(Suspicion(), 590, gpus=busy(100)) == ""
    assert "100 of 700 W" in watch(Suspicion(), 610, gpus=busy(100))


def test_a_real_process_stuck_in_the_kernel_is_found(tmp_path: Path) -> None:
    """The parent of a vfork waits uninterruptibly until its child executes something or ends."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler")
    source = tmp_path / "stuck.c"
    source.write_text("#include <unistd.h>\nint main(void) { if (vfork() == 0) { sleep(600); _exit(0); } return 0; }\n")
    subprocess.run([compiler, "-w", "-o", str(tmp_path / "stuck"), str(source)], check=True)
    process = subprocess.Popen([str(tmp_path / "stuck")], start_new_session=True)
    try:
        wait_until(lambda: (found := read(process.pid)) is not None and found.state == "D", what="state D")
        said = watch(Suspicion(), 65, tree=lambda now: [read(process.pid)])
        assert said.startswith(f"process {process.pid} (stuck) has not moved for") and "state D" in said
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
