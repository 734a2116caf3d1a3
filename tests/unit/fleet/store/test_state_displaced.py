"""The state folder is deleted, moved or replaced under a running manager: nothing is acknowledged falsely, or lost."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import ProcGuardError
from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model.clock import Now
from procguard.fleet.store.interface import NotDurable, Tables
from tests.fleet.manager import Manager, own_environment
from tests.unit.store_rig import KINDS, loaded, numbers, opened, put, refusing
from tests.waiting import wait_until

FLEET = {"fleet": {"fleet_id": "f-1", "term": 1}}


def tables(**workers: int) -> Tables:
    return {"fleet": FLEET, "workers": {name: {"n": n} for name, n in workers.items()}}


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / "data" / f"state{request.param}"


def test_a_commit_after_the_folder_was_deleted_is_refused(path: Path) -> None:
    store, _ = opened(path)
    put(store, a=1)
    assert store.in_place()

    shutil.rmtree(path.parent)

    assert not store.in_place()
    with pytest.raises(NotDurable, match="deleted or moved"):
        put(store, a=2)
    with pytest.raises(NotDurable):  # a second one, too: nothing has become better
        put(store, a=3)


def test_a_commit_after_the_folder_was_moved_is_refused(path: Path) -> None:
    store, _ = opened(path)
    put(store, a=1)

    path.parent.rename(path.parent.with_name("elsewhere"))

    with pytest.raises(NotDurable, match="deleted or moved"):
        put(store, a=2)


def test_all_is_written_again_with_what_was_refused_meanwhile(path: Path) -> None:
    store, _ = opened(path)
    store.commit([("fleet", "fleet", FLEET["fleet"])])
    put(store, a=1, b=1)
    shutil.rmtree(path.parent)
    with pytest.raises(NotDurable):
        put(store, a=2)

    store.write_again(tables(a=2, b=1))
    put(store, c=3)

    assert store.in_place()
    found = loaded(path)
    assert (numbers(found), found.intact) == ({"a": 2, "b": 1, "c": 3}, True)
    store.close()
    assert numbers(loaded(path)) == {"a": 2, "b": 1, "c": 3}


@pytest.mark.parametrize("name", ["state.db", "state.db-wal"])
def test_only_one_file_was_deleted(path: Path, name: str) -> None:
    store, _ = opened(path)
    store.commit([("fleet", "fleet", FLEET["fleet"])])
    put(store, a=1)
    (path.parent / name).unlink()

    with pytest.raises(NotDurable):
        put(store, b=2)
    store.write_again(tables(a=1, b=2))
    put(store, b=2)

    assert numbers(loaded(path)) == {"a": 1, "b": 2} and loaded(path).intact


def test_the_state_of_another_fleet_in_its_place_is_left_alone(path: Path) -> None:
    store, _ = opened(path)
    store.commit([("fleet", "fleet", FLEET["fleet"])])
    put(store, a=1)
    shutil.rmtree(path.parent)
    other, _ = opened(path)
    other.commit([("fleet", "fleet", {"fleet_id": "f-2", "term": 1}), ("workers", "x", {"n": 9})])

    with pytest.raises(ProcGuardError, match="fleet f-2"):
        store.write_again(tables(a=1))

    put(other, y=9)
    assert numbers(loaded(path)) == {"x": 9, "y": 9}
    other.close()
    with pytest.raises(ProcGuardError, match="fleet f-2"):
        store.write_again(tables(a=1))


def test_a_folder_that_was_made_read_only_is_noticed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Permissions do not stop root, so the answer of a read-only disk is simulated."""
    store, _ = opened(path)
    put(store, a=1)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda *_: False)
        assert not store.in_place()
        with pytest.raises(NotDurable, match="read-only"):
            put(store, a=2)
    assert store.in_place()
    store.commit([])
    assert numbers(loaded(path)) == {"a": 2}


def test_a_database_that_is_damaged_while_it_is_used_is_written_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = opened(path)
    store.commit([("fleet", "fleet", FLEET["fleet"])])
    with monkeypatch.context() as patched:
        refusing(patched, sqlite3.SQLITE_CORRUPT)
        with pytest.raises(NotDurable):
            put(store, a=1)
    assert not store.in_place()
    store.write_again(tables(a=1))
    put(store, b=2)
    assert numbers(loaded(path)) == {"a": 1, "b": 2}


def test_the_history_is_written_again_from_what_is_still_open(path: Path) -> None:
    store, now = opened(path)[0], Now(1.0, 1_790_000_000.0)
    store.commit([("fleet", "fleet", FLEET["fleet"])])
    events = EventLog(store)
    events.add("warning", now, reason="first")
    events.flush()
    shutil.rmtree(path.parent)
    events.add("warning", now, reason="second")
    with pytest.raises(NotDurable):
        events.flush()

    store.write_again(tables())
    events.flush()

    assert [event["reason"] for event in store.find("events", EventQuery(), 10)] == ["first", "second"]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    home = tmp_path / "home"
    home.mkdir()
    with Manager(tmp_path, own_environment(home), ["monitoring.interval=0.2"]) as running:
        yield running


def registered(manager: Manager, worker_id: str) -> int:
    return manager.request("POST", "/api/workers/register", {"worker_id": worker_id, "command": "true"})[0]


def newest(manager: Manager, kind: str) -> list[dict[str, Any]]:
    return [event for event in manager.get("/api/events")["events"] if event["kind"] == kind]


@pytest.mark.slow
def test_a_manager_whose_state_folder_is_deleted_says_so_and_writes_it_again(manager: Manager) -> None:
    assert registered(manager, "w1") == 200
    data = manager.directory / "data"

    shutil.rmtree(data)

    status, body = manager.request("POST", "/api/tokens", {"scope": "viewer", "name": "screen"})
    assert status in (503, 201), body  # 201: it was written again before
    wait_until(lambda: newest(manager, "not_durable"), 10, "the manager notices")
    wait_until(lambda: manager.request("GET", "/readyz")[0] == 200, 10, "the state is written again")
    assert "written again from memory" in newest(manager, "state")[-1]["reason"]
    wait_until((data / "procguard_state.yaml").exists, 20, "the snapshot")
    assert {(data / f"procguard_state.{kind}").stat().st_mode & 0o777 for kind in ("yaml", "db", "db-wal")} == {0o600}
    assert registered(manager, "w2") == 200
    manager.kill()
    manager.start()
    assert {worker["worker_id"] for worker in manager.get("/api/remote-workers")["workers"]} == {"w1", "w2"}


@pytest.mark.slow
def test_a_second_manager_in_the_place_of_the_first_keeps_its_state(manager: Manager, tmp_path: Path) -> None:
    assert registered(manager, "w1") == 200
    os.kill(manager.process.pid, 19)  # type: ignore[union-attr]  # SIGSTOP: it notices nothing meanwhile
    try:
        shutil.rmtree(manager.directory / "data")
        second = Manager(tmp_path, manager.environment)
        with second:
            assert registered(second, "other") == 200
            os.kill(manager.process.pid, 18)  # type: ignore[union-attr]
            wait_until(lambda: manager.request("GET", "/readyz")[0] == 503, 10, "the first one refuses")
            assert registered(manager, "w3") == 503
            assert registered(second, "other2") == 200
            second.kill()
            second.start()
            workers = {worker["worker_id"] for worker in second.get("/api/remote-workers")["workers"]}
            assert workers == {"other", "other2"}
    finally:
        os.kill(manager.process.pid, 18)  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_manager_whose_state_another_one_has_opened_refuses_and_ends(manager: Manager) -> None:
    """Only where its lock has no effect, such as on a network file system."""
    assert registered(manager, "w1") == 200
    other, _ = opened(manager.directory / "data" / "procguard_state.yaml")

    status, body = manager.request("POST", "/api/tokens", {"scope": "viewer", "name": "screen"})

    assert status == 503 and b"another manager has since opened this state" in body
    wait_until(lambda: manager.process.poll() is not None, 20, "it ends")  # type: ignore[union-attr]
    put(other, a=1)
    other.close()
