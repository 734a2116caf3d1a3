"""The agent against a small manager and real runners: adopts, starts, converges, carries out each command once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings
from remote_agent.agent.journal import EventTail
from remote_agent.agent.worker import runner_needed, supersedes
from remote_agent.protocol.messages import Assignment, HealthCheck, RestartPolicy, WorkerSpec
from remote_agent.system import locks, paths
from tests.agent_host import ROOT, Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

NUMBERS = [sys.executable, "-u", "-c", "import itertools,time\nfor i in itertools.count(): print(i); time.sleep(0.002)"]
SLEEP = ["sleep", "600"]


@pytest.mark.slow
def test_killed_agent_touches_no_child_and_no_line_is_lost_or_doubled(host: Host, manager: FakeManager) -> None:
    """Five kill -9 under a child that prints numbered lines: same pid, adopted each time, log exact."""
    manager.assign("w1", NUMBERS, stop_grace_s=1)
    host.start()
    pid = running(manager)
    for _ in range(5):
        host.kill_agent()
        assert alive(pid)
        beats = len(manager.beats)
        host.start()
        wait_until(
            lambda beats=beats: len(manager.beats) > beats and manager.report("w1")["pid"] == pid, what="adopted"
        )
    manager.set_desired("w1", "stopped")
    wait_until(lambda: manager.state("w1") == "stopped", what="stopped")
    with open(paths.log_file(paths.worker_dir(host.directory, "w1"), 1), "rb") as file:
        written = file.read()
    wait_until(lambda: manager.log("w1") == written, what="the whole log at the manager")
    lines = written.split()
    assert lines == [str(number).encode() for number in range(len(lines))] and len(lines) > 50
    assert manager.report("w1")["attempt"] == 1


def test_killed_runner_gives_a_new_attempt_after_its_tree_is_swept(host: Host, manager: FakeManager) -> None:
    """Never two children: the old one is gone before the next attempt starts."""
    manager.assign("w1", SLEEP)
    host.start()
    pid = running(manager)
    os.kill(host.status("w1")["runner_pid"], signal.SIGKILL)
    wait_until(lambda: manager.report("w1").get("attempt") == 2 and manager.state("w1") == "running", what="attempt 2")
    assert not alive(pid)
    assert manager.report("w1")["pid"] != pid


def test_stop_and_start_converge_and_settled_stays_settled(host: Host, manager: FakeManager) -> None:
    """desired and generation decide; a finished worker runs again only for a new generation, also after a restart of
    the agent."""
    manager.assign("w1", ["true"])
    host.start()
    wait_until(lambda: manager.state("w1") == "exited", what="exited")
    host.kill_agent()
    beats = len(manager.beats)
    host.start()
    wait_until(lambda: len(manager.beats) > beats + 3, what="several heartbeats")
    assert manager.state("w1") == "exited" and manager.report("w1")["attempt"] == 1
    manager.set_desired("w1", "running")
    wait_until(lambda: manager.report("w1")["attempt"] == 2, what="a new attempt for the new generation")
    manager.set_desired("w1", "stopped")
    wait_until(lambda: manager.report("w1")["generation"] == 3, what="the stop seen, with nothing left to do")


def test_commands_act_once_on_the_attempt_they_mean(host: Host, manager: FakeManager) -> None:
    """Duplicate, late and mistargeted commands cause one restart."""
    manager.assign("w1", SLEEP)
    host.start()
    running(manager)
    first = manager.command("w1", "restart", 1)
    wait_until(lambda: manager.result(first), what="its result")
    wait_until(lambda: manager.report("w1")["attempt"] == 2, what="attempt 2")
    host.kill_agent()  # the new process gets every command again
    host.start()
    late = manager.command("w1", "restart", 2, ttl_s=0.0)
    wrong = manager.command("w1", "kill", 1)
    gone = manager.command("nobody", "restart", 1)
    for command_id, status in ((late, "expired"), (wrong, "failed"), (gone, "failed")):
        found = wait_until(lambda command_id=command_id: manager.result(command_id), what=f"the result of {command_id}")
        assert found["status"] == status, found
    wait_until(lambda: len([one for one in manager.results if one["command_id"] == first]) == 2, what="answered again")
    assert manager.result(first)["status"] == "done"  # type: ignore[index]
    assert host.status("w1")["attempt"] == 2


def test_a_kill_gives_the_child_no_time_though_a_stop_comes_with_it(
    host: Host, manager: FakeManager, tmp_path: Path
) -> None:
    """One reply carries "kill" and "desired: stopped": SIGKILL at once, not the stop signal first."""
    asked = tmp_path / "asked-to-end"
    trap = f"trap 'touch {asked}; exit 0' TERM; while :; do sleep 0.05; done"
    manager.assign("w1", ["/bin/sh", "-c", trap])
    host.start()
    running(manager)
    with manager.changed:
        manager.set_desired("w1", "stopped")
        kill = manager.command("w1", "kill", 1)
    wait_until(lambda: manager.report("w1")["state"] == "stopped", what="stopped")
    found = wait_until(lambda: manager.result(kill), what="the kill's result")
    assert found["status"] == "done"
    assert manager.report("w1")["last_exit"]["signal"] == signal.SIGKILL
    assert not asked.exists()


def test_children_and_crashes_go_on_without_a_manager(host: Host, manager: FakeManager) -> None:
    """Manager unreachable: a crashed child is restarted nevertheless, and its events arrive afterwards."""
    manager.assign("w1", SLEEP)
    host.start()
    pid = running(manager)
    wait_until(lambda: manager.events and manager.events[-1]["after"] == "running", what="first events")
    port, before = manager.port, manager.assignments
    manager.close()
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: host.status("w1").get("attempt") == 2, what="attempt 2 without a manager")
    second = FakeManager(port=port)
    try:
        second.know("h1")
        second.assignments = before
        wait_until(lambda: any(event["attempt"] == 2 for event in second.events), 15, "events of the absence")
        assert second.report("w1")["attempt"] == 2
        assert all(event["attempt"] == 2 for event in second.events)  # the others were acknowledged before
    finally:
        second.close()


def test_assignments_outlive_a_power_cut_of_everything(host: Host, manager: FakeManager) -> None:
    """Agent, runner and child killed at once, no manager reachable: the worker runs again, as a higher attempt."""
    manager.assign("w1", SLEEP)
    manager.assign("rests", SLEEP, desired="stopped")
    host.start()
    pid = running(manager)
    manager.close()
    host.kill_agent()
    os.kill(host.status("w1")["runner_pid"], signal.SIGKILL)
    os.kill(pid, signal.SIGKILL)
    host.start()
    wait_until(lambda: host.status("w1").get("attempt") == 2, what="a second attempt")
    wait_until(lambda: host.status("w1").get("state") == "running", what="running again")
    assert host.status("rests") == {}


def test_removed_worker_ends_is_shipped_and_leaves_no_directory(host: Host, manager: FakeManager) -> None:
    """desired removed: it is stopped, its last bytes are sent to the manager, then it is forgotten."""
    manager.assign("w1", ["sh", "-c", "trap 'echo goodbye; exit 0' TERM; echo up; while :; do sleep 0.05; done"])
    host.start()
    running(manager)
    manager.set_desired("w1", "removed")
    wait_until(lambda: manager.beats[-1]["workers"] == [], what="no longer reported")
    assert b"goodbye" in manager.log("w1")
    assert os.listdir(paths.workers_dir(host.directory)) == []
    assert manager.events[-1]["after"] == "stopped"


def test_worker_no_longer_assigned_runs_on(host: Host, manager: FakeManager) -> None:
    """A manager that lost its memory kills nothing."""
    manager.assign("w1", SLEEP)
    host.start()
    pid = running(manager)
    manager.unassign("w1")
    wait_until(lambda: manager.beats[-1]["assignments_rev"] == manager.rev, what="the empty list taken over")
    assert alive(pid) and manager.report("w1")["pid"] == pid


def test_missing_command_is_one_clear_failure(host: Host, manager: FakeManager) -> None:
    """Failed at once, with the command in the reason."""
    manager.assign("w1", ["no-such-program-here"])
    manager.assign("w2", "echo 'unbalanced")
    host.start()
    wait_until(lambda: manager.state("w1") == manager.state("w2") == "failed", what="both failed")
    assert "no-such-program-here" in manager.report("w1")["reason"]
    assert "split" in manager.report("w2")["reason"]


def test_failing_health_check_with_action_restart_restarts(host: Host, manager: FakeManager) -> None:
    """And is reported with its detail before."""
    check = HealthCheck("exec", command="false", interval_s=0.5, failures=1, start_grace_s=0.2, action="restart")
    manager.assign("w1", SLEEP, health=[check], restart=RestartPolicy(start_secs=0.1, max_attempts=1))
    host.start()
    wait_until(lambda: manager.report("w1").get("attempt") == 2, what="restarted for its health")
    wait_until(lambda: any("`false` ended with 1" in event["reason"] for event in manager.events), what="its reason")


def test_second_agent_of_a_directory_refuses_and_names_the_first(host: Host) -> None:
    """agent.lock is a flock: no stale lock ever blocks, no second agent ever runs."""
    first = host.start()
    wait_until(lambda: locks.lock_held(paths.agent_lock(host.runtime_dir)), what="the lock")
    wait_until(lambda: os.path.exists(paths.agent_pid_file(host.runtime_dir)), what="the pid file")
    command = [sys.executable, "-m", "remote_agent", "run", "--dir", host.directory]
    second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert second.returncode == 1 and f"pid {first.pid}" in second.stderr and "Traceback" not in second.stderr


def test_agent_json_of_another_host_is_refused(host: Host, tmp_path: Path) -> None:
    """A copied directory belongs to no agent."""
    copy = paths.agent_dir(str(tmp_path / "home"), "fleet-1", "h2")
    shutil.copytree(host.directory, copy)
    with pytest.raises(settings.SettingsError, match="belongs to host h1 of fleet fleet-1"):
        settings.load(copy)
    command = [sys.executable, "-m", "remote_agent", "run", "--dir", copy]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False)
    assert found.returncode == 1 and "Traceback" not in found.stderr


def test_status_and_tail_work_without_a_manager(host: Host, manager: FakeManager) -> None:
    """For users on the host."""
    manager.assign("w1", ["sh", "-c", "echo hello from w1; exec sleep 600"])
    host.start()
    pid = running(manager)
    command = [sys.executable, "-m", "remote_agent"]
    status = subprocess.run(
        [*command, "status", "--dir", host.directory], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "agent runs" in status.stdout and f"pid {pid}" in status.stdout
    tail = subprocess.run(
        [*command, "tail", "w1", "--dir", host.directory], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert tail.stdout == "hello from w1\n"


def test_refused_agent_keeps_its_children_and_comes_back(host: Host, manager: FakeManager) -> None:
    """401 for a while: no worker is affected, and the agent recovers by itself."""
    manager.assign("w1", SLEEP)
    host.start()
    pid = running(manager)
    manager.refuse_status = 401
    beats = len(manager.beats)
    time.sleep(0.3)
    assert len(manager.beats) <= beats + 1 and alive(pid)
    manager.refuse_status = 0
    wait_until(lambda: len(manager.beats) > beats + 1, 20, "back again")


# --------------------------------------------------------------------------------------------------------- pure


def assignment(**fields: Any) -> Assignment:
    return Assignment("w1", WorkerSpec(command="true"), **fields)


@pytest.mark.parametrize(
    ("desired", "generation", "status", "needed"),
    [
        ("running", 1, {}, True),
        ("stopped", 1, {}, False),
        ("running", 1, {"state": "running", "generation": 1}, True),
        ("stopped", 2, {"state": "running", "generation": 1}, True),
        ("running", 1, {"state": "exited", "generation": 1}, False),
        ("running", 2, {"state": "failed", "generation": 1}, True),
        ("running", 1, {"state": "stopped", "generation": 1, "held": True}, False),
        ("running", 1, {"state": "stopped", "generation": 1, "held": False}, True),
        ("removed", 2, {"state": "exited", "generation": 1}, False),
    ],
)
def test_who_needs_a_runner(desired: Any, generation: int, status: dict[str, Any], needed: bool) -> None:
    """Unsettled: always, to sweep or to continue. Settled: only if it should start again."""
    assert runner_needed(assignment(desired=desired, generation=generation), status) is needed
    assert runner_needed(None, status) is False


def test_late_answers_never_turn_the_clock_back() -> None:
    """Epoch first, then generation."""
    now = assignment(epoch=5, generation=3)
    assert supersedes(assignment(epoch=5, generation=3), now) and supersedes(assignment(epoch=6, generation=1), now)
    assert not supersedes(assignment(epoch=4, generation=9), now) and not supersedes(
        assignment(epoch=5, generation=2), now
    )


def test_event_tail_reads_beyond_the_acknowledged_and_survives_a_rewrite(tmp_path: Path) -> None:
    """The runner may replace the file at any time; half a line is left for later."""
    path = tmp_path / "events.jsonl"

    def line(seq: int) -> str:
        event = {
            "worker_id": "w",
            "seq": seq,
            "at": 0,
            "attempt": 1,
            "before": "stopped",
            "after": "starting",
            "reason": "",
        }
        return json.dumps(event) + "\n"

    path.write_text(line(1) + line(2) + line(3)[:20])
    tail = EventTail(str(path))
    assert [event.seq for event in tail.pending(1, 500)] == [2]
    path.unlink()
    path.write_text(line(2) + line(3) + line(4))
    assert [event.seq for event in tail.pending(2, 500)] == [3, 4]
    assert [event.seq for event in tail.pending(2, 1)] == [3]
    assert tail.pending(4, 500) == []


# ------------------------------------------------------------------------------------------------ grants


def test_a_grant_is_returned_and_survives_the_agent_the_assignment_and_an_earlier_release(
    host: Host, manager: FakeManager
) -> None:
    """A manager with an older state requests it, also for a worker that it no longer knows."""
    manager.assign("w1", SLEEP, epoch=7_000_001, grant="ab" * 16)
    host.start()
    pid = running(manager)
    wait_until(lambda: manager.report("w1").get("grant") == "ab" * 16, what="the grant in a report")
    host.kill_agent()
    beats = len(manager.beats)
    host.start()
    wait_until(lambda: len(manager.beats) > beats, what="the first heartbeat of the next agent")
    first = manager.beats[beats]["workers"]
    assert [(one["worker_id"], one["grant"]) for one in first] == [("w1", "ab" * 16)]
    manager.unassign("w1")
    wait_until(lambda: manager.beats[-1]["assignments_rev"] == manager.rev, what="w1 assigned to nobody")
    host.kill_agent()
    beats = len(manager.beats)
    host.start()
    wait_until(lambda: len(manager.beats) > beats + 1, what="heartbeats")
    assert manager.report("w1")["grant"] == "ab" * 16 and manager.report("w1")["epoch"] == 7_000_001
    assert alive(pid)
