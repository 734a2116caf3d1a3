"""Which spare takes a task, and the reasons of those that may not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest

from procguard.fleet.model.records import AgentRecord, HostFailure
from procguard.fleet.workers import failure_history
from procguard.fleet.workers.placement import Candidate, Task, choose

TASK = Task("w1", requires={"gpu": "a100"}, gpus=2)
FITS = Candidate("s1", "s1", labels={"gpu": "a100"}, gpus_free=2)
DAY_S = 24 * 3600.0


def but(**changes: Any) -> Candidate:
    return dataclasses.replace(FITS, **changes)


def named(name: str, **changes: Any) -> Candidate:
    return but(agent_id=name, host=name, **changes)


def test_the_one_spare_that_fits_is_chosen() -> None:
    assert choose(TASK, [FITS]).agent_id == "s1"


@pytest.mark.parametrize(
    ("candidate", "word"),
    [
        (but(deployed=False), "launcher"),
        (but(spare=False), "procguard_spare"),
        (but(connected=False), "not connected"),
        (but(cordoned="fan"), "cordoned (fan)"),
        (but(labels={"gpu": "v100"}), "gpu=a100"),
        (but(carries=2, carries_most=2), "2 of at most 2"),
        (but(gpus_free=1), "1 of its GPUs are free, 2 needed"),
        (but(gpus_free=None), "does not report"),
    ],
)
def test_an_unsuitable_host_is_never_chosen(candidate: Candidate, word: str) -> None:
    found = choose(TASK, [candidate])
    assert found.agent_id == ""
    assert word in found.rejected["s1"]


def test_the_host_it_has_just_left_is_avoided() -> None:
    found = choose(dataclasses.replace(TASK, avoid=frozenset({"s1"})), [FITS])
    assert found.agent_id == ""
    assert "still be running there" in found.rejected["s1"]


def test_its_home_needs_no_mark_to_have_it_back_but_must_be_fit() -> None:
    home = but(home=True, spare=False, labels={}, carries=1, carries_most=1)
    assert choose(TASK, [home]).agent_id == "s1"
    assert "cordoned" in choose(TASK, [dataclasses.replace(home, cordoned="fan")]).reason


def test_a_task_without_gpus_goes_where_nothing_is_known_of_gpus() -> None:
    assert choose(Task("w1"), [but(gpus_free=None)]).agent_id == "s1"


def test_the_failure_score_goes_before_fewer_workers_and_these_before_the_name() -> None:
    good, bad = named("z", score=0.0, workers=9), named("a", score=2.0, workers=0)
    assert choose(TASK, [bad, good]).agent_id == "z"
    assert choose(TASK, [named("a", workers=3), named("z", workers=1)]).agent_id == "z"
    assert choose(TASK, [named("z"), named("a")]).agent_id == "a"


def test_no_spare_at_all_says_how_to_declare_one() -> None:
    assert "procguard_spare" in choose(TASK, [but(spare=False), but(deployed=False)]).reason


def test_the_reason_names_each_spare_but_not_every_ordinary_host() -> None:
    candidates = [named(f"n{number}", spare=False) for number in range(50)] + [named("s1", cordoned="fan")]
    assert choose(TASK, candidates).reason == "no spare fits: s1: it is cordoned (fan)"


def test_many_rejected_spares_are_counted_not_listed() -> None:
    reason = choose(TASK, [named(f"s{number}", connected=False) for number in range(9)]).reason
    assert "and 4 more" in reason


def test_a_failure_fades_and_a_lost_host_weighs_more_than_a_failed_worker() -> None:
    lost = failure_history.noted([], "agent_silent", "gone", 0.0)
    failed = failure_history.noted([], "worker_failed", "w1", 0.0)
    assert failure_history.score(lost, 0.0) > failure_history.score(failed, 0.0) > 0.0
    assert failure_history.score(failed, DAY_S) == pytest.approx(failure_history.score(failed, 0.0) / 2)
    assert failure_history.score([], 0.0) == 0.0


def test_the_failure_history_is_bounded_and_a_clock_set_back_breaks_nothing() -> None:
    failures: Sequence[HostFailure] = ()
    for number in range(200):
        failures = failure_history.noted(failures, "worker_failed", f"w{number}", float(number))
    assert len(failures) == failure_history.KEEP
    assert failures[-1].what == "w199"
    assert failure_history.score(failures, -1e9) == pytest.approx(failure_history.KEEP)


def test_the_failures_that_an_earlier_release_stored_are_read() -> None:
    stored = {
        "agent_id": "h1",
        "host": "h1",
        "kind": "deployed",
        "ledger": [{"at": 1.0, "kind": "agent_silent", "what": ""}],
    }
    record = AgentRecord.restored(stored)
    assert [(one.at, one.kind) for one in record.failures] == [(1.0, "agent_silent")]
