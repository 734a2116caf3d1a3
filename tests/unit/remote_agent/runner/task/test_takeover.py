"""What a runner takes over from the record of a former one: the budget, a pending start, the lease. A simulated host.

Most were found by random histories (tests/unit/fleet/test_histories.py).
"""

from __future__ import annotations

import pytest

from tests.unit.task_runner_rig import BOOT_S, GRACE_S, KILL, TaskRunnerRig


def power_fails_and_comes_back(host: TaskRunnerRig) -> None:
    """The agent checks, and the manager grants a lease to each worker that should run."""
    host.reboot()
    host.pass_time(0.1)
    host.grant()
    host.pass_time(0.1)


POLICY: dict[str, object] = {"max_attempts": 1, "backoff_s": [0.0], "jitter": 0.0, "start_secs": 0.0}


def restarted_once(lease_s: float | None) -> TaskRunnerRig:
    host = TaskRunnerRig(POLICY, lease_s=lease_s)
    with host.in_place():
        host.grant()
        host.converge()
        host.end_child(1 << 8)
        host.advance()
    assert (host.state["attempt"], host.state["restarts"]) == (2, 1)
    return host


@pytest.mark.parametrize(("lease_s", "cut_short"), [(None, True), (30.0, True), (30.0, False)])
def test_a_shutdown_gives_no_budget_back_nor_calls_itself_an_operator(lease_s: float | None, cut_short: bool):
    """Its only restart was used before the power cut, so the next failure is final."""
    host = restarted_once(lease_s)
    with host.in_place():
        if cut_short:
            host.leave_behind(stubborn=True)
        host.terminate_runner()
        assert host.state["state"] == ("stopping" if cut_short else "stopped")
        power_fails_and_comes_back(host)
        assert (host.state["state"], host.state["attempt"], host.state["restarts"]) == ("running", 3, 1)
        assert host.events[-2]["reason"] == "started"
        power_fails_and_comes_back(host)
        assert host.attempts == [1, 2, 3] and host.state["state"] == "failed"
        assert str(host.state["reason"]).endswith("the one restart is used up")


def test_a_stop_without_leases_that_came_to_its_end_is_somebodys_and_what_is_started_then_has_a_new_budget():
    """Ctrl-C in a launcher, which is then started again."""
    host = restarted_once(None)
    with host.in_place():
        host.terminate_runner()
        assert host.state["state"] == "stopped"
        host.pass_time(1.0)
        assert (host.state["state"], host.state["attempt"], host.state["restarts"]) == ("running", 3, 0)


def test_a_shutdown_during_a_pause_gives_no_budget_back_to_what_is_fenced():
    host = TaskRunnerRig({**POLICY, "backoff_s": [3.0]}, lease_s=30.0)
    with host.in_place():
        host.grant()
        host.converge()
        host.end_child(1 << 8)
        host.advance()
        assert host.state["state"] == "backoff"
        host.terminate_runner()
        assert host.state["state"] == "stopped"
        power_fails_and_comes_back(host)
        host.end_child(1 << 8)
        host.advance()
        assert (host.state["state"], host.attempts) == ("failed", [1, 2])


def test_a_lease_that_ends_while_its_runner_dies_gives_no_budget_back():
    """As states.md specifies: the next lease starts it, with an unchanged budget."""
    host = restarted_once(30.0)
    with host.in_place():
        host.leave_behind(stubborn=True)
        host.now += 30.0
        host.advance()
        assert host.state["state"] == "stopping"
        host.kill_runner()
        host.pass_time(GRACE_S + 1.0)
        assert host.state["state"] == "stopped" and not host.alive
        host.grant()
        host.pass_time(1.0)
        assert (host.state["state"], host.state["attempt"], host.state["restarts"]) == ("running", 3, 1)


@pytest.mark.parametrize("received", [True, False])
def test_an_operators_start_during_a_shutdown_has_its_new_budget_after_a_power_cut(received: bool):
    """Also if the next runner knows only the assignment's generation."""
    host = TaskRunnerRig({"max_attempts": 2, "backoff_s": [0.0]})
    with host.in_place():
        host.converge()
        host.end_child(KILL)
        host.advance()
        assert host.state["restarts"] == 1
        host.leave_behind(stubborn=True)
        host.terminate_runner()
        if not received:
            host.kill_runner()
        host.order("running")
        host.reboot()
        host.converge()
        assert (host.state["state"], host.state["restarts"]) == ("starting", 0)


def test_a_worker_that_ran_unfenced_before_its_host_went_down_starts_by_a_lease_of_this_boot():
    """The worker needed none then, and a lease requested before the power cut reaches no runner."""
    host = TaskRunnerRig({"max_attempts": 2, "backoff_s": [3.0], "jitter": 0.0})
    with host.in_place():
        host.converge()
        host.end_child(1 << 8)
        host.advance()
        host.terminate_runner()
        assert host.state["state"] == "stopped"
        for _ in range(2):
            host.reboot()
            host.converge()
        assert host.state["state"] == "backoff" and host.attempts == [1, 2]
        host.kill_runner()
        host.fence(30.0)
        host.grant(took_s=BOOT_S + 0.1)
        host.pass_time(5.0)
        assert (host.state["state"], host.attempts) == ("stopped", [1, 2])
        host.grant(took_s=0.1)
        host.pass_time(2.0)
        assert (host.state["state"], host.attempts) == ("running", [1, 2, 3])


def test_an_operators_restart_of_a_gangs_member_is_done_by_the_next_runner_where_the_first_dies():
    host = TaskRunnerRig({"max_attempts": 1, "start_secs": 0.0}, gang=True)
    with host.in_place():
        host.stubborn = True
        host.converge()
        host.operate({"op": "restart", "attempt": 1, "id": "c-1"})
        assert host.state["state"] == "stopping"
        host.kill_runner()
        host.pass_time(GRACE_S + 1.0)
        assert (host.state["state"], host.attempts) == ("running", [1, 2])


@pytest.mark.parametrize("took_s", [0.0, 11.0])
def test_an_agent_gets_no_answer_to_what_a_dead_one_asked(took_s: float):
    """Fenced, kept and fenced again: the first lease starts nothing; the lease that it requests itself does."""
    host = TaskRunnerRig({"max_attempts": 1, "start_secs": 0.0, "backoff_s": [0.0]}, lease_s=30.0)
    with host.in_place():
        host.grant()
        host.converge()
        host.pass_time(10.0)
        host.terminate_runner()
        host.fence(None)
        host.converge()
        assert (host.state["state"], host.attempts) == ("starting", [1, 2])
        host.agent_dies()
        host.kill_runner()
        host.fence(30.0)
        host.grant(took_s)
        host.pass_time(3.0)
        assert host.attempts == ([1, 2] if took_s else [1, 2, 3])
