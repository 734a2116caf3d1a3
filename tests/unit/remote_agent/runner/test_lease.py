"""A fenced worker on a real runner: nothing of it runs outside its lease and stop grace, whatever process has died."""

from __future__ import annotations

import os
import pwd
import signal
import sys
import time
from pathlib import Path

import pytest

from remote_agent.runner import control
from remote_agent.runner.leases import AWAITS_LEASE, boottime_ns
from remote_agent.system import paths, processes
from tests.unit.runner_rig import FOREVER, Rig, alive
from tests.waiting import wait_until

# A lease long enough for a start on a machine that has much else to do; PyPy takes its time for that anyway.
SHORT_S = 2.5 if sys.implementation.name == "cpython" else 8.0
STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"


def seconds_after(rig: Rig) -> float:
    """Since the end of the lease that the runner was given at its start."""
    assert rig.lease
    return (boottime_ns() - rig.lease[1]) / 1e9


@pytest.mark.slow
def test_the_end_of_a_lease_stops_the_child_and_says_why(rig: Rig):
    """No other process exists; it is stopped, but not held, and may run again with a new lease."""
    rig.shell(FOREVER).fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    assert rig.status["fenced"] and rig.status["lease_epoch"] == 1_000_001
    state = rig.until("stopped")
    assert not alive(pid) and 0.0 <= seconds_after(rig) < 5.0
    assert state["reason"].startswith(
        "its lease ended: no renewal from the manager for 1 min; stopped so that it may run elsewhere"
    )
    rig.runner_gone()
    assert not rig.state()["held"] and rig.state()["lease_until_ns"] == 0
    rig.fence(30.0).run()
    assert rig.until("running", attempt=2)["restarts"] == 0


@pytest.mark.slow
def test_renewals_keep_the_child_and_are_no_news(rig: Rig):
    """Each would otherwise be answered by a heartbeat, which brings the next one."""
    rig.shell(FOREVER).fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    reported = len(rig.said)
    deadline = time.monotonic() + SHORT_S + 1.0
    while time.monotonic() < deadline:
        rig.grant(SHORT_S)
        rig.pump()
        time.sleep(0.05)
    assert alive(pid) and len(rig.said) == reported
    assert rig.until("stopped")["attempt"] == 1


@pytest.mark.slow
def test_a_child_that_resists_is_killed_when_the_grace_is_over(rig: Rig):
    rig.shell(STUBBORN, stop_grace_s=1.0).fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    rig.until("stopping")
    assert alive(pid)
    state = rig.until("stopped")
    assert not alive(pid) and 1.0 <= seconds_after(rig) < 6.0
    assert "did not end within 1 s" in state["reason"]


@pytest.mark.slow
def test_a_runner_that_was_frozen_beyond_lease_and_grace_gives_no_more_grace(rig: Rig):
    """It may already run elsewhere: SIGKILL at once, without a stop signal."""
    rig.shell("trap 'sleep 30; echo saved' TERM; echo up; while :; do sleep 0.05; done", stop_grace_s=3.0)
    rig.fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    os.kill(rig.status["runner_pid"], signal.SIGSTOP)
    try:
        wait_until(lambda: seconds_after(rig) > 3.2, SHORT_S + 10, "the end of lease and grace")
        assert alive(pid)
    finally:
        os.kill(rig.status["runner_pid"], signal.SIGCONT)
    wait_until(lambda: not alive(pid), 5.0, "its end")
    rig.until("stopped")


@pytest.mark.slow
def test_a_frozen_runner_whose_lease_was_renewed_meanwhile_goes_on(rig: Rig):
    """Renewals may wait in its socket behind other messages; they are read before the clock decides."""
    rig.shell(FOREVER).fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    assert rig.link
    os.kill(rig.status["runner_pid"], signal.SIGSTOP)
    try:
        rig.link.assign()
        rig.grant(30.0)
        wait_until(lambda: seconds_after(rig) > 0.3, 10, "the end of the first lease")
    finally:
        os.kill(rig.status["runner_pid"], signal.SIGCONT)
    rig.link.restart(7, "c-7")  # of another attempt: answered by a runner that is awake
    rig.result("c-7")
    assert alive(pid) and rig.status["state"] == "running"


def test_command_that_waited_in_a_frozen_runner_expires(rig: Rig):
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    assert rig.link
    os.kill(rig.status["runner_pid"], signal.SIGSTOP)
    until_ns = boottime_ns() + 200_000_000
    try:
        rig.link.restart(1, "c-1", until_ns)
        wait_until(lambda: boottime_ns() > until_ns, 5, "its expiry")
    finally:
        os.kill(rig.status["runner_pid"], signal.SIGCONT)
    assert rig.result("c-1")["status"] == "expired"
    assert alive(pid) and rig.state()["attempt"] == 1


def test_crash_inside_a_lease_is_restarted_at_once(rig: Rig):
    rig.shell(FOREVER).fence(30.0).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    status = rig.until("running", attempt=2)
    assert status["restarts"] == 1 and "backoff" not in rig.passed_through()


def test_without_a_lease_nothing_starts(rig: Rig):
    """Neither with none nor with one that has ended, nor with one of another epoch."""
    rig.shell(FOREVER).fence(30.0)
    for lease in (None, (1_000_001, boottime_ns() - 1), (1_000_000, boottime_ns() + 10**11)):
        rig.lease = lease
        rig.run()
        rig.runner_gone()
        state = rig.state()
        assert (state["state"], state["attempt"], state["held"]) == ("stopped", 0, False)
        assert AWAITS_LEASE in state["reason"]
    assert rig.log() == "" and not os.path.exists(paths.log_file(rig.worker_dir, 1))


@pytest.mark.parametrize("state", ["exited", "failed"])
def test_start_of_a_settled_worker_without_a_lease_is_not_lost(rig: Rig, state: str):
    """The generation that wants it is acted on once there is a lease."""
    rig.shell("exit 0" if state == "exited" else "exit 1", restart={"policy": "never"}).fence(30.0).run()
    rig.until(state)
    rig.runner_gone()
    rig.assignment.update(generation=2)
    rig.lease = None
    rig.run()
    rig.runner_gone()
    assert rig.state()["attempt"] == 1 and rig.state()["generation"] < 2
    rig.shell(FOREVER).fence(30.0).run()
    assert rig.until("running")["generation"] == 2


def test_lease_of_this_boot_outlives_its_runner_and_one_of_another_boot_does_not(rig: Rig):
    """state.json keeps it, with the boot that it counts in."""
    rig.shell(FOREVER).fence(60.0).run()
    rig.until("running")
    rig.kill_runner()
    rig.lease = None
    rig.run()
    rig.until("running", attempt=2)
    rig.kill_runner()
    state = rig.state()
    paths.write_json(paths.state_file(rig.worker_dir), {**state, "boot_id": "another boot"})
    rig.run()
    rig.runner_gone()
    after = rig.state()
    assert (after["state"], after["attempt"], after["held"]) == ("stopped", 2, False)
    assert "the host went down while it ran" in after["reason"] and AWAITS_LEASE in after["reason"]
    assert after["restarts"] == 2, "a reboot gives no budget back: a job that takes its host down is no endless loop"


def test_killed_runner_takes_its_child_along(rig: Rig):
    """By the kernel, at once: with runner and agent dead no other process would end it with its lease."""
    rig.shell(FOREVER).fence(60.0).run()
    pid = rig.until("running")["pid"]
    rig.kill_runner()
    wait_until(lambda: not alive(pid), 5.0, "the child's end")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run as another user")
@pytest.mark.parametrize("how", ["another user", "setup lines", "limits"])
def test_child_that_is_started_in_another_way_dies_with_its_runner_too(rig: Rig, how: str):
    """A change of user would clear it if it were set before; a shell in between passes it on."""
    nobody = pwd.getpwnam("nobody")
    run_as = {"name": "nobody", "uid": nobody.pw_uid, "gid": nobody.pw_gid, "groups": [nobody.pw_gid], "home": "/"}
    ways = {
        "another user": {"run_as": run_as},
        "setup lines": {"setup": ["export A=1"]},
        "limits": {"rlimits": [["core", "RLIMIT_CORE", 0]]},
    }
    rig.shell(FOREVER).fence(60.0)
    rig.assignment.update(start=ways[how], cwd="/")
    rig.run()
    pid = rig.until("running")["pid"]
    assert os.stat(f"/proc/{pid}").st_uid == (nobody.pw_uid if how == "another user" else 0)
    rig.kill_runner()
    wait_until(lambda: not alive(pid), 5.0, "the child's end")


def test_what_a_dead_runner_s_child_left_is_ended_before_anything_starts(rig: Rig):
    """A double fork outlives runner and child; the next runner sweeps it, and without a lease starts nothing."""
    rig.shell("(setsid sleep 1000 &); echo up; exec sleep 1000", stop_grace_s=1).fence(60.0).run()
    pid = rig.until("running")["pid"]
    rig.logged(1)
    daemon = next(member.pid for member in rig.survivors() if member.pid != pid)
    rig.kill_runner()
    wait_until(lambda: not alive(pid), 5.0, "the child's end")
    assert alive(daemon)
    state = rig.state()
    paths.write_json(paths.state_file(rig.worker_dir), {**state, "lease_until_ns": 1})
    rig.lease = None
    rig.run()
    rig.runner_gone()
    assert not alive(daemon) and rig.state()["state"] == "stopped" and rig.state()["attempt"] == 1


@pytest.mark.slow
def test_late_doubled_and_reordered_grants(rig: Rig):
    """Of one epoch the latest lease applies, in any order of arrival; a lower epoch is ignored; no lease is
    shortened."""
    rig.shell(FOREVER).fence(SHORT_S, epoch=5).run()
    pid = rig.until("running")["pid"]
    rig.grant(SHORT_S + 1.5, epoch=5)
    rig.grant(0.1, epoch=5)
    rig.grant(0.1, epoch=5)
    rig.grant(900.0, epoch=4)
    wait_until(lambda: seconds_after(rig) > 0.5, 10, "the end of the first lease")
    assert alive(pid)
    rig.until("stopped")
    assert 1.0 < seconds_after(rig) < 10.0


@pytest.mark.slow
def test_lease_of_an_epoch_to_come_keeps_nothing_of_this_one(rig: Rig):
    """The manager has started it elsewhere, and this runner does not know: the instance ends with its own lease."""
    rig.shell(FOREVER).fence(SHORT_S, epoch=5).run()
    pid = rig.until("running")["pid"]
    rig.grant(900.0, epoch=6)
    rig.until("stopped")
    assert not alive(pid)


def test_higher_epoch_with_a_new_generation_restarts_it(rig: Rig):
    """The old child is gone before the new one starts, under the lease that came with the assignment."""
    rig.shell("echo epoch $PROCGUARD_EPOCH; exec sleep 1000").fence(30.0, epoch=5).run()
    old = rig.until("running")["pid"]
    assert rig.link
    rig.write_spec(epoch=6, generation=2)
    rig.grant(30.0, epoch=6)
    rig.link.assign()
    status = rig.until("running", attempt=2)
    assert not alive(old) and status["epoch"] == 6 and status["lease_epoch"] == 6 and status["restarts"] == 0
    assert rig.logged(1, attempt=2) == ["epoch 6"]
    assert "restarted by the manager under a new epoch" in [event["reason"] for event in rig.events()]


def test_higher_epoch_whose_lease_has_not_come_stops_the_old_child_in_order_and_waits(rig: Rig):
    """It has the grace that its own lease leaves it, and nothing starts."""
    rig.shell("trap 'sleep 0.5; echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done")
    rig.fence(30.0, epoch=5).run()
    rig.until("running")
    assert rig.link
    rig.write_spec(epoch=6, generation=2)
    rig.link.assign()
    state = rig.until("stopped")
    assert "saved" in rig.log() and state["generation"] == 2 and not state["held"]
    assert AWAITS_LEASE in state["reason"]


def test_switching_to_fence_never_touches_the_child_and_binds_it_from_its_first_lease(rig: Rig):
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    assert rig.link and not rig.status["fenced"]
    rig.write_spec(lease_s=60.0)
    rig.status = {}
    rig.link.assign()
    rig.until("running")
    assert not rig.status["fenced"] and alive(pid)
    rig.status = {}
    rig.grant(1.0)
    assert rig.until("running")["fenced"] and alive(pid)
    rig.until("stopped")
    assert not alive(pid)


def test_crash_of_a_child_that_was_switched_to_fence_waits_for_the_first_lease(rig: Rig):
    rig.shell(FOREVER).run()
    pid = rig.until("running")["pid"]
    assert rig.link
    rig.write_spec(lease_s=60.0)
    rig.status = {}
    rig.link.assign()
    rig.until("running")
    os.kill(pid, signal.SIGKILL)
    state = rig.until("stopped")
    assert AWAITS_LEASE in state["reason"] and state["last_exit"]["signal"] == 9
    assert rig.passed_through()[-2:] == ["stopping", "stopped"]


@pytest.mark.slow
def test_switching_back_to_keep_lifts_the_fence_at_once(rig: Rig):
    rig.shell(FOREVER).fence(SHORT_S).run()
    pid = rig.until("running")["pid"]
    assert rig.link
    rig.write_spec(lease_s=None)
    rig.status = {}
    rig.link.assign()
    assert not rig.until("running")["fenced"]
    wait_until(lambda: seconds_after(rig) > 0.5, 10, "the end of the lease")
    assert alive(pid)


@pytest.mark.slow
def test_backoff_outlives_a_short_gap_between_leases_and_no_start_happens_in_one(rig: Rig):
    rig.shell("exit 1", restart={"backoff_s": [SHORT_S + 1.5]}).fence(SHORT_S).run()
    rig.until("backoff")
    wait_until(lambda: seconds_after(rig) > 0.1, 10, "the end of the lease")
    rig.grant(30.0)
    rig.until("backoff", attempt=2)
    assert "stopped" not in rig.passed_through()


@pytest.mark.slow
def test_pause_that_ends_without_a_lease_ends_in_stopped(rig: Rig):
    rig.shell("exit 1", restart={"backoff_s": [SHORT_S + 0.5]}).fence(SHORT_S).run()
    state = rig.until("stopped")
    assert state["attempt"] == 1 and state["restarts"] == 1 and AWAITS_LEASE in state["reason"]


@pytest.mark.slow
def test_post_stop_has_the_time_that_the_grace_leaves(rig: Rig, tmp_path: Path):
    """Nothing of the worker runs beyond it, hooks included."""
    marks = tmp_path / "marks"
    hook = {"argv": ["/bin/sh", "-c", f"echo began >> {marks}; exec sleep 600"], "shown": "sleep", "timeout_s": 600.0}
    rig.shell(FOREVER, stop_grace_s=1.0).fence(SHORT_S)
    rig.assignment["start"] = {"post_stop": [hook, hook]}
    rig.run()
    rig.until("running")
    state = rig.until("stopped")
    assert 0.9 < seconds_after(rig) < 6.0 and not rig.survivors()
    assert "post_stop had no time left after the end of its lease" in state["reason"]
    assert marks.read_text().split() == ["began"]


@pytest.mark.slow
def test_finished_is_finished_though_the_lease_ended_before_the_runner_could_check(rig: Rig):
    """Its result counts: a finished job is not run again elsewhere."""
    rig.shell("echo up; sleep 1; exit 0", restart={"start_secs": 0.01}).fence(SHORT_S).run()
    rig.logged(1)
    os.kill(rig.runner_identity().pid, signal.SIGSTOP)
    try:
        wait_until(lambda: seconds_after(rig) > 0.2, 10, "the end of the lease")
    finally:
        os.kill(rig.runner_identity().pid, signal.SIGCONT)
    assert rig.until("exited")["last_exit"]["code"] == 0


def test_operator_s_stop_under_a_lease_holds_and_a_lease_starts_nothing_after_it(rig: Rig):
    rig.shell(FOREVER).fence(30.0).run()
    rig.until("running")
    assert rig.link
    rig.write_spec(desired="stopped", generation=2)
    rig.link.assign()
    rig.until("stopped")
    rig.runner_gone()
    assert rig.state()["held"] and rig.state()["lease_until_ns"] == 0


def test_runner_of_a_fenced_worker_is_as_small_as_any(rig: Rig):
    rig.shell(FOREVER).fence(60.0).run()
    rig.until("running")
    for _ in range(50):
        rig.grant(60.0)
    assert rig.link
    rig.link.restart(7, "c-7")
    rig.result("c-7")
    rollup = Path(f"/proc/{rig.status['runner_pid']}/smaps_rollup").read_text()
    resident_kib = next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:"))
    assert resident_kib < 12 * 1024


def test_usage_of_a_lease_argument_that_is_none(rig: Rig):
    rig.lease = (1, -1)
    assert rig.shell(FOREVER).run() == control.EXIT_USAGE


def test_clock_of_leases_is_not_the_one_that_people_set():
    assert abs(boottime_ns() / 1e9 - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5.0
    assert processes.boot_id()
