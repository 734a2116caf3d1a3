"""The restart decider: the decision after the end of an attempt, in typical cases."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from remote_agent.protocol import reasons
from remote_agent.runner import restart
from remote_agent.runner.restart import FAIL, FINISH, RESTART, Ending, RestartRules, decide


def crash(ran_s: float = 100.0, **more: object) -> Ending:
    return Ending(code=1, ran_s=ran_s, was_running=True, **more)  # type: ignore[arg-type]


def test_first_restart_of_a_crash_is_immediate():
    """Most crashes are single: the first restart is immediate."""
    decision = decide(crash(), 0, RestartRules())
    assert (decision.action, decision.delay_s, decision.restarts) == (RESTART, 0.0, 1)


def test_delays_follow_the_backoff_and_the_last_repeats():
    """5, 30, 120, 300, 300 … after the immediate first."""
    policy = RestartRules({"max_attempts": 10})
    delays = [decide(crash(), spent, policy).delay_s for spent in range(7)]
    assert delays == [0, 5, 30, 120, 300, 300, 300]


def test_jitter_stays_within_a_quarter():
    """Both ends of the roll."""
    assert decide(crash(), 1, RestartRules(), roll=0.0).delay_s == pytest.approx(3.75)
    assert decide(crash(), 1, RestartRules(), roll=0.999999).delay_s == pytest.approx(6.25, abs=0.01)


def test_spent_budget_is_failed():
    """The fourth crash of three allowed restarts ends it, and says so."""
    decision = decide(crash(), 3, RestartRules())
    assert (decision.action, decision.reason) == (FAIL, "exit code 1 after 1 min 40 s; all 3 restarts are used up")


def test_long_healthy_run_gives_the_budget_back():
    """A job that crashes once a day is restarted indefinitely."""
    decision = decide(crash(ran_s=600.0), 3, RestartRules())
    assert (decision.action, decision.restarts, decision.delay_s) == (RESTART, 1, 0.0)


def test_exit_zero_is_finished_on_failure_policy():
    """A job that is done is done."""
    decision = decide(Ending(code=0, ran_s=300.0, was_running=True), 0, RestartRules())
    assert (decision.action, decision.reason) == (FINISH, "finished: exit code 0 after 5 min")


def test_exit_zero_before_start_secs_is_finished_too():
    """A quick job is not a failed start."""
    assert decide(Ending(code=0, ran_s=0.2), 0, RestartRules()).action == FINISH


def test_listed_exit_codes_are_success():
    """success_exit_codes replaces [0]."""
    policy = RestartRules({"success_exit_codes": [3]})
    assert decide(Ending(code=3, ran_s=1), 0, policy).action == FINISH
    assert decide(Ending(code=0, ran_s=1), 0, policy).action == RESTART


def test_never_restarts_nothing():
    """enable_auto_recovery: false arrives as policy never."""
    assert decide(crash(), 0, RestartRules({"policy": "never"})).action == FAIL
    assert decide(Ending(code=0), 0, RestartRules({"policy": "never"})).action == FINISH


def test_zero_attempts_fail_at_once():
    """max_attempts 0 means no restart, whatever the policy."""
    assert decide(crash(), 0, RestartRules({"max_attempts": 0})).action == FAIL


def test_always_restarts_a_clean_end_without_spending():
    """A batch loop under policy always runs for ever."""
    decision = decide(Ending(code=0, ran_s=60, was_running=True), 3, RestartRules({"policy": "always"}))
    assert (decision.action, decision.delay_s, decision.restarts) == (RESTART, 0.0, 3)


def test_always_does_not_spin():
    """A clean end right after the start waits, and one before start_secs spends the budget."""
    policy = RestartRules({"policy": "always", "start_secs": 0})
    assert decide(Ending(code=0, ran_s=0.01, was_running=True), 0, policy).delay_s == 5.0
    assert decide(Ending(code=0, ran_s=0.01), 3, policy).action == FAIL


def test_a_cause_of_ours_makes_exit_zero_a_failure():
    """A child that exits with 0 because it was stopped as unhealthy has not finished."""
    decision = decide(
        Ending(code=0, ran_s=90, was_running=True, cause="unhealthy", detail="http: 500 × 3"), 0, RestartRules()
    )
    assert decision.action == RESTART
    assert decision.reason == "unhealthy after 1 min 30 s: http: 500 × 3; restart 1 of 3 now"


def test_reasons_read_like_sentences():
    """The words of the portal."""
    killed = Ending(signal=9, ran_s=3 * 3600 + 12 * 60 + 5, was_running=True)
    assert (
        decide(killed, 0, RestartRules()).reason == "killed by signal 9 (SIGKILL) after 3 h 12 min; restart 1 of 3 now"
    )
    again = decide(Ending(signal=9, ran_s=100, was_running=True), 1, RestartRules()).reason
    assert again == "killed by signal 9 (SIGKILL) after 1 min 40 s; restart 2 of 3 in 5 s"
    oom = decide(Ending(signal=9, ran_s=30, was_running=True, oom=True), 0, RestartRules()).reason
    assert oom.startswith("killed by the kernel: out of memory (signal 9, SIGKILL) after 30 s; restart 1")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.0, "0 s"), (0.24, "0.2 s"), (9.96, "10 s"), (59.7, "59 s"), (65, "1 min 5 s"), (300, "5 min"), (720, "12 min"),
     (3600, "1 h"), (11520, "3 h 12 min"), (172800, "2 d"), (800000, "9 d 6 h"), (-1, "0 s")],
)  # fmt: skip
def test_durations_in_words(seconds, words):
    """Two units at most, and never '60 s'."""
    assert reasons.duration_in_words(seconds) == words


@pytest.mark.parametrize(("name", "number"), [("TERM", 15), ("SIGINT", 2), ("usr1", 10), ("9", 9), ("nonsense", 15)])
def test_stop_signals_by_name(name, number):
    """In common spellings; an invalid value is TERM."""
    assert restart.signal_number(name) == number


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    st.dictionaries(
        st.sampled_from(["policy", "max_attempts", "backoff_s", "jitter", "start_secs", "success_exit_codes"]),
        st.one_of(st.none(), st.text(), st.floats(), st.integers(), st.booleans(), st.lists(st.floats())),
    )
)
@example({"success_exit_codes": [1.0]})
@example({"success_exit_codes": [2, float("nan"), -1]})
def test_no_policy_breaks_the_decider(values):
    """Any spec.json: the runner survives it, no delay is negative, and exit code 1 finishes only if the policy calls
    it a success."""
    policy = RestartRules(values)
    decision = decide(crash(), 1, policy)
    success = 1 in policy.success_exit_codes
    assert decision.action in ((FINISH,) if success and policy.policy != "always" else (RESTART, FAIL))
    assert decision.delay_s >= 0


@settings(suppress_health_check=[HealthCheck.too_slow], deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(0, 599), st.booleans()), max_size=60),
    st.integers(0, 5),
)
def test_restarts_never_exceed_the_budget(endings, max_attempts):
    """No history of short failures gets more than max_attempts restarts."""
    policy = RestartRules({"max_attempts": max_attempts})
    spent = given_restarts = 0
    for code, ran_s, was_running in endings:
        decision = decide(Ending(code=code or 1, ran_s=ran_s, was_running=was_running), spent, policy)
        if decision.action != RESTART:
            break
        given_restarts += 1
        spent = decision.restarts
    assert given_restarts <= max_attempts


SPEC = {"desired": "running", "generation": 5}


@pytest.mark.parametrize(
    ("status", "wanted"),
    [
        ({}, True),
        ({"state": "running", "generation": 5}, True),
        ({"state": "backoff", "generation": 5}, True),
        ({"state": "failed", "generation": 5}, False),
        ({"state": "failed", "generation": 4}, True),
        ({"state": "exited", "generation": 5}, False),
        ({"state": "stopped", "generation": 5, "held": True}, False),
        ({"state": "stopped", "generation": 4, "held": True}, True),
        ({"state": "stopped", "generation": 5, "held": False}, True),
    ],
)
def test_needs_runner(status, wanted):
    """A settled worker starts again only for a new generation; one whose host went down, always."""
    assert restart.needs_runner(SPEC, status) is wanted


def test_nobody_starts_what_is_to_be_stopped():
    """But a tree that may still be alive needs a runner to end it."""
    assert not restart.needs_runner({"desired": "stopped", "generation": 9}, {})
    assert restart.needs_runner({"desired": "stopped", "generation": 9}, {"state": "running"})


def test_a_failure_of_a_cause_of_never_on_is_final_and_of_any_other_is_not():
    rules = RestartRules({"never_on": ["import_error"], "policy": "always"})
    final = decide(Ending(code=1, ran_s=3.0, failure="import_error"), 1, rules)
    assert (final.action, final.restarts) == (FAIL, 1)
    assert final.reason == "exit code 1 after 3 s; not restarted: restart.never_on names import_error"
    for failure in ("gpu_oom", ""):
        assert decide(Ending(code=1, ran_s=3.0, failure=failure), 1, rules).action == RESTART
    assert decide(Ending(code=1, failure="import_error"), 1, RestartRules()).action == RESTART


def test_an_attempt_at_its_time_limit_is_over_and_spends_no_restart():
    over = Ending(ran_s=3600.0, was_running=True, signal=15, cause="time_limit")
    for policy in ("on-failure", "never"):
        decision = decide(over, 2, RestartRules({"policy": policy, "healthy_after_s": 1e6}))
        assert (decision.action, decision.restarts) == (FAIL, 2)
        assert decision.reason == "stopped at its time limit after 1 h; not restarted: max_run_s is used up"
    again = decide(over, 2, RestartRules({"policy": "always", "healthy_after_s": 1e6}))
    assert (again.action, again.delay_s, again.restarts) == (RESTART, 0.0, 2)
