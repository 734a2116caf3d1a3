"""Helpers of the tests of the stores, with the same names for every kind of store."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.store import __main__ as saving
from procguard.fleet.store import open_store, sqlite
from procguard.fleet.store.interface import Loaded
from procguard.fleet.store.sqlite import SqliteStore

KINDS = (".yaml", ".db")
Numbers = dict[str, int]


def opened(path: Path | str, *, auto_save: bool = False, **options: Any) -> tuple[SqliteStore, Loaded]:
    """Without `auto_save` it starts no saving process, also at its end: `saved` does here what that would."""
    store = open_store(str(path), auto_save=auto_save, **options)
    return store, store.load()


def loaded(path: Path | str) -> Loaded:
    """What the next start would find; changes nothing."""
    return open_store(str(path)).read()


def saved(store: SqliteStore) -> None:
    """The files hold everything up to now: the snapshot, made in this process, and the database by itself."""
    if store.readable:
        saving.save(store.database, store.readable)
        store._held.snapshot = store._held.commits
        store.commit([("saved", "saved", {"n": store._held.commits})])
    assert store._writer is not None
    store._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


def put(store: SqliteStore, **numbers: int) -> None:
    store.commit([("workers", name, {"n": n}) for name, n in numbers.items()])


def numbers(found: Loaded) -> Numbers:
    return {key: record["n"] for key, record in found.tables.get("workers", {}).items()}


def refusing(patched: pytest.MonkeyPatch, code: int = sqlite3.SQLITE_FULL) -> None:
    """From here on the disk refuses every commit, with this code of SQLite's."""

    def refuse(*_: object) -> None:
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = code
        raise error

    patched.setattr(sqlite, "_execute", refuse)


def changed(database: Path, statement: str, *values: Any) -> None:
    """As somebody with `sqlite3` would."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute(statement, values)
