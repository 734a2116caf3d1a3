"""max_run_s: an attempt is stopped at its limit and not before, with evidence if an agent is running."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from remote_agent.runner.task import task_runner
from remote_agent.runner.task.task_runner import EVIDENCE_S, TaskRunner
from remote_agent.system import paths
from tests.agent_host import Host
from tests.fake_manager import FakeManager
from tests.unit.runner_rig import FOREVER, Rig
from tests.waiting import wait_until


def asked(rig: Rig, attempt: int) -> bool:
    rig.pump()
    return bool(rig.status.get("over_time") == attempt)


def test_the_agent_gathers_evidence_first_then_the_attempt_is_stopped_and_not_restarted(rig: Rig):
    rig.shell("trap 'echo saved; exit 0' TERM; while :; do sleep 0.05; done", max_run_s=1.5).run()
    rig.until("running")
    wait_until(lambda: asked(rig, 1), 10, "the runner to ask for evidence")
    assert rig.status["state"] == "running" and "its time limit of 1.5 s is over" in rig.status["reason"]
    assert rig.link is not None
    rig.link.time_limit(1, task_runner.because("evidence.no_process"))
    status = rig.until("failed")
    record = rig.exit_record(1)
    assert (record["cause"], record["code"], record["attempt"]) == ("time_limit", 0, 1) and "saved\n" in rig.log()
    assert "; no process of it is left; " in status["reason"]
    assert status["reason"].endswith("not restarted: max_run_s is used up") and status["restarts"] == 0


def test_without_an_agent_it_is_ended_a_little_later():
    """The step of the phase alone: the wait is longer than a test should take."""
    ended: list[float] = []
    attempt = SimpleNamespace(number=3, started=100.0, healthy_at=0.0)
    values = {"over_time": 0, "restarts": 0}
    said = SimpleNamespace(values=values, note_reason=lambda _: None, publish=lambda: None)
    assignment = SimpleNamespace(max_run_s=10.0)
    task: Any = SimpleNamespace(
        attempt=attempt, state=said, assignment=assignment, end_at_limit=lambda now, _: ended.append(now)
    )
    runner: Any = TaskRunner.__new__(TaskRunner)
    runner.task = task
    for now in (105.0, 110.0, 120.0, 110.0 + EVIDENCE_S - 0.1):
        runner._watch_running(now)
        assert (values["over_time"], ended) == (0 if now < 110 else 3, [])
    runner._watch_running(110.0 + EVIDENCE_S)
    assert ended == [110.0 + EVIDENCE_S]
    assignment.max_run_s = None
    assert runner._over_time_at(attempt) == float("inf")


def test_policy_always_starts_the_next_attempt_at_once_and_spends_nothing(rig: Rig):
    rig.shell(FOREVER, max_run_s=1.2, restart={"policy": "always", "start_secs": 0.1}).run()
    for attempt in (1, 2):
        rig.until("running", attempt=attempt)
        wait_until(lambda attempt=attempt: asked(rig, attempt), 10, "the time limit")
        assert rig.link is not None
        rig.link.time_limit(attempt, task_runner.NONE)
    status = rig.until("running", attempt=3)
    assert (status["restarts"], rig.exit_record(2)["cause"]) == (0, "time_limit")


def test_a_limit_that_was_raised_meanwhile_ends_nothing(rig: Rig):
    rig.shell(FOREVER, max_run_s=1.2).run()
    first = rig.until("running")
    wait_until(lambda: asked(rig, 1), 10, "the time limit")
    rig.assignment["spec"]["max_run_s"] = 3600.0
    rig.write_spec()
    assert rig.link is not None
    rig.link.assign("running", 1, 1_000_001)
    rig.link.time_limit(1, task_runner.NONE)
    wait_until(lambda: not asked(rig, 1), 10, "the runner to go on")
    time.sleep(0.3)
    rig.pump()
    assert rig.status["state"] == "running" and rig.status["pid"] == first["pid"]


def test_evidence_of_another_attempt_ends_nothing(rig: Rig):
    rig.shell(FOREVER, max_run_s=3600).run()
    first = rig.until("running")
    assert rig.link is not None
    for attempt in (0, 1, 2):
        rig.link.time_limit(attempt, task_runner.NONE)
    rig.link.kill(1, "c1", 2**62)
    assert rig.until("stopped")["pid"] is None and first["attempt"] == 1
    assert rig.exit_record(1)["cause"] == ""


@pytest.mark.parametrize("limit", [0, -1, True, "1h"])
def test_a_limit_that_is_no_time_is_refused(limit: object):
    from remote_agent.agent.spec_file import mistakes_in
    from remote_agent.protocol.messages import WorkerSpec

    assert any("max_run_s" in one for one in mistakes_in(WorkerSpec(command="a", max_run_s=limit)))  # type: ignore[arg-type]


def test_an_agent_gathers_evidence_of_an_attempt_at_its_limit_once_and_has_it_ended(host: Host, manager: FakeManager):
    manager.assign("w1", ["/bin/sh", "-c", "echo working; exec sleep 1000"], max_run_s=2.0)
    host.start()
    folder = Path(paths.worker_dir(host.directory, "w1")) / "evidence"
    wait_until(lambda: manager.report("w1").get("state") == "failed", 40, "the end")
    report = manager.report("w1")
    assert (report["last_exit"]["cause"], report["attempt"], report["restarts"]) == ("time_limit", 1, 0)
    assert "evidence: " in report["reason"] and "not restarted: max_run_s is used up" in report["reason"]
    assert len(list(folder.glob("*.txt"))) == 1 and report["last_exit"]["duration_s"] < 20
