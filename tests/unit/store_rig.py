"""What the tests of the stores share: the same words for every kind of store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from procguard.fleet.store import open_store, sql, yaml_file
from procguard.fleet.store.interface import Loaded
from procguard.fleet.store.journaled import JournaledStore
from tests.waiting import wait_until

KINDS = (".yaml", ".db")
Numbers = dict[str, int]


def opened(path: Path | str, *, auto_save: bool = False, **options: Any) -> tuple[JournaledStore, Loaded]:
    """Without `auto_save` it starts no saving process, also at its end: `saved` does here what that would."""
    store = open_store(str(path), auto_save=auto_save, **options)
    assert isinstance(store, JournaledStore)
    return store, store.load()


def loaded(path: Path | str) -> Loaded:
    """What the next start would find; changes nothing."""
    return open_store(str(path)).read()


def saved(store: JournaledStore, path: Path | str) -> None:
    """A snapshot of everything up to now is on disk; made in this process, by what the saving process runs."""
    save = sql.copy if isinstance(store, sql.SqlStore) else yaml_file.fold
    save(str(path), store._journal.rotate())


def saved_by_process(store: JournaledStore, path: Path | str) -> None:
    """The same as it is done for a manager."""
    before = segments(path)
    store.save()
    assert segments(path) != before
    wait_until(lambda: not store._saver.running(), 60, "the saving process ends")


def segments(path: Path | str) -> list[str]:
    name = os.path.basename(path)
    return sorted(one for one in os.listdir(os.path.dirname(path)) if one.startswith(name + ".j"))


def put(store: JournaledStore, **numbers: int) -> None:
    store.commit([("workers", name, {"n": n}) for name, n in numbers.items()])


def numbers(found: Loaded) -> Numbers:
    return {key: record["n"] for key, record in found.tables.get("workers", {}).items()}
