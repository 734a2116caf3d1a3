"""Random histories of a worker: in any order of events, the table of transitions and the budget hold.

200 histories by default, 5,000 with PROCGUARD_LONG_TESTS=1.
"""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from remote_agent.protocol import states
from remote_agent.runner import launch
from remote_agent.runner.task import phases
from tests.sizes import LONG, examples
from tests.unit.task_runner_rig import GRACE_S, KILL, TaskRunnerRig

HISTORIES = examples(200, 5_000)
STEPS = 30
POLICIES = st.fixed_dictionaries(
    {
        "policy": st.sampled_from(["on-failure", "on-failure", "always", "never"]),
        "max_attempts": st.integers(0, 5),
        "backoff_s": st.sampled_from([[0.0, 5.0, 30.0, 120.0, 300.0], [0.0], [3.0], [0.0, 60.0]]),
        "jitter": st.sampled_from([0.0, 0.25]),
        "start_secs": st.sampled_from([0.0, 1.0, 10.0]),
        "start_timeout_s": st.sampled_from([5.0, 30.0]),
        "healthy_after_s": st.sampled_from([60.0, 600.0]),
    }
)
HOOKS = st.sampled_from([(), (), ("pre_start",), ("post_stop",), ("pre_start", "post_stop")])
ENDINGS = st.sampled_from([0, 1 << 8, 3 << 8, 127 << 8, 9, 11, 15])


class Histories(RuleBasedStateMachine):
    @initialize(
        policy=POLICIES,
        hooks=HOOKS,
        lease_s=st.sampled_from([None, 30.0, 30.0]),
        gang=st.sampled_from([False] * 3 + [True]),
    )
    def begin(self, policy: dict[str, object], hooks: tuple[str, ...], lease_s: float | None, gang: bool) -> None:
        self.host = TaskRunnerRig(policy, hooks, lease_s, gang)
        self.patches = self.host.in_place()
        self.patches.__enter__()
        self.host.converge()

    def teardown(self) -> None:
        if hasattr(self, "patches"):
            self.patches.__exit__(None, None, None)

    # ------------------------------------------------------------------------------------------- what may happen

    @precondition(lambda self: hasattr(self, "host"))
    @rule()
    def manager_grants_a_while(self) -> None:
        """Heartbeats as they come in a healthy fleet."""
        for _ in range(4):
            self.host.grant(0.1)
            self.host.pass_time(5.0)

    @rule(took_s=st.sampled_from([0.0, 0.2, 9.0, 31.0, 70.0]))
    def a_lease_comes(self, took_s: float) -> None:
        self.host.grant(took_s)

    @rule(lower=st.integers(1, 3))
    def a_lease_of_an_epoch_that_is_over_comes(self, lower: int) -> None:
        self.host.grant(epoch=max(0, int(str(self.host.spec["epoch"])) - lower))

    @rule(with_a_lease=st.booleans())
    def manager_restarts_it(self, with_a_lease: bool) -> None:
        self.host.restart_under_new_epoch(with_a_lease)

    @rule(lease_s=st.sampled_from([None, 30.0]))
    def fenced_or_kept_by_redeployment(self, lease_s: float | None) -> None:
        if self.host.spec["lease_s"] != lease_s:
            self.host.fence(lease_s)

    @rule()
    def agent_is_killed(self) -> None:
        self.host.agent_dies()

    @rule()
    def host_loses_its_power(self) -> None:
        self.host.reboot()

    @rule(wait_status=ENDINGS)
    def child_ends(self, wait_status: int) -> None:
        self.host.end_child(wait_status)
        self.host.advance()

    @rule(stubborn=st.booleans())
    def child_forks_a_daemon(self, stubborn: bool) -> None:
        self.host.leave_behind(stubborn)

    @rule(stubborn=st.booleans())
    def children_from_now_on_ignore_the_stop_signal(self, stubborn: bool) -> None:
        self.host.stubborn = stubborn

    @rule(hopeless=st.booleans())
    def next_start_fails(self, hopeless: bool) -> None:
        self.host.next_start_fails = launch.NotStarted("command not found: job") if hopeless else OSError(11, "no pids")

    @rule(seconds=st.sampled_from([0.0, 0.02, 0.6, 1.1, 5.0, 11.0, 70.0, 650.0]))
    def time_passes(self, seconds: float) -> None:
        self.host.pass_time(seconds)

    @rule(seconds=st.sampled_from([-1e9, -3600.0, 3600.0, 1e9]))
    def wall_clock_jumps(self, seconds: float) -> None:
        self.host.wall += seconds

    @rule(desired=st.sampled_from(["running", "stopped"]))
    def operator_starts_or_stops(self, desired: str) -> None:
        self.host.order(desired)

    @rule(verb=st.sampled_from(["restart", "kill"]), wrong=st.sampled_from([0, 0, 1, -1]))
    def operator_restarts_or_kills(self, verb: str, wrong: int) -> None:
        attempt = int(str(self.host.state.get("attempt", 0))) + wrong
        self.host.operate({"op": verb, "attempt": attempt, "id": "c-1"})

    @rule()
    def the_same_assignment_comes_again(self) -> None:
        self.host.operate({"op": "assign"})

    @rule()
    def an_old_grant_comes_late(self) -> None:
        now, old = self.host.spec, {"desired": "stopped", "generation": 0, "epoch": 0}
        self.host.spec = {**now, **old}
        self.host.operate({"op": "assign"})
        self.host.spec = now

    @rule()
    def health_check_wants_a_restart(self) -> None:
        self.host.operate({"op": "health", "status": "failing", "detail": "http: 500", "restart": True})

    @rule()
    def host_shuts_down_the_runner(self) -> None:
        self.host.terminate_runner()

    @rule()
    def runner_is_killed(self) -> None:
        self.host.kill_runner()

    @rule(writes=st.integers(0, 6))
    def runner_will_be_killed_between_two_writes(self, writes: int) -> None:
        self.host.writes_left = writes

    @rule()
    def agent_looks(self) -> None:
        self.host.converge()

    # --------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def restarts_stay_within_the_budget(self) -> None:
        if hasattr(self, "host"):
            host = self.host
            assert host.automatic <= host.policy.max_attempts + host.torn
            assert int(str(host.state.get("restarts") or 0)) <= max(host.policy.max_attempts, 0)

    @invariant()
    def nothing_lives_outside_a_lease_and_its_grace(self) -> None:
        """While a runner exists; what a dead one left is swept by the next, once an agent checks."""
        if hasattr(self, "host") and self.host.runner is not None and self.host.spec["lease_s"] is not None:
            host = self.host
            if host.always_fenced or host.runner.task.lease.holds:
                assert not host.alive or host.now <= host.right_until() + GRACE_S + 0.001

    @invariant()
    def a_child_lives_only_where_the_state_says_so(self) -> None:
        if hasattr(self, "host") and self.host.runner is not None:
            values = self.host.runner.task.state.values
            if values["state"] == states.BACKOFF:
                assert self.host.child_pid not in self.host.alive or self.host.runner.task.phase == phases.SWEEPING

    @invariant()
    def no_pause_is_longer_than_the_policy_allows_whatever_the_clock_says(self) -> None:
        if hasattr(self, "host") and self.host.runner is not None:
            host, values = self.host, self.host.runner.task.state.values
            if values["state"] == states.BACKOFF:
                assert host.runner.task.next_start - host.now <= max(host.policy.backoff_s) * 2

    @precondition(lambda self: hasattr(self, "host"))
    @rule()
    def everything_can_be_stopped(self) -> None:
        """Within the grace, post_stop's time and its grace, whatever came before; nothing survives it."""
        self.host.order("stopped")
        self.host.converge()
        self.host.pass_time(40.0)
        assert not self.host.alive
        assert self.host.state.get("state", "stopped") in states.SETTLED
        assert self.host.runner is None


def test_no_history_breaks_the_table_or_the_budget():
    run_state_machine_as_test(
        Histories,
        settings=settings(
            max_examples=HISTORIES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not LONG,  # the short form is the same every time; the long one looks elsewhere each time
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def host():
    made = TaskRunnerRig({"max_attempts": 2, "backoff_s": [0.0, 30.0], "jitter": 0.0, "start_secs": 1.0})
    with made.in_place():
        made.converge()
        yield made


@pytest.mark.parametrize("jump_s", [-1e9, -86400.0, 86400.0, 1e9])
def test_clock_jumps_change_nothing(host: TaskRunnerRig, jump_s: float):
    """Not when it is running, not how long it pauses, not what its budget is."""
    host.wall += jump_s
    host.pass_time(1.1)
    assert host.state["state"] == "running"
    for _ in range(2):
        host.end_child(KILL)
        host.wall += jump_s
        host.advance()
    assert (host.state["state"], host.state["attempt"]) == ("backoff", 2)
    host.wall -= 2 * jump_s
    host.pass_time(29.9)
    assert host.state["state"] == "backoff"
    host.pass_time(0.2)
    assert (host.state["state"], host.state["attempt"]) == ("starting", 3)
    assert host.events[-2]["exit"]["duration_s"] == 0.0


@pytest.mark.parametrize("jump_s", [-1e9, 1e9])
def test_a_pause_goes_on_under_the_next_runner_within_its_bounds_whatever_the_clock_did(
    host: TaskRunnerRig, jump_s: float
):
    """next_start_at is wall time, the only clock two runners share: never later than twice the longest pause."""
    host.end_child(KILL)
    host.advance()
    host.end_child(KILL)
    host.advance()
    assert host.state["state"] == "backoff"
    host.kill_runner()
    host.wall += jump_s
    host.converge()
    host.pass_time(60.1)
    assert host.state["attempt"] == 3


def test_a_stop_outlives_every_stubborn_process(host: TaskRunnerRig):
    """SIGKILL after the grace period, for the child and for the daemon that it left."""
    host.end_child(KILL)
    host.stubborn = True
    host.advance()
    host.leave_behind(stubborn=True)
    host.order("stopped")
    host.pass_time(4.9)
    assert host.state["state"] == "stopping" and len(host.alive) == 2
    host.pass_time(0.3)
    assert host.state["state"] == "stopped" and not host.alive


# ------------------------------------------------------------------------- found by random histories, kept by name


@pytest.mark.parametrize("writes", [1, 2, 3])
def test_a_runner_killed_at_the_first_start_leaves_nothing_to_a_later_stop(host: TaskRunnerRig, writes: int):
    """The child is alive, but no file records it: state.json still has the worker as stopped."""
    host.order("stopped")
    host.pass_time(6.0)
    assert host.runner is None and not host.alive
    host.spec = {**host.spec, "desired": "running", "generation": 9}
    host.writes_left = writes
    host.converge()
    assert host.runner is None and len(host.alive) == 1
    host.order("stopped")
    host.pass_time(20.0)
    assert not host.alive and host.state["state"] == "stopped" and host.runner is None


def test_a_runner_killed_just_before_the_first_start_loses_no_start(host: TaskRunnerRig):
    """It had already recorded the new generation."""
    host.order("stopped")
    host.pass_time(6.0)
    host.alive[77] = False  # a process to be swept first: the start has to wait
    host.spec = {**host.spec, "desired": "running", "generation": 9}
    host.writes_left = 1
    host.converge()
    host.pass_time(20.0)
    assert host.torn == 1 and host.state["state"] == "running"


def test_stop_and_start_during_a_sweep_end_in_a_start(host: TaskRunnerRig):
    """The last command counts, also while processes left by a killed runner are being ended."""
    host.order("stopped")
    host.pass_time(6.0)
    host.alive[77] = True
    host.order("running")
    host.converge()
    assert host.runner is not None and host.state["state"] == "stopped"
    host.order("stopped")
    host.order("running")
    host.pass_time(20.0)
    assert host.state["state"] == "running" and list(host.alive) == [host.child_pid]


@pytest.mark.parametrize("desired", ["stopped", "running"])
def test_an_order_during_a_backoff_waits_for_what_a_killed_runner_left(host: TaskRunnerRig, desired: str):
    """An unobserved start, then a command: nothing is started or settled beside a live instance."""
    for _ in range(2):
        host.end_child(KILL)
        host.advance()
    assert host.state["state"] == "backoff"
    host.stubborn = True
    host.writes_left = 0
    host.pass_time(31.0)  # the pause is over: a child starts, and its runner dies before it has noted that
    host.order(desired)
    host.pass_time(20.0)
    assert host.torn == 1 and host.state["state"] == ("running" if desired == "running" else "stopped")
    assert list(host.alive) == ([host.child_pid] if desired == "running" else [])


def test_what_a_dead_runner_left_beyond_its_lease_and_grace_is_given_no_more_time():
    """It may run elsewhere by now."""
    host = TaskRunnerRig({"max_attempts": 2}, lease_s=30.0)
    with host.in_place():
        host.grant()
        host.converge()
        assert list(host.alive) == [host.child_pid]
        host.leave_behind(stubborn=True)
        host.kill_runner()
        assert host.child_pid not in host.alive and len(host.alive) == 1
        host.now += 30.0 + GRACE_S
        host.converge()
        assert not host.alive
        host.pass_time(1.0)
        assert host.state["state"] == "stopped" and host.attempts == [1]
        host.grant()
        host.pass_time(2.0)
        assert host.state["state"] == "running" and host.attempts == [1, 2]


def test_what_comes_after_the_worker_has_settled_is_left_to_the_next_runner(host: TaskRunnerRig):
    """A start immediately after the stop: the exiting runner must not consume it."""
    assert host.runner is not None
    host.end_child(0)
    leaving = host.runner
    leaving.advance(host.now)
    assert leaving.task.finished
    host.order("running")
    host.runner = None
    host.converge()
    host.pass_time(2.0)
    assert (host.state["state"], host.state["attempt"]) == ("running", 2)
