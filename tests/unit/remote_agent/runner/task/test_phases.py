"""The table of a runner's phases: each transition happens in the test named after it, and no other is allowed."""

from __future__ import annotations

import contextlib
import inspect
import itertools
import re
import sys
from collections.abc import Callable, Iterator

import pytest

from remote_agent.runner import launch
from remote_agent.runner.task import phases, task
from tests.unit.task_runner_rig import GRACE_S, TaskRunnerRig

POLICY: dict[str, object] = {"start_secs": 1.0, "backoff_s": [30.0], "max_attempts": 3, "jitter": 0.0}
HOOKS = ("pre_start", "post_stop")
FAILED, DONE = 1 << 8, 0


class World(TaskRunnerRig):
    """A simulated host that records every change of phase."""

    history: list[tuple[str, str]]

    @property
    def last(self) -> tuple[str, str]:
        return self.history[-1]

    def running(self, *, stubborn: bool = False) -> World:
        self.stubborn = stubborn
        self.pass_time(2.0)
        if self.phase == phases.PREPARING:
            self.end_child(DONE)
            self.advance()
            self.pass_time(2.0)
        assert self.phase == phases.RUNNING
        return self

    @property
    def phase(self) -> str:
        return self.runner.task.phase if self.runner else phases.SETTLED


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    history: list[tuple[str, str]] = []
    check = phases.check

    def noted(before: str, after: str) -> None:
        check(before, after)
        history.append((before, after))

    monkeypatch.setattr(task.phases, "check", noted)
    with contextlib.ExitStack() as stack:

        def made(policy: dict[str, object], hooks: tuple[str, ...] = (), lease_s: float | None = None) -> World:
            host = World(policy, hooks, lease_s)
            host.history = history
            history.clear()
            stack.enter_context(host.in_place())
            return host

        yield made


Make = Callable[..., World]


# -------------------------------------------------------------------------------------------------------- from new


def test_new_to_deciding_when_nothing_of_the_worker_lives(make: Make) -> None:
    host = make(POLICY)
    host.converge()
    assert host.history[0] == ("new", "deciding")


def test_new_to_sweeping_when_a_killed_runner_left_processes(make: Make) -> None:
    host = make(POLICY).running(stubborn=True)
    host.kill_runner()
    host.history.clear()
    host.converge()
    assert host.history[0] == ("new", "sweeping") and host.phase == "sweeping"


# --------------------------------------------------------------------------------------------------- from sweeping


def test_sweeping_to_deciding_when_all_of_it_has_ended(make: Make) -> None:
    host = make(POLICY).running(stubborn=True)
    host.kill_runner()
    host.converge()
    host.history.clear()
    host.pass_time(GRACE_S + 1.0)
    assert host.history[0] == ("sweeping", "deciding") and not host.alive


def test_sweeping_to_post_stop_when_the_attempt_that_ended_has_hooks(make: Make) -> None:
    host = make(POLICY, HOOKS).running()
    host.kill_runner()
    host.converge()
    assert host.last == ("sweeping", "post_stop")


# --------------------------------------------------------------------------------------------------- from deciding


def test_deciding_to_preparing_when_an_attempt_begins_with_a_hook(make: Make) -> None:
    host = make(POLICY, HOOKS)
    host.converge()
    assert host.last == ("deciding", "preparing")


def test_deciding_to_starting_when_an_attempt_begins_with_its_command(make: Make) -> None:
    host = make(POLICY)
    host.converge()
    assert host.last == ("deciding", "starting")


def test_deciding_to_backoff_when_the_next_start_has_a_pause(make: Make) -> None:
    host = make(POLICY).running()
    host.end_child(FAILED)
    host.advance()
    assert host.last == ("deciding", "backoff")


def test_deciding_to_settled_when_nothing_is_to_follow(make: Make) -> None:
    host = make(POLICY).running()
    host.end_child(DONE)
    host.advance()
    assert host.last == ("deciding", "settled")


# -------------------------------------------------------------------------------------------------- from preparing


def test_preparing_to_starting_when_its_last_hook_has_done_its_work(make: Make) -> None:
    host = make(POLICY, HOOKS)
    host.converge()
    host.end_child(DONE)
    host.advance()
    assert host.last == ("preparing", "starting")


def test_preparing_to_ending_when_a_hook_takes_too_long_or_a_stop_is_asked_for(make: Make) -> None:
    for ends in (lambda host: host.pass_time(8.0), lambda host: host.order("stopped")):
        host = make(POLICY, HOOKS)
        host.converge()
        host.history.clear()
        ends(host)
        assert ("preparing", "ending") in host.history


def test_preparing_to_deciding_when_a_hook_failed(make: Make) -> None:
    host = make(POLICY, ("pre_start",))
    host.converge()
    host.end_child(FAILED)
    host.advance()
    assert host.history[-2:] == [("preparing", "deciding"), ("deciding", "backoff")]


def test_preparing_to_post_stop_when_a_hook_failed_and_others_clean_up(make: Make) -> None:
    host = make(POLICY, HOOKS)
    host.converge()
    host.end_child(FAILED)
    host.advance()
    assert host.last == ("preparing", "post_stop")


# --------------------------------------------------------------------------------------------------- from starting


def test_starting_to_running_when_it_has_lived_for_start_secs(make: Make) -> None:
    host = make(POLICY)
    host.pass_time(1.5)
    assert host.last == ("starting", "running")


def test_starting_to_ending_when_it_is_not_ready_in_time_or_a_stop_is_asked_for(make: Make) -> None:
    slow = {**POLICY, "start_secs": 60.0, "start_timeout_s": 5.0}
    for ends in (lambda host: host.pass_time(5.0), lambda host: host.order("stopped")):
        host = make(slow)
        host.converge()
        host.history.clear()
        ends(host)
        assert host.history[0] == ("starting", "ending")


def test_starting_to_deciding_when_it_ended_early(make: Make) -> None:
    host = make(POLICY)
    host.converge()
    host.end_child(FAILED)
    host.advance()
    assert host.history[-2:] == [("starting", "deciding"), ("deciding", "backoff")]


def test_starting_to_post_stop_when_it_ended_early_and_has_hooks(make: Make) -> None:
    host = make(POLICY, ("post_stop",))
    host.converge()
    host.end_child(FAILED)
    host.advance()
    assert host.last == ("starting", "post_stop")


# ---------------------------------------------------------------------------------------------------- from running


def test_running_to_deciding_when_it_ended_and_left_nothing(make: Make) -> None:
    host = make(POLICY).running()
    host.history.clear()
    host.end_child(DONE)
    host.advance()
    assert host.history[0] == ("running", "deciding")


def test_running_to_post_stop_when_it_ended_and_has_hooks(make: Make) -> None:
    host = make(POLICY, HOOKS).running()
    host.end_child(DONE)
    host.advance()
    assert host.last == ("running", "post_stop")


def test_running_to_ending_when_it_left_processes_is_unhealthy_or_a_stop_is_asked_for(make: Make) -> None:
    def leaves(host: World) -> None:
        host.leave_behind(stubborn=True)
        host.end_child(DONE)
        host.advance()

    def fails(host: World) -> None:
        host.operate({"op": "health", "restart": True, "detail": "no answer"})

    def loses_its_lease(host: World) -> None:
        host.pass_time(60.0)

    for ends in (leaves, fails, lambda host: host.order("stopped"), lambda host: host.terminate_runner()):
        host = make(POLICY).running()
        host.stubborn = True
        host.history.clear()
        ends(host)
        assert host.history[0] == ("running", "ending")
        host.pass_time(GRACE_S + 1.0)
    fenced = make(POLICY, lease_s=20.0)
    fenced.grant()
    fenced.running().history.clear()
    loses_its_lease(fenced)
    assert fenced.history[0] == ("running", "ending")


# ----------------------------------------------------------------------------------------------------- from ending


def test_ending_to_deciding_when_its_tree_is_gone(make: Make) -> None:
    host = make(POLICY).running()
    host.order("stopped")
    host.pass_time(1.0)
    assert host.history[-2:] == [("ending", "deciding"), ("deciding", "settled")]


def test_ending_to_post_stop_when_its_tree_is_gone_and_it_has_hooks(make: Make) -> None:
    host = make(POLICY, HOOKS).running()
    host.order("stopped")
    host.pass_time(1.0)
    assert host.last == ("ending", "post_stop")


# -------------------------------------------------------------------------------------------------- from post_stop


def test_post_stop_to_deciding_when_its_hooks_are_done(make: Make) -> None:
    host = make(POLICY, ("post_stop",)).running()
    host.end_child(DONE)
    host.advance()
    host.end_child(DONE)
    host.advance()
    assert host.history[-2:] == [("post_stop", "deciding"), ("deciding", "settled")]


def test_post_stop_to_ending_when_a_hook_takes_too_long_leaves_processes_or_is_killed(make: Make) -> None:
    def leaves(host: World) -> None:
        host.leave_behind(stubborn=False)
        host.end_child(DONE)
        host.advance()

    def is_killed(host: World) -> None:
        host.operate({"op": "kill", "attempt": 1, "id": "c-1"})

    for ends in (lambda host: host.pass_time(8.0), leaves, is_killed):
        host = make(POLICY, ("post_stop",)).running()
        host.end_child(DONE)
        host.advance()
        assert host.phase == "post_stop"
        host.history.clear()
        ends(host)
        assert host.history[0] == ("post_stop", "ending")


# ---------------------------------------------------------------------------------------------------- from backoff


def test_backoff_to_deciding_when_its_pause_is_over_or_somebody_decides(make: Make) -> None:
    def restarts(host: World) -> None:
        host.operate({"op": "restart", "attempt": 1, "id": "c-1"})

    def kills(host: World) -> None:
        host.operate({"op": "kill", "attempt": 1, "id": "c-1"})

    for ends in (
        lambda host: host.pass_time(30.0), restarts, kills, lambda host: host.order("stopped"),
        lambda host: host.order("running"), lambda host: host.terminate_runner(),
    ):  # fmt: skip
        host = make(POLICY).running()
        host.end_child(FAILED)
        host.advance()
        host.history.clear()
        ends(host)
        assert host.history[0] == ("backoff", "deciding")


def test_a_disk_without_room_is_a_pause_that_spends_no_restart(make: Make) -> None:
    host = make(POLICY)
    host.next_start_fails = OSError(28, "No space left on device")
    host.converge()
    assert host.last == ("deciding", "backoff") and host.state["restarts"] == 0
    host.attempts.clear()
    host.jobs.clear()  # nothing had come about
    host.pass_time(2.5)
    assert host.attempts == [1] and host.phase == "starting"


def test_what_cannot_be_started_settles_as_failed_without_an_attempt(make: Make) -> None:
    host = make(POLICY)
    host.next_start_fails = launch.NotStarted("command not found: job")
    host.pass_time(1.0)
    assert host.history == [("new", "deciding"), ("deciding", "settled")] and host.state["state"] == "failed"


# ------------------------------------------------------------------------------------------------------ the table


def test_every_transition_of_the_table_has_its_test_and_no_other_has_one() -> None:
    named = {
        found.groups()
        for name, _ in inspect.getmembers(sys.modules[__name__], inspect.isfunction)
        if (found := re.match(r"test_(new|[a-z]+?|post_stop)_to_(post_stop|[a-z]+)_when_", name))
    }
    allowed = {(before, after) for before, following in phases.TRANSITIONS.items() for after in following}
    assert named == allowed


def test_whatever_is_not_in_the_table_raises() -> None:
    for before, after in itertools.product(phases.TRANSITIONS, repeat=2):
        if after in phases.TRANSITIONS[before]:
            phases.check(before, after)
        else:
            with pytest.raises(phases.ForbiddenPhase):
                phases.check(before, after)
