"""Fenced workers under a complete agent: they start only with a lease of the manager and stop without one."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from remote_agent.runner.leases import AWAITS_LEASE
from remote_agent.system import paths
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

SLEEP = ["sleep", "600"]
# Long enough for a start on a machine that has much else to do; PyPy takes its time for that anyway.
SHORT_S = 4.0 if sys.implementation.name == "cpython" else 12.0


def wait_longer_than_a_lease() -> None:
    began = time.monotonic()
    wait_until(lambda: time.monotonic() > began + SHORT_S + 0.5, SHORT_S + 10, "time to pass")


def test_fenced_worker_starts_with_its_first_lease_and_says_how_long_it_may_run(
    host: Host, manager: FakeManager
) -> None:
    """The assignment comes with a poll, which carries no lease: a heartbeat fetches one at once."""
    manager.assign("other", SLEEP)
    host.start()
    running(manager, "other")
    manager.interval_s = 30.0
    wait_until(lambda: not manager.beats[-1]["events"], what="quiet")
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=45.0)
    began = time.monotonic()
    running(manager)
    assert time.monotonic() - began < 10.0, "long before the next regular heartbeat"
    assert 0.0 < manager.report("w1")["lease_left_s"] <= 45.0
    assert manager.report("other")["lease_left_s"] is None
    assert host.status("w1")["fenced"]


@pytest.mark.slow
def test_nothing_starts_while_the_manager_withholds_the_lease(host: Host, manager: FakeManager) -> None:
    manager.withheld.add("w1")
    manager.assign("w1", SLEEP, on_partition="fence")
    host.start()
    wait_until(lambda: AWAITS_LEASE in manager.report("w1").get("reason", ""), what="its reason")
    beats = len(manager.beats)
    wait_until(lambda: len(manager.beats) > beats + 3, what="some heartbeats")
    report = manager.report("w1")
    assert (report["state"], report["attempt"], report["lease_left_s"]) == ("stopped", 0, 0.0)
    manager.withheld.clear()
    running(manager)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_without_its_agent_a_fenced_child_ends_with_its_lease_and_a_kept_one_runs_on(
    host: Host, manager: FakeManager, how: str
) -> None:
    manager.assign("kept", SLEEP)
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=SHORT_S)
    host.start()
    kept, fenced = running(manager, "kept"), running(manager)
    wait_longer_than_a_lease()
    assert alive(fenced) and manager.report("w1")["attempt"] == 1
    assert host.agent is not None
    if how == "killed":
        host.kill_agent()
    else:
        os.kill(host.agent.pid, signal.SIGSTOP)
    began = time.monotonic()
    try:
        wait_until(lambda: not alive(fenced), SHORT_S + 15, "the end of the fenced child")
        assert time.monotonic() - began > SHORT_S / 2
        wait_until(lambda: host.status("w1")["state"] == "stopped", 5, "its state")
    finally:
        if how == "frozen":
            os.kill(host.agent.pid, signal.SIGCONT)
    if how == "killed":
        host.start()
    wait_until(lambda: manager.report("w1").get("attempt") == 2 and manager.state("w1") == "running", 20, "again")
    assert alive(kept) and manager.report("kept")["attempt"] == 1
    assert any("its lease ended" in event["reason"] for event in manager.events)


@pytest.mark.slow
def test_without_its_manager_a_fenced_child_ends_and_returns_with_the_manager(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=SHORT_S)
    host.start()
    pid = running(manager)
    port, before = manager.port, manager.assignments
    manager.close()
    wait_until(lambda: not alive(pid), SHORT_S + 15, "the end of the child")
    wait_until(lambda: host.status("w1")["state"] == "stopped", 5, "its state")
    second = FakeManager(port=port)
    try:
        second.know("h1")
        second.assignments = before
        wait_until(lambda: second.state("w1") == "running", 20, "running again")
        assert second.report("w1")["attempt"] == 2 and second.report("w1")["restarts"] == 0
    finally:
        second.close()


@pytest.mark.slow
def test_agent_and_runner_dead_the_next_agent_starts_it_only_by_a_lease(host: Host, manager: FakeManager) -> None:
    """The kernel ends the child with its runner; processes found at the agent's start are swept, nothing more."""
    manager.assign("w1", ["sh", "-c", "setsid sleep 600 & exec sleep 600"], on_partition="fence", lease_s=SHORT_S)
    host.start()
    pid = running(manager)
    runner = host.status("w1")["runner_pid"]
    manager.withheld.add("w1")
    host.kill_agent()
    os.kill(runner, signal.SIGKILL)
    wait_until(lambda: not alive(pid), 5, "the child's end")
    wait_longer_than_a_lease()
    host.start()
    wait_until(lambda: manager.state("w1") == "stopped", 20, "the sweep")
    assert manager.report("w1")["attempt"] == 1 and AWAITS_LEASE in manager.report("w1")["reason"]
    manager.withheld.clear()
    wait_until(lambda: manager.report("w1")["attempt"] == 2 and manager.state("w1") == "running", 20, "again")


@pytest.mark.slow
def test_leases_shorter_than_the_manager_s_interval_are_renewed_in_time(host: Host, manager: FakeManager) -> None:
    """Agents of a large fleet have a long heartbeat interval; that of a fenced worker is as short as its lease
    needs."""
    manager.interval_s = 30.0
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=SHORT_S)
    host.start()
    pid = running(manager)
    wait_longer_than_a_lease()
    wait_longer_than_a_lease()
    assert alive(pid) and manager.report("w1")["attempt"] == 1


def test_killed_runner_inside_a_lease_is_restarted_as_ever(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=60.0)
    host.start()
    pid = running(manager)
    os.kill(host.status("w1")["runner_pid"], signal.SIGKILL)
    wait_until(lambda: manager.report("w1").get("attempt") == 2 and manager.state("w1") == "running", what="attempt 2")
    assert not alive(pid) and manager.report("w1")["restarts"] == 1


@pytest.mark.slow
def test_lease_that_answers_what_was_sent_before_the_end_is_worth_nothing(host: Host, manager: FakeManager) -> None:
    """The manager may learn of the end and grant the worker to another host: only a lease requested afterwards starts
    it."""
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=60.0)
    host.start()
    running(manager)
    manager.withheld.add("w1")  # from now on
    os.kill(host.status("w1")["runner_pid"], signal.SIGTERM)  # stopped, not held: a host with a lease may start it
    wait_until(lambda: manager.state("w1") == "stopped", what="stopped")
    beats = len(manager.beats)
    wait_until(lambda: len(manager.beats) > beats + 3, what="some heartbeats")
    assert manager.state("w1") == "stopped" and manager.report("w1")["lease_left_s"] == 0.0
    manager.withheld.clear()
    wait_until(lambda: manager.report("w1")["attempt"] == 2, what="attempt 2")


@pytest.mark.slow
def test_answer_that_comes_again_in_the_place_of_later_ones_renews_nothing(host: Host, manager: FakeManager) -> None:
    """The manager counts from the time of its response, however often the network delivers it."""
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=SHORT_S)
    host.start()
    pid = running(manager)
    manager.repeats = True
    wait_until(lambda: not alive(pid), SHORT_S + 15, "the end of its lease")
    beats = len(manager.beats)
    wait_until(lambda: len(manager.beats) > beats + 3, what="some heartbeats")
    assert manager.report("w1")["attempt"] == 1
    manager.repeats = False
    wait_until(lambda: manager.report("w1")["attempt"] == 2, what="attempt 2")


def test_stop_and_start_of_a_fenced_worker(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SLEEP, on_partition="fence")
    host.start()
    running(manager)
    manager.set_desired("w1", "stopped")
    wait_until(lambda: manager.state("w1") == "stopped", what="stopped")
    manager.set_desired("w1", "running")
    wait_until(lambda: manager.state("w1") == "running" and manager.report("w1")["attempt"] == 2, what="running again")


def test_new_epoch_restarts_it_on_the_same_host(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SLEEP, on_partition="fence")
    host.start()
    pid = running(manager)
    manager.assign("w1", SLEEP, on_partition="fence", epoch=2_000_001, generation=2)
    wait_until(lambda: manager.report("w1")["attempt"] == 2 and manager.state("w1") == "running", what="attempt 2")
    assert not alive(pid) and manager.report("w1")["epoch"] == 2_000_001


@pytest.mark.slow
def test_fence_and_keep_by_redeploy(host: Host, manager: FakeManager) -> None:
    """Neither affects the child; the manager may rely on the fence once a report contains the end of the lease."""
    manager.assign("w1", SLEEP)
    host.start()
    pid = running(manager)
    manager.withheld.add("w1")
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=SHORT_S)
    wait_until(lambda: manager.beats[-1]["assignments_rev"] == manager.rev, what="the change taken")
    beats = len(manager.beats)
    wait_until(lambda: len(manager.beats) > beats + 3, what="some heartbeats")
    assert alive(pid) and manager.report("w1")["lease_left_s"] is None
    manager.withheld.clear()
    wait_until(lambda: manager.report("w1")["lease_left_s"] is not None, what="the fence")
    manager.assign("w1", SLEEP)
    wait_until(lambda: manager.report("w1")["lease_left_s"] is None, what="the fence lifted")
    manager.close()
    wait_longer_than_a_lease()
    assert alive(pid)


@pytest.mark.slow
def test_reboot_starts_nothing_without_a_lease_of_this_boot(host: Host, manager: FakeManager) -> None:
    manager.assign("w1", SLEEP, on_partition="fence", lease_s=600.0)
    host.start()
    pid = running(manager)
    manager.close()
    host.kill_agent()
    os.kill(host.status("w1")["runner_pid"], signal.SIGKILL)
    wait_until(lambda: not alive(pid), 5, "the child's end")
    file = Path(paths.state_file(paths.worker_dir(host.directory, "w1")))
    paths.write_json(str(file), {**host.status("w1"), "boot_id": "another boot"})
    host.start()
    wait_until(lambda: host.status("w1")["state"] == "stopped", 10, "what the runner of this boot says")
    assert host.status("w1")["attempt"] == 1
    assert "the host went down while it ran" in host.status("w1")["reason"]
