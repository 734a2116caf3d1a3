"""restart.progress: a restart budget that progress resets instead of time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from procguard import log_metrics
from remote_agent.agent.spec_file import mistakes_in
from remote_agent.health.progress import FILE_EVERY_S, ProgressWatch
from remote_agent.protocol.messages import LogMetric, RestartPolicy, WorkerSpec
from remote_agent.runner.restart import Ending, RestartRules, decide, has_progressed, remaining_restarts
from tests.agent_host import Host
from tests.fake_manager import START_SECS, FakeManager
from tests.rows import each
from tests.unit.runner_rig import FOREVER, Rig
from tests.waiting import wait_until

VALUES = [
    (None, 5.0, (False, 5.0)),  # the job's progress
    (5.0, 6.0, (True, 6.0)),
    (5.0, 5.0, (False, 5.0)),
    (5.0, 3.0, (False, 5.0)),  # another attempt repeats the steps of the one before
    (5.0, True, (False, 5.0)),
    (5.0, "6", (False, 5.0)),
    (5.0, float("nan"), (False, 5.0)),
    (5.0, float("inf"), (False, 5.0)),
    ("x", 1, (False, 1.0)),
    (None, None, (False, None)),
]


@each("case", VALUES)
def test_progress_is_a_value_above_all_before(case: tuple[object, object, tuple[bool, float | None]]) -> None:
    highest, value, expected = case
    assert has_progressed(highest, value) == expected


def test_where_progress_is_declared_time_gives_nothing_back() -> None:
    by_time, by_progress = RestartRules({}), RestartRules({"progress": "metrics.step"})
    assert (remaining_restarts(3, 1e6, by_time), remaining_restarts(3, 1e6, by_progress)) == (0, 3)
    assert decide(Ending(code=1, ran_s=1e6, was_running=True), 3, by_progress).action == "fail"


def test_a_runner_gives_its_budget_back_for_progress_alone_and_remembers_the_highest(rig: Rig) -> None:
    policy = {
        "max_attempts": 9,
        "backoff_s": [0],
        "start_secs": 0.1,
        "healthy_after_s": 0.1,
        "progress": "metrics.step",
    }
    rig.shell("sleep 0.3; [ $PROCGUARD_ATTEMPT -ge 3 ] || exit 1; " + FOREVER, restart=policy, stop_grace_s=0.2).run()
    rig.until("running", attempt=3)
    assert rig.link is not None and rig.status["restarts"] == 2
    for value, restarts in ((10.0, 2), (9.0, 2), (11.0, 0)):
        rig.link.progress(value)
        wait_until(lambda restarts=restarts: pumped(rig) == restarts, 10, f"{restarts} after {value}")


def pumped(rig: Rig) -> Any:
    rig.pump()
    return rig.status["restarts"]


MISTAKES = [
    ("metrics.step", {"step": "([0-9]+)"}, ""),
    ("metrics.loss", {"step": "([0-9]+)"}, "declares no such name"),
    ("checkpoints/last.pt", {}, ""),
    ("a\0b", {}, "expected metrics.NAME or a path"),
    ("a" * 5000, {}, "expected metrics.NAME or a path"),
]


@each("case", MISTAKES)
def test_what_counts_as_progress_is_checked(case: tuple[str, dict[str, str], str]) -> None:
    rule, metrics, said = case
    found = mistakes_in(WorkerSpec("x", metrics=metrics, restart=RestartPolicy(progress=rule)))
    assert said in "; ".join(found) and bool(found) == bool(said)


def test_each_higher_value_goes_to_the_runner_once_and_again_to_the_next_one(tmp_path: Path) -> None:
    numbers, jobs = [LogMetric("step", 3.0)], list[Any]()
    watch = ProgressWatch(
        lambda tag, job: bool(jobs.append((tag, job))) or True,
        lambda worker, attempt: numbers,
        lambda worker: lambda path, timeout_s: (int(7e9), 1, 1),
    )
    sent: list[float] = []
    link = SimpleNamespace(progress=sent.append)
    spec = WorkerSpec("x", restart=RestartPolicy(progress="metrics.step"))
    worker: Any = SimpleNamespace(worker_id="w1", attempt=1, link=link, assignment=SimpleNamespace(spec=spec))
    for value in (3.0, 3.0, 2.0, 4.0):
        numbers[0].value = value
        watch.tick(worker, 0.0)
    worker.link = SimpleNamespace(progress=sent.append)
    watch.tick(worker, 0.0)
    assert sent == [3.0, 4.0, 4.0] and not jobs
    spec.restart.progress, sent[:] = "last.pt", []
    worker.cwd, worker.home, worker.other_user = str(tmp_path), "", False
    worker.link = SimpleNamespace(progress=sent.append)
    for moment in (10.0, 10.0 + FILE_EVERY_S - 0.1):
        watch.tick(worker, moment)
    ((tag, read),) = jobs
    assert read() is None, "not there yet"
    (tmp_path / "last.pt").touch()
    os.utime(tmp_path / "last.pt", (50.0, 50.0))
    assert watch.take(tag, read(), {"w1": worker}) and sent == [50.0]
    worker.other_user = True
    watch.tick(worker, 20.0)
    assert jobs[-1][1]() == 7.0, "read with the rights of the worker's user"
    assert not watch.take("usage", 1.0, {})


def test_a_job_that_crashes_often_but_gets_on_is_restarted_beyond_its_budget(
    host: Host, manager: FakeManager, tmp_path: Path
) -> None:
    """A real agent, runner and job: it resumes from its checkpoint, crashes after each step, and finally stops."""
    saved = tmp_path / "step"
    job = (
        "import os, pathlib, sys, time\n"
        f"saved = pathlib.Path({str(saved)!r})\n"
        "step = int(saved.read_text()) if saved.exists() else 0\n"
        "print(f'step {step}', flush=True); time.sleep(1.5)\n"
        "if step < 4: print(f'step {step + 1}', flush=True); saved.write_text(str(step + 1)); time.sleep(2.5)\n"
        "sys.exit(1)"
    )
    restart = RestartPolicy(max_attempts=1, backoff_s=[0.0], start_secs=START_SECS, progress="metrics.step")
    metrics = {"step": "step ([0-9]+)"}
    manager.assign("w1", [sys.executable, "-c", job], restart=restart, metrics=metrics)
    manager.assignments["w1"].metrics = log_metrics.for_hosts(metrics)
    host.start()
    wait_until(lambda: manager.state("w1") == "failed", 120, "its end")
    assert saved.read_text() == "4" and manager.report("w1")["restarts_total"] >= 4
    assert "restart budget" in manager.report("w1")["reason"] or manager.report("w1")["restarts"] == 1
