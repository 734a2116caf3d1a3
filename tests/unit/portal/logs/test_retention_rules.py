"""`logs.retention`: what is deleted, and what never is."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from procguard.config import schema
from procguard.config.logs import RetentionRule
from procguard.errors import ConfigError, ProcGuardError
from procguard.portal.logs import rules
from procguard.portal.logs.rules import DAY_S, AttemptLog, RetentionKeeper
from procguard.portal.logs.store import LogStore
from remote_agent.protocol.messages import directory_name
from tests.server_process import RunningManager
from tests.waiting import wait_until

NOW = 1_800_000_000.0
MIB = 2**20


def rule(**values: Any) -> rules.Rule:
    return rules.read([RetentionRule(**{"select": "*", **values})])[0]


def fact(worker_id: str, state: str = "exited", group: str = "") -> dict[str, Any]:
    return {
        "worker_id": worker_id,
        "state": state,
        "host": "h",
        "group": group,
        "agent": "h",
        "desired": "",
        "labels": {},
    }


def of(found: Iterable[AttemptLog]) -> list[tuple[str, int]]:
    return [(one.worker, one.attempt) for one in found]


def test_what_was_written_last_too_long_ago_leaves_and_a_running_attempt_never_does() -> None:
    logs = [
        AttemptLog("w", 1, 10, NOW - 31 * DAY_S),
        AttemptLog("w", 2, 10, NOW - 29 * DAY_S),
        AttemptLog("r", 7, 10, NOW - 99 * DAY_S, held=True),
    ]
    assert of(rules.decide(rule(days=30), logs, NOW)) == [("w", 1)]


def test_beyond_the_size_the_oldest_leave_wherever_they_are_and_no_more_than_needed() -> None:
    logs = [
        AttemptLog("a", 1, 6 * MIB, NOW - 400),
        AttemptLog("b", 1, 6 * MIB, NOW - 300),
        AttemptLog("a", 2, 6 * MIB, NOW - 200),
        AttemptLog("b", 2, 6 * MIB, NOW - 100),
    ]
    assert of(rules.decide(rule(max=13 * MIB), logs, NOW)) == [("a", 1), ("b", 1)]
    assert of(rules.decide(rule(max=24 * MIB), logs, NOW)) == []


def test_the_last_attempt_of_a_failed_worker_leaves_by_age_alone() -> None:
    logs = [AttemptLog("f", 3, 50 * MIB, NOW - 5 * DAY_S, failed=True), AttemptLog("w", 1, MIB, NOW)]
    assert of(rules.decide(rule(max=2 * MIB), logs, NOW)) == [("w", 1)]
    assert of(rules.decide(rule(days=7, max=2 * MIB), logs, NOW)) == [("w", 1)]
    assert ("f", 3) in of(rules.decide(rule(days=4, max=2 * MIB), logs, NOW))


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 20 * MIB), st.floats(0, 90), st.booleans(), st.booleans()),
        max_size=20,
    ),
    st.none() | st.floats(0.1, 80),
    st.none() | st.integers(MIB, 60 * MIB),
)
def test_nothing_leaves_without_a_rule_that_asks_for_it(
    made: list[tuple[int, int, float, bool, bool]], days: float | None, most: int | None
) -> None:
    if days is None and most is None:
        return
    logs = [
        AttemptLog(f"w{worker}", number, size, NOW - age * DAY_S, held, failed)
        for number, (worker, size, age, held, failed) in enumerate(made)
    ]
    gone = rules.decide(rule(days=days, max=most), logs, NOW)
    kept = [one for one in logs if one not in gone]
    assert not any(one.held for one in gone)
    if most is None:
        assert all(NOW - one.written_at > (days or 0) * DAY_S for one in gone)
    if days is None and gone:
        assert sum(one.size for one in kept) + gone[-1].size > (most or 0)
    if days is not None:
        assert all(one.held or NOW - one.written_at <= days * DAY_S for one in kept)


# ------------------------------------------------------------------------------------------------ on a real disk


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    def here(work: Callable[..., Any], *arguments: Any) -> Any:
        return work(*arguments)

    return LogStore(str(tmp_path / "logs"), in_thread=here)


def written(store: LogStore, tmp_path: Path, worker: str, attempt: int, size: int, age_days: float) -> None:
    for stream in ("out", "err"):
        store.append(worker, attempt, stream, 0, b"x" * (size // 2), NOW)
        path = tmp_path / "logs" / directory_name(worker) / f"{attempt}.{stream}.log"
        os.utime(path, (NOW - age_days * DAY_S,) * 2)


def keeper(store: LogStore, facts: list[dict[str, Any]], *entries: dict[str, Any]) -> RetentionKeeper:
    return RetentionKeeper([RetentionRule(**one) for one in entries], store, lambda: facts)


def test_each_rule_is_about_the_workers_that_it_selects(store: LogStore, tmp_path: Path) -> None:
    for worker in ("t1", "t2", "other"):
        written(store, tmp_path, worker, 1, 2000, 40)
        written(store, tmp_path, worker, 2, 2000, 1)
    facts = [fact("t1", group="trainers"), fact("t2", "running", group="trainers"), fact("other")]
    made = keeper(store, facts, {"select": "group=trainers", "days": 30}, {"select": "other", "days": 365})
    assert made.apply(NOW, 0.0) > 0
    assert [store.attempts(worker) for worker in ("t1", "t2", "other")] == [[2], [2], [1, 2]]
    assert [(one.workers, one.deleted_bytes > 0) for one in made.rules] == [(2, True), (1, False)]
    assert made.rules[1].oldest_at == pytest.approx(NOW - 40 * DAY_S)
    assert store.append("t1", 1, "out", 0, b"late", NOW) == 4 and store.attempts("t1") == [2], (
        "a sender is not believed"
    )


def test_a_worker_that_is_gone_belongs_to_the_rule_for_all(store: LogStore, tmp_path: Path) -> None:
    written(store, tmp_path, "w", 1, 2000, 40)
    store.retire("w")
    written(store, tmp_path, "v", 1, 2000, 40)
    keeper(store, [], {"select": "group=trainers", "days": 1}).apply(NOW, 0.0)
    assert {one.name for one in (tmp_path / "logs").rglob("*.log")} == {"1.out.log", "1.err.log"}
    keeper(store, [], {"select": "*", "days": 30}).apply(NOW, 0.0)
    assert list((tmp_path / "logs").rglob("*.log")) == []


def test_a_clock_that_was_set_deletes_nothing(store: LogStore, tmp_path: Path) -> None:
    written(store, tmp_path, "w", 1, 2000, 1)
    made = keeper(store, [fact("w")], {"select": "*", "days": 30})
    made.apply(NOW, 50.0)
    with pytest.raises(ProcGuardError, match="clock was set by 31104000 s"):
        made.apply(NOW + 360 * DAY_S + 600, 650.0)
    assert store.attempts("w") == [1]


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"select": "*"}, "days, max or both"),
        ({"select": "*", "days": 0}, "days"),
        ({"select": "*", "max": "20 XB"}, "256 MiB"),
        ({"days": 3}, "select"),
    ],
)
def test_a_rule_that_cannot_be_is_refused_with_its_place(tmp_path: Path, entry: dict[str, Any], said: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"logs: {{retention: [{entry!r}]}}\n".replace("'", '"'))
    with pytest.raises(ConfigError, match=r"logs\.retention") as raised:
        schema.load(str(path))
    assert said in str(raised.value)


def test_a_selector_that_cannot_be_read_is_named(store: LogStore) -> None:
    with pytest.raises(ConfigError, match=r"logs\.retention, entry 2: select: "):
        keeper(store, [], {"select": "*", "days": 1}, {"select": "state=quick", "days": 1})


def test_a_manager_shows_its_rules(tmp_path: Path) -> None:
    setting = 'logs.retention=[{"select": "group=trainers", "days": 30, "max": "20 GiB"}]'
    manager = RunningManager(tmp_path, setting)
    try:
        [shown] = wait_until(lambda: manager.ask("GET", "/api/logs/retention").json["rules"], 5, "the rules")
    finally:
        manager.close()
    assert (shown["select"], shown["days"], shown["max_bytes"]) == ("group=trainers", 30, 20 * 2**30)
