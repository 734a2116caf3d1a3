"""Guarantees of every store: SQLite's in its three forms, and PostgreSQL's on a real server."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from procguard.fleet.history.query import EventQuery
from procguard.fleet.store import database, open_store, postgresql, sqlite
from procguard.fleet.store.interface import Fenced, Loaded, NotDurable, Store
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.fleet.store.postgresql import PostgresqlStore
from tests import postgres_server
from tests.postgres_server import Postgres
from tests.unit.store_rig import refusing

KINDS = ("yaml", "db", "network", "postgresql")


class Kind(Protocol):
    """One state of one kind of store."""

    def opened(self) -> tuple[Store, Loaded]:
        """The next manager's start."""

    def died(self) -> Loaded:
        """What the next manager finds if this one dies now."""

    def fingerprint(self) -> Any:
        """Changes with whatever is written."""

    def refuse(self, patched: pytest.MonkeyPatch) -> None:
        """From now on no commit succeeds."""

    def slowly(self, patched: pytest.MonkeyPatch) -> list[int]:
        """Each write takes 10 ms and is counted."""


class OnSqlite:
    def __init__(self, path: Path) -> None:
        self.path = path
        self._copies = 0

    def opened(self) -> tuple[Store, Loaded]:
        store = open_store(str(self.path), auto_save=False)
        return store, store.load()

    def died(self) -> Loaded:
        self._copies += 1
        folder = self.path.parent / f"died{self._copies}"
        folder.mkdir()
        for name in os.listdir(self.path.parent):
            if name.startswith(self.path.stem + "."):
                shutil.copy(self.path.parent / name, folder / name)
        return open_store(str(folder / self.path.name)).read()

    def fingerprint(self) -> Any:
        names = [name for name in os.listdir(self.path.parent) if name.startswith(self.path.stem)]
        return {name: (self.path.parent / name).read_bytes() for name in names}

    def refuse(self, patched: pytest.MonkeyPatch) -> None:
        refusing(patched)

    def slowly(self, patched: pytest.MonkeyPatch) -> list[int]:
        writes, real = list[int](), sqlite._execute

        def slow(*values: Any) -> None:
            writes.append(1)
            time.sleep(0.01)
            real(*values)

        patched.setattr(sqlite, "_execute", slow)
        return writes


class OnPostgresql:
    def __init__(self, server: Postgres) -> None:
        self.server = server
        self.name = server.database()
        self.place = DatabasePlace(server.url(self.name), str(server.password))

    def opened(self) -> tuple[Store, Loaded]:
        store = PostgresqlStore(self.place, "m1")
        return store, store.load()

    def died(self) -> Loaded:
        return PostgresqlStore(self.place).read()

    def fingerprint(self) -> Any:
        tables = ("leader", "records", "history")
        return [self.server.sql(f"SELECT xmin, t.* FROM procguard.{name} AS t", self.name) for name in tables]

    def refuse(self, patched: pytest.MonkeyPatch) -> None:
        patched.setattr(postgresql, "_COMMIT", postgresql._COMMIT.replace("commit_changes", "no_such_function"))

    def slowly(self, patched: pytest.MonkeyPatch) -> list[int]:
        writes, real = list[int](), PostgresqlStore._write

        def slow(*values: Any) -> None:
            writes.append(1)
            time.sleep(0.01)
            real(*values)

        patched.setattr(PostgresqlStore, "_write", slow)
        return writes


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server.cluster(fsync="off") as started:
        yield started


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow) if kind == "postgresql" else kind for kind in KINDS])
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kind:
    """`network`: as on a file system that machines share, without a write-ahead log."""
    if request.param == "postgresql":
        return OnPostgresql(request.getfixturevalue("server"))
    if request.param == "network":
        monkeypatch.setattr(database, "on_network", lambda _path: True)
    return OnSqlite(tmp_path / ("state.db" if request.param == "db" else "state.yaml"))


def put(store: Store, **numbers: int) -> None:
    store.commit([("workers", name, {"n": n}) for name, n in numbers.items()])


def numbers(found: Loaded) -> dict[str, int]:
    return {key: record["n"] for key, record in found.tables.get("workers", {}).items()}


def event(seq: int, **values: Any) -> tuple[str, dict[str, Any]]:
    return "events", {"seq": seq, "at": f"2026-11-24T00:00:{seq:02}.000Z", "kind": "x", "reason": f"r{seq}", **values}


def test_a_new_state_is_empty_and_intact(kind: Kind) -> None:
    store, found = kind.opened()
    assert (found.tables, found.intact, found.notes) == ({}, True, [])
    store.close()


def test_what_was_committed_is_there_after_the_manager_died(kind: Kind) -> None:
    store, _ = kind.opened()
    put(store, w1=1, w2=2)
    store.commit([("workers", "w1", {"n": 3}), ("workers", "w2", None)])
    found = kind.died()
    assert (numbers(found), found.intact, found.notes) == ({"w1": 3}, True, [])
    store.close()


def test_what_was_committed_is_there_after_an_orderly_end(kind: Kind) -> None:
    store, _ = kind.opened()
    put(store, w1=1)
    store.close()
    again, found = kind.opened()
    assert (numbers(found), found.intact) == ({"w1": 1}, True)
    again.close()


def test_later_changes_win_and_what_was_deleted_stays_away_until_it_is_put_again(kind: Kind) -> None:
    store, _ = kind.opened()
    for n in range(30):
        put(store, w1=n, **{f"v{n}": n})
    store.commit([("workers", "v7", None), ("workers", "never", None)])
    expected = {"w1": 29, **{f"v{n}": n for n in range(30) if n != 7}}
    assert numbers(kind.died()) == expected
    put(store, v7=70)
    store.close()
    again, found = kind.opened()
    assert numbers(found) == {**expected, "v7": 70}
    again.close()


@pytest.mark.parametrize(
    "text", ["训练 🚂", "\x00\x1f\u2028", 'quote " and \\', "", "null", "{a,b}", "\ud800", "%s ? $1"]
)
def test_any_text_comes_back_as_it_was(kind: Kind, text: str) -> None:
    store, _ = kind.opened()
    record = {"command": text, text: [text, None, 1.5, True], "deep": {"deeper": {text: text}}}
    key = "w-" + text.replace("\x00", "").replace("\ud800", "")
    store.commit([("workers", key, record)], [event(1, reason=text, worker_id=text, actor=text)])
    assert [one["reason"] for one in store.find("events", EventQuery(), 9)] == [text]
    assert store.find("events", EventQuery(host=(text,)), 9) == []
    store.close()
    again, found = kind.opened()
    assert found.tables["workers"] == {key: record}
    again.close()


def test_reading_changes_nothing(kind: Kind) -> None:
    store, _ = kind.opened()
    put(store, w1=1)
    put(store, w1=2)
    store.close()
    before = kind.fingerprint()
    assert numbers(kind.died()) == {"w1": 2}
    assert kind.fingerprint() == before


def test_many_committers_share_their_writes_and_each_returns_durable(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = kind.opened()
    writes, wrong, probing = kind.slowly(monkeypatch), list[int](), threading.Lock()

    def commit(n: int) -> None:
        put(store, **{f"w{n}": n})
        with probing:
            if numbers(kind.died()).get(f"w{n}") != n:
                wrong.append(n)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(writes) < 16
    assert numbers(kind.died()) == {f"w{n}": n for n in range(16)}
    store.close()


def test_whoever_opened_the_state_last_fences_the_one_before(kind: Kind) -> None:
    first, _ = kind.opened()
    put(first, w1=1)
    second, _ = kind.opened()
    put(second, w1=2)
    for _ in range(2):
        with pytest.raises(Fenced, match="another manager"):
            put(first, w1=3)
    put(second, w2=2)
    assert numbers(kind.died()) == {"w1": 2, "w2": 2}
    second.close()


def test_what_was_refused_is_written_with_the_next_commit_with_its_events(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = kind.opened()
    store.commit([("workers", "w1", {"n": 1})], [event(1)])
    with monkeypatch.context() as patched:
        kind.refuse(patched)
        with pytest.raises(NotDurable, match="not acknowledged"):
            store.commit([("workers", "w1", {"n": 2})], [event(2)])
        assert numbers(kind.died()) == {"w1": 1}
    store.commit([], [event(3)])
    assert numbers(kind.died()) == {"w1": 2}
    assert [one["seq"] for one in store.find("events", EventQuery(), 10)] == [1, 2, 3]
    assert store.find("audit", EventQuery(), 10) == []
    store.close()


def test_the_history_is_read_forwards_and_backwards_in_pieces(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAGE", 7)
    monkeypatch.setattr(postgresql, "PAGE", 7)
    store, _ = kind.opened()
    lines = [event(seq, worker_id=f"w{seq % 2}", reason="odd" if seq % 2 else "Ü 100%_") for seq in range(1, 51)]
    store.commit([], lines)

    def seqs(query: EventQuery, limit: int, after: int | None = None) -> list[int]:
        return [one["seq"] for one in store.find("events", query, limit, after=after)]

    assert seqs(EventQuery(), 9) == list(range(42, 51))
    assert seqs(EventQuery(), 9, after=0) == list(range(1, 10))
    assert seqs(EventQuery(worker=("w1",)), 3) == [45, 47, 49]
    assert seqs(EventQuery(text="ODD"), 100) == list(range(1, 51, 2))
    assert seqs(EventQuery(text="ü"), 2, after=10) == [12, 14]
    assert seqs(EventQuery(text="100%_"), 2) == [48, 50]
    assert seqs(EventQuery(after=48), 100) == [49, 50]
    assert seqs(EventQuery(before=10), 3) == [7, 8, 9]
    assert seqs(EventQuery(before=10, text="ü"), 9) == [2, 4, 6, 8]
    assert seqs(EventQuery(since=1_795_478_440.0), 100) == list(range(40, 51))
    store.close()


def test_events_are_found_by_the_code_of_any_of_their_reasons(kind: Kind, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "PAGE", 3)
    monkeypatch.setattr(postgresql, "PAGE", 3)
    store, _ = kind.opened()
    codes = ("exit.code", "exit.oom", "exitus", "run.running")
    lines = [event(seq, reason_code=codes[seq % 4], reason_params={}) for seq in range(1, 21)]
    lines.append(event(21, reason_code="text", reason_params={"also": [{"code": "exit.oom", "params": {}}]}))
    store.commit([], lines)

    def seqs(*wanted: str, limit: int = 100, **more: Any) -> list[int]:
        return [one["seq"] for one in store.find("events", EventQuery(reason_code=wanted, **more), limit)]

    assert seqs("exit.oom") == [1, 5, 9, 13, 17, 21]
    assert seqs("exit", limit=4) == [16, 17, 20, 21]
    assert seqs("exit", "run", limit=3, before=9) == [5, 7, 8]
    assert seqs("exit.o") == [] and seqs("Exit") == []
    store.close()


def test_a_log_keeps_to_its_bound_and_loses_its_oldest_events(kind: Kind) -> None:
    store, _ = kind.opened()
    store.keep_history("events", 20_000)
    for n in range(40):
        store.commit([], [event(seq, reason="x" * 100) for seq in range(n * 10, n * 10 + 10)])
    kept = [one["seq"] for one in store.find("events", EventQuery(), 1_000)]
    assert kept == list(range(kept[0], 400))
    assert 20 <= len(kept) <= 70
    store.close()
