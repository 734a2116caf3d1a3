"""Files damaged, truncated or lost, refusing disks: a store loads, and knows what it cannot prove."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.store import open_store
from procguard.fleet.store.interface import NotDurable
from tests.sizes import examples
from tests.unit.store_rig import KINDS, changed, loaded, numbers, opened, put, refusing, saved

WHOLE = {f"w{n}": n for n in range(8)}
SAVED = {f"w{n}": n for n in range(6)}  # of these the snapshot, and the database without its log


def lived(path: Path) -> Path:
    """A state with two snapshots behind it, changes since, and a manager that was killed."""
    store, _ = opened(path)
    store.commit([("fleet", "fleet", {"fleet_id": "f-1", "term": 3})])
    for n in range(8):
        put(store, **{f"w{n}": n})
        if n in (2, 5):
            saved(store)
    died = path.parent / "died"
    died.mkdir()
    for name in os.listdir(path.parent):
        if name.startswith(path.stem):
            shutil.copy(path.parent / name, died / name)
    store.close()
    return died / path.name


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: lived(tmp_path_factory.mktemp("lived") / f"s{kind}") for kind in KINDS}


@contextlib.contextmanager
def a_copy(state: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pgstore"))
    try:
        for name in os.listdir(state.parent):
            shutil.copy(state.parent / name, folder / name)
        yield folder / state.name
    finally:
        shutil.rmtree(folder)


def files(path: Path) -> list[str]:
    """Of a state that is not in use, without the log's index, which SQLite recreates."""
    return sorted(name for name in os.listdir(path.parent) if not name.endswith("-shm"))


def check(path: Path, *, last_may_be_cut: bool = False) -> None:
    """It loads; its content was committed; missing parts are known to be missing; then it is complete again."""
    seen = loaded(path)
    store, found = opened(path)
    assert (found.tables, found.intact) == (seen.tables, seen.intact)
    kept = numbers(found)
    assert kept.items() <= WHOLE.items()
    assert found.tables["fleet"]["fleet"] == {"fleet_id": "f-1", "term": 3}
    if found.intact and not last_may_be_cut:
        assert kept == WHOLE
    put(store, w9=9)
    saved(store)
    store.close()
    again = loaded(path)
    assert (numbers(again), again.intact) == ({**kept, "w9": 9}, True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_lost_file_and_every_lost_pair_is_survived_and_reported(states: dict[str, Path], kind: str) -> None:
    """For a readable state: any damage but the loss of everything; for a database alone: its own files."""
    names = files(states[kind])
    assert len(names) == (4 if kind == ".yaml" else 2)
    for lost in [*itertools.combinations(names, 1), *itertools.combinations(names, 2)]:
        with a_copy(states[kind]) as path:
            for name in lost:
                (path.parent / name).unlink()
            if not files(path):
                continue  # then it is a new fleet, with higher epochs
            if "s.db" in lost and kind == ".db":
                with pytest.raises(ProcGuardError, match="it is missing; restore a backup"):
                    loaded(path)
                continue
            found = loaded(path)
            assert found.intact is (numbers(found) == WHOLE), lost
            check(path)


@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_write_ahead_log_is_noticed(states: dict[str, Path], kind: str) -> None:
    with a_copy(states[kind]) as path:
        path.with_name("s.db-wal").unlink()
        found = loaded(path)
        assert (numbers(found), found.intact) == (SAVED, False)
        assert "-wal: missing" in found.notes[0]
        check(path)


@pytest.mark.parametrize("kept", [0.0, 0.3, 0.7, 0.99])
def test_a_write_ahead_log_that_was_cut_is_noticed_by_its_index(states: dict[str, Path], kept: float) -> None:
    with a_copy(states[".db"]) as path:
        wal = path.with_name("s.db-wal")
        os.truncate(wal, int(wal.stat().st_size * kept))
        found = loaded(path)
        assert not found.intact and numbers(found).items() < WHOLE.items()
        assert "-wal: damaged" in found.notes[0]
        check(path)


@pytest.mark.parametrize("content", [b"", b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_database_that_is_garbage_falls_back_to_the_snapshot_and_is_kept_for_inspection(
    states: dict[str, Path], content: bytes
) -> None:
    with a_copy(states[".yaml"]) as path:
        database = path.with_suffix(".db")
        database.write_bytes(content)
        store, found = opened(path)
        assert (numbers(found), found.intact) == (SAVED, False)
        assert "the snapshot is used, and every agent is asked first" in found.notes[0]
        put(store, w9=9)
        store.close()
        assert Path(f"{database}.damaged").read_bytes() == content
        assert numbers(loaded(path)) == {**SAVED, "w9": 9}


def test_a_damaged_history_costs_no_record(tmp_path: Path) -> None:
    path = tmp_path / "s.db"
    store, _ = opened(path)
    put(store, **WHOLE)
    event = {"at": "2026-11-24T00:00:00.000Z", "kind": "x", "reason": "r" * 3000}
    store.commit([], [("events", {**event, "seq": seq}) for seq in range(40)])
    store.close()
    with sqlite3.connect(path) as database:
        (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'history_at'").fetchone()
    database.close()
    data = bytearray(path.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = b"\xff" * 4096
    path.write_bytes(data)
    store, found = opened(path)
    assert (numbers(found), found.intact) == (WHOLE, True)
    assert "all records are whole" in found.notes[0]
    put(store, w9=9)
    store.close()
    assert loaded(path).notes == []


@pytest.mark.parametrize("column", ["body", "id", "kind"])
def test_a_record_that_was_changed_is_never_taken_for_the_truth(states: dict[str, Path], column: str) -> None:
    for kind in KINDS:
        with a_copy(states[kind]) as path:
            changed(path.with_suffix(".db"), f"UPDATE records SET {column} = 'x' WHERE id = 'w1'")
            if kind == ".db":
                with pytest.raises(ProcGuardError, match=r"not those that were written\); restore a backup"):
                    loaded(path)
            else:
                found = loaded(path)
                assert (numbers(found), found.intact) == (SAVED, False)


DAMAGE = st.tuples(st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.integers(1, 64))


def check_or_refused(path: Path) -> None:
    try:
        seen = loaded(path)
    except ProcGuardError as exc:
        assert exc.code in ("bad_state_file", "foreign_snapshot", "newer_state")
        with pytest.raises(ProcGuardError):
            opened(path)
        return
    assert seen.tables, "a new fleet beside what is left of another"
    check(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(60), deadline=None)
@given(damage=DAMAGE)
@example(damage=(0, 0.0, 255, 1))
@example(damage=(1, 0.0, 1, 1))
@example(damage=(1, 0.96875, 1, 5))
def test_damage_anywhere_in_one_file_is_never_taken_for_the_truth(
    states: dict[str, Path], kind: str, damage: tuple[int, float, int, int]
) -> None:
    which, where, flip, length = damage
    with a_copy(states[kind]) as path:
        names = files(path)
        victim = path.parent / names[which % len(names)]
        data = bytearray(victim.read_bytes())
        begin = int(where * len(data))
        for position in range(begin, min(len(data), begin + length)):
            data[position] ^= flip
        victim.write_bytes(data)
        check_or_refused(path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(30), deadline=None)
@given(which=st.integers(0, 20), where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_holds_nothing_that_was_not_committed(
    states: dict[str, Path], kind: str, which: int, where: float
) -> None:
    with a_copy(states[kind]) as path:
        names = files(path)
        victim = path.parent / names[which % len(names)]
        os.truncate(victim, int(where * victim.stat().st_size))
        check_or_refused(path)


# ---------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("code", "words"),
    [
        (sqlite3.SQLITE_FULL, "No space left on device"),
        (sqlite3.SQLITE_IOERR_FSYNC, "full"),
        (sqlite3.SQLITE_READONLY, "Read-only"),
    ],
)
def test_a_disk_that_refuses_acknowledges_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int, words: str
) -> None:
    path = tmp_path / f"s{kind}"
    store, _ = opened(path)
    put(store, w1=1)
    with monkeypatch.context() as patched:
        refusing(patched, code)
        for n in (2, 3):
            with pytest.raises(NotDurable, match=rf"{words}.*is not acknowledged; free space or repair the disk"):
                put(store, w2=n)
        assert numbers(loaded(path)) == {"w1": 1}
    store.commit([])
    assert numbers(loaded(path)) == {"w1": 1, "w2": 3}
    put(store, w3=3)
    store.close()
    found = loaded(path)
    assert (numbers(found), found.intact) == ({"w1": 1, "w2": 3, "w3": 3}, True)


def test_an_end_on_a_full_disk_says_so_and_leaves_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "s.yaml"
    store, _ = opened(path)
    put(store, w1=1)
    with monkeypatch.context() as patched:
        refusing(patched)
        with pytest.raises(NotDurable):
            put(store, w1=2)
        with pytest.raises(NotDurable):
            store.close()
    found = loaded(path)
    assert (numbers(found), found.intact) == ({"w1": 1}, True)


# ------------------------------------------------------------------------------------------ what the fleet makes of it


def next_epoch(fleet: Fleet) -> int:
    with fleet.state.transaction(Now(0.0, 1_790_000_000.0)) as tx:
        return fleet.state.next_epoch(tx)


def fleet_of(path: Path, wall: float) -> Fleet:
    store = open_store(str(path), auto_save=False)
    return Fleet(store, EventLog(store), FleetSettings(), Now(0.0, wall))


@pytest.mark.parametrize("kind", KINDS)
def test_no_epoch_is_granted_twice_whatever_files_are_lost_in_between(tmp_path: Path, kind: str) -> None:
    """Also if all of them are lost: then it is another fleet, and its epochs are higher nevertheless."""
    path = tmp_path / f"s{kind}"
    granted: list[int] = []
    wall = 1_790_000_000.0
    whole = ("",)
    for lost in [(), whole, (".db", ".db-wal"), (".yaml",), (".yaml", ".yaml.prev"), (), whole]:
        for _ in range(2):
            fleet = fleet_of(path, wall)
            granted += [next_epoch(fleet) for _ in range(3)]
            fleet.state.durability.commit()
            saved(fleet.state.store)  # type: ignore[arg-type]
            fleet.close()
            wall += 20.0
        for name in os.listdir(tmp_path):
            if any(name == f"s{ending}" or not ending for ending in lost):
                os.unlink(tmp_path / name)
        wall += 60.0
    assert len(set(granted)) == len(granted)
    assert granted == sorted(granted)


def test_the_fleet_s_name_and_key_survive_every_pair_of_lost_files(tmp_path: Path) -> None:
    """Otherwise no agent would recognize its manager."""
    path = tmp_path / "s.yaml"
    first = fleet_of(path, 1_790_000_000.0)
    for n in range(3):
        next_epoch(first)
        first.state.durability.commit()
        saved(first.state.store)  # type: ignore[arg-type]
        first.close()
        if n < 2:
            first = fleet_of(path, 1_790_000_000.0)
    names = os.listdir(tmp_path)
    assert len(names) == 3
    for lost in itertools.combinations(names, 2):
        with a_copy(path) as copy:
            for name in lost:
                (copy.parent / name).unlink()
            again = fleet_of(copy, 1_790_000_000.0)
            assert (again.state.fleet_id, again.state.proof_key("h1")) == (
                first.state.fleet_id,
                first.state.proof_key("h1"),
            ), lost
            again.close()


def test_an_unreadable_state_says_so_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.mkdir()
    with pytest.raises(ProcGuardError, match=r"state.state_file: cannot use .*s.yaml \(Is a directory\)"):
        open_store(str(path)).load()
