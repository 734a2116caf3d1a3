"""The table of allowed transitions: each occurs on a real runner in the test named after it, and no other is allowed.

The words after `when` in a test's name are the words of the table in docs/states.md.
"""

from __future__ import annotations

import inspect
import itertools
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from remote_agent.protocol import states
from remote_agent.runner import control
from tests.rows import each
from tests.unit.runner_rig import Rig

FOREVER = "echo up; exec sleep 1000"
SLOW_START = {"start_secs": 60.0, "start_timeout_s": 120.0}
PAGE = Path(__file__).parents[4] / "docs" / "states.md"
TABLE_BEGINS, TABLE_ENDS = "<!-- transitions: drawn by tests/unit/fleet/workers/test_transitions.py -->", "<!-- end -->"


def last_change(rig: Rig) -> tuple[str, str]:
    event = rig.events()[-1]
    assert event["reason"], "every change says why"
    return event["before"], event["after"]


def stop(rig: Rig) -> None:
    rig.write_spec(desired="stopped", generation=int(rig.assignment["generation"]) + 1)
    assert rig.link
    rig.link.assign()


def start_again(rig: Rig) -> None:
    """As the agent does for a settled worker if a new start was requested."""
    rig.runner_gone()
    rig.assignment.update(desired="running", generation=int(rig.assignment["generation"]) + 1)
    assert rig.run() == control.EXIT_STARTED


# --------------------------------------------------------------------------------------------------- from stopped


def test_stopped_to_starting_when_its_desired_state_is_running(rig: Rig):
    rig.shell(FOREVER, restart=SLOW_START).run()
    rig.until("starting")
    assert last_change(rig) == ("stopped", "starting")


# -------------------------------------------------------------------------------------------------- from starting


def test_starting_to_running_when_it_has_been_alive_for_start_secs(rig: Rig):
    rig.shell(FOREVER).run()
    rig.until("running")
    assert last_change(rig) == ("starting", "running")


def test_starting_to_starting_when_it_ended_early_and_is_restarted_immediately(rig: Rig):
    rig.shell(FOREVER, restart=SLOW_START).run()
    os.kill(rig.until("starting")["pid"], signal.SIGKILL)
    rig.until("starting", attempt=2)
    assert last_change(rig) == ("starting", "starting")


def test_starting_to_stopping_when_a_stop_is_requested(rig: Rig):
    rig.shell("trap '' TERM; echo up; while :; do sleep 0.05; done", restart=SLOW_START, stop_grace_s=60.0).run()
    rig.logged(1)
    rig.until("starting")
    stop(rig)
    rig.until("stopping")
    assert last_change(rig) == ("starting", "stopping")
    rig.link.kill(1, "c-1")
    rig.until("stopped")


def test_starting_to_backoff_when_it_ended_early_and_the_restart_is_delayed(rig: Rig):
    rig.shell("exit 1", restart={**SLOW_START, "backoff_s": [60.0]}).run()
    rig.until("backoff")
    assert last_change(rig) == ("starting", "backoff")


def test_starting_to_exited_when_it_finished_quickly(rig: Rig):
    rig.shell("exit 0", restart=SLOW_START).run()
    rig.until("exited")
    assert last_change(rig) == ("starting", "exited")


def test_starting_to_failed_when_it_cannot_be_started_or_the_restart_budget_is_used_up(rig: Rig):
    rig.shell("exit 1", restart={**SLOW_START, "max_attempts": 1}).run()
    rig.until("failed", attempt=2)
    assert last_change(rig) == ("starting", "failed")
    rig.assignment["argv"] = ["./no-such-command"]
    start_again(rig)
    assert "command not found" in rig.until("failed", attempt=3)["reason"]
    assert last_change(rig) == ("starting", "failed")


# --------------------------------------------------------------------------------------------------- from running


def test_running_to_starting_when_it_ended_and_is_restarted_immediately(rig: Rig):
    rig.shell(FOREVER).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    rig.until("running", attempt=2)
    assert (rig.events()[-2]["before"], rig.events()[-2]["after"]) == ("running", "starting")


def test_running_to_stopping_when_a_stop_or_restart_or_kill_is_requested(rig: Rig):
    rig.shell(FOREVER).run()
    rig.until("running")
    rig.link.restart(1, "c-1")
    rig.until("running", attempt=2)
    rig.link.kill(2, "c-2")
    rig.until("stopped")
    changes = [(event["before"], event["after"]) for event in rig.events()]
    assert changes.count(("running", "stopping")) == 2


def test_running_to_backoff_when_it_ended_and_the_restart_is_delayed(rig: Rig):
    rig.shell("sleep 0.15; exit 1", restart={"backoff_s": [60.0]}).run()
    rig.until("backoff")
    assert last_change(rig) == ("running", "backoff")


def test_running_to_exited_when_it_ended_and_the_policy_does_not_restart_it(rig: Rig):
    rig.shell("sleep 0.15; exit 0").run()
    rig.until("exited")
    assert last_change(rig) == ("running", "exited")


def test_running_to_failed_when_it_ended_and_the_restart_budget_is_used_up(rig: Rig):
    rig.shell(FOREVER, restart={"max_attempts": 0}).run()
    os.kill(rig.until("running")["pid"], signal.SIGKILL)
    rig.until("failed")
    assert last_change(rig) == ("running", "failed")


# -------------------------------------------------------------------------------------------------- from stopping


def test_stopping_to_stopped_when_its_process_tree_has_ended(rig: Rig):
    rig.shell(FOREVER).run()
    rig.until("running")
    stop(rig)
    rig.until("stopped")
    assert last_change(rig) == ("stopping", "stopped")
    assert rig.survivors() == []


def test_stopping_to_starting_when_its_process_tree_has_ended_and_a_start_was_requested(rig: Rig):
    rig.shell(FOREVER, restart=SLOW_START).run()
    rig.until("starting")
    rig.link.restart(1, "c-1")
    rig.until("starting", attempt=2)
    assert last_change(rig) == ("stopping", "starting")


# --------------------------------------------------------------------------------------------------- from backoff


def test_backoff_to_starting_when_the_delay_is_over(rig: Rig):
    rig.shell("exit 1", restart={**SLOW_START, "backoff_s": [0.1], "max_attempts": 1}).run()
    rig.until("failed", attempt=2)
    changes = [(event["before"], event["after"]) for event in rig.events()]
    assert changes == [
        ("stopped", "starting"), ("starting", "backoff"), ("backoff", "starting"), ("starting", "failed"),
    ]  # fmt: skip


def test_backoff_to_stopped_when_a_stop_is_requested(rig: Rig):
    rig.shell("exit 1", restart={"backoff_s": [60.0]}).run()
    rig.until("backoff")
    stop(rig)
    rig.until("stopped")
    assert last_change(rig) == ("backoff", "stopped")


# ------------------------------------------------------------------------------------------- from exited and failed


def test_exited_to_starting_when_an_operator_starts_it(rig: Rig):
    rig.shell("exit 0", restart=SLOW_START).run()
    rig.until("exited")
    rig.shell(FOREVER)
    start_again(rig)
    rig.until("starting", attempt=2)
    assert last_change(rig) == ("exited", "starting")


def test_failed_to_starting_when_an_operator_starts_it(rig: Rig):
    rig.shell("exit 1", restart={**SLOW_START, "max_attempts": 0}).run()
    rig.until("failed")
    rig.shell(FOREVER)
    start_again(rig)
    rig.until("starting", attempt=2)
    assert last_change(rig) == ("failed", "starting")


# ------------------------------------------------------------------------------------------------------- the table

ALLOWED = [(before, after) for before, all_after in states.TRANSITIONS.items() for after in all_after]
FORBIDDEN = [pair for pair in itertools.product((*states.ALL, "nonsense"), repeat=2) if pair not in ALLOWED]


def occasions() -> dict[tuple[str, str], str]:
    """(before, after) -> when, as the names of the tests above say it."""
    found = {}
    for name, _ in inspect.getmembers(sys.modules[__name__], inspect.isfunction):
        match = re.fullmatch(r"test_([a-z]+)_to_([a-z]+)_when_(.+)", name)
        if match:
            found[match[1], match[2]] = match[3].replace("start_secs", "`start_secs`").replace("_", " ")
    return {pair: text.replace("`start secs`", "`start_secs`") for pair, text in found.items()}


def drawn_table() -> str:
    lines = ["| from | to | when |", "|---|---|---|"]
    lines += [f"| `{before}` | `{after}` | {occasions()[before, after]} |" for before, after in ALLOWED]
    return "\n".join(lines)


def test_every_allowed_transition_has_its_test_and_no_other_has_one():
    assert sorted(occasions()) == sorted(ALLOWED)


def test_the_table_in_the_documents_is_this_one():
    """When it fails: put the table that pytest shows between the two marks in docs/states.md."""
    shown = PAGE.read_text(encoding="utf-8").partition(TABLE_BEGINS)[2].partition(TABLE_ENDS)[0].strip()
    assert shown == drawn_table()


@each("pair", ALLOWED)
def test_allowed_transition_passes(pair: tuple[str, str]):
    states.check(*pair)


@each("pair", FORBIDDEN)
def test_forbidden_transition_is_refused(pair: tuple[str, str]):
    before, after = pair
    with pytest.raises(states.ForbiddenTransition, match=f"{before} -> {after}"):
        states.check(before, after)


def test_only_states_without_a_child_settle():
    """settled and alive exclude each other; unknown is the manager's alone and no runner's."""
    assert not set(states.SETTLED) & set(states.ALIVE)
    assert set(states.TRANSITIONS) == set(states.ALL) - {states.UNKNOWN}
    assert not any(states.UNKNOWN in after for after in states.TRANSITIONS.values())
