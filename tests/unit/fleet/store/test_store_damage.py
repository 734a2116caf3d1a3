"""Files damaged, cut, lost one by one or in pairs, disks that refuse: a store loads, and knows what it can't prove."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from procguard.errors import ProcGuardError
from procguard.fleet.history.events import EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.registry import Registry
from procguard.fleet.state import events_path
from procguard.fleet.store import appendlog, open_store
from procguard.fleet.store.journal import segment_path
from tests.unit.store_rig import KINDS, loaded, numbers, opened, put, saved, segments

WHOLE = {f"w{n}": n for n in range(8)}


def lived(path: Path) -> Path:
    """A state with two snapshots behind it, a journal after them, and a manager that was killed."""
    store, _ = opened(path)
    store.commit([("fleet", "fleet", {"fleet_id": "f-1", "term": 3})])
    for n in range(8):
        put(store, **{f"w{n}": n})
        if n in (2, 5):
            saved(store, path)
    died = path.parent / "died"
    died.mkdir()
    for name in os.listdir(path.parent):
        if name.startswith(path.name):
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
    """Of a state that is not in use; what SQLite makes anew by itself is none of ours."""
    return sorted(name for name in os.listdir(path.parent) if not name.endswith("-shm"))


def check(path: Path, *, everything: bool = False, last_line_may_be_cut: bool = False) -> None:
    """It loads; what it holds was committed; what is missing it knows to be missing; once saved it is whole again."""
    seen = loaded(path)
    store, found = opened(path, auto_save=False)
    assert (found.tables, found.intact) == (seen.tables, seen.intact)
    kept = numbers(found)
    assert kept.items() <= WHOLE.items()
    if everything or (found.intact and not last_line_may_be_cut):
        assert kept == WHOLE
    put(store, w9=9)
    saved(store, path)
    store.close()
    again = loaded(path)
    assert (numbers(again), again.intact) == ({**kept, "w9": 9}, True)


@pytest.mark.parametrize("kind", KINDS)
def test_no_single_lost_snapshot_file_costs_an_acknowledged_change(states: dict[str, Path], kind: str) -> None:
    snapshots = [name for name in files(states[kind]) if ".j0" not in name]
    assert len(snapshots) == (3 if kind == ".db" else 2)
    for name in snapshots:
        with a_copy(states[kind]) as path:
            (path.parent / name).unlink()
            check(path, everything=True)


@pytest.mark.parametrize("kind", KINDS)
def test_every_lost_file_and_every_lost_pair_is_survived_and_told(states: dict[str, Path], kind: str) -> None:
    names = files(states[kind])
    assert len(names) >= 4
    for lost in [*itertools.combinations(names, 1), *itertools.combinations(names, 2)]:
        with a_copy(states[kind]) as path:
            for name in lost:
                (path.parent / name).unlink()
            found = loaded(path)
            assert found.intact is (numbers(found) == WHOLE and found.intact), lost
            assert found.tables["fleet"]["fleet"] == {"fleet_id": "f-1", "term": 3}, lost
            check(path)


def test_a_database_that_lost_its_write_ahead_log_and_is_older_than_its_copy_has_everything(tmp_path: Path) -> None:
    state = lived(tmp_path / "s.db")
    shutil.copy(state, tmp_path / "young.db")
    with a_copy(state) as path:
        # The database as it was before the first checkpoint: its content lay in the log alone.
        for name in ("-wal", "-shm"):
            os.unlink(f"{path}{name}")
        check(path, everything=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_torn_last_line_is_dropped_and_the_rest_kept(states: dict[str, Path], kind: str) -> None:
    with a_copy(states[kind]) as path:
        newest = path.parent / segments(path)[-1]
        with open(newest, "ab") as file:
            file.write(b'0badc0de [["workers","w2",{"n')
        found = loaded(path)
        assert (numbers(found), found.intact) == (WHOLE, True)
        assert "torn (never acknowledged)" in found.notes[0]
        check(path)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("content", [b"", b"{{{", b"\0" * 4096, b"SQLite format 3\0" + b"\xff" * 9000])
def test_a_snapshot_that_is_garbage_falls_back_to_the_one_before_and_is_kept_for_a_look(
    states: dict[str, Path], kind: str, content: bytes
) -> None:
    with a_copy(states[kind]) as path:
        path.write_bytes(content)
        for name in ("-wal", "-shm"):
            Path(f"{path}{name}").unlink(missing_ok=True)
        store, found = opened(path)
        assert (numbers(found), found.intact) == (WHOLE, True)
        put(store, w0=0)
        saved(store, path)
        store.close()
        assert Path(f"{path}.damaged").read_bytes() == content
        check(path, everything=True)


@pytest.mark.parametrize("kind", KINDS)
def test_after_damage_two_good_snapshots_stand_again(states: dict[str, Path], kind: str) -> None:
    """A damaged snapshot never takes the place of the one before it."""
    with a_copy(states[kind]) as path:
        path.write_bytes(b"{{{")
        for name in ("-wal", "-shm"):
            Path(f"{path}{name}").unlink(missing_ok=True)
        store, _ = opened(path)
        put(store, w0=0)
        saved(store, path)
        store.close()
        path.write_bytes(b"{{{")
        check(path, everything=True)


DAMAGE = st.tuples(st.integers(0, 20), st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.integers(1, 64))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=30, deadline=None)
@given(damage=DAMAGE)
@example(damage=(0, 0.0, 255, 1))
@example(damage=(2, 0.0, 1, 1))
@example(damage=(2, 0.96875, 1, 5))
def test_damage_anywhere_in_one_file_is_never_taken_for_the_truth(
    states: dict[str, Path], kind: str, damage: tuple[int, float, int, int]
) -> None:
    which, where, flip, length = damage
    with a_copy(states[kind]) as path:
        names = files(path)
        victim = path.parent / names[which % len(names)]
        data = bytearray(victim.read_bytes())
        if not data:
            return
        begin = int(where * len(data))
        for position in range(begin, min(len(data), begin + length)):
            data[position] ^= flip
        victim.write_bytes(data)
        # A line without its end looks like one that the power cut off while it was written; SQLite has what it said.
        no_line_end = victim.name.endswith(Path(segments(path)[-1]).name) and not data.endswith(b"\n")
        check(path, last_line_may_be_cut=no_line_end and kind == ".yaml")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=20, deadline=None)
@given(which=st.integers(0, 20), where=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_loads_and_holds_nothing_that_was_not_committed(
    states: dict[str, Path], kind: str, which: int, where: float
) -> None:
    """A journal cut within its last line looks as if the power had gone while it was written: for a readable state that
    can't be told, and no power cut takes away what was synced. The database has its own copy of it."""
    with a_copy(states[kind]) as path:
        names = files(path)
        victim = path.parent / names[which % len(names)]
        os.truncate(victim, int(where * victim.stat().st_size))
        found = loaded(path)
        assert numbers(found).items() <= WHOLE.items()
        if kind == ".db":
            check(path)


def test_damage_while_the_manager_runs_is_told_at_the_next_start_not_folded_away(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    store, _ = opened(path)
    put(store, w0=0)
    put(store, w1=1)
    journal = Path(segment_path(str(path), 1))
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0][:12] + b"#" + lines[0][13:] + b"".join(lines[1:]))
    with pytest.raises(ProcGuardError, match="no snapshot is written; restart the manager soon"):
        saved(store, path)
    store.close()
    assert not path.exists()
    found = loaded(path)
    assert (numbers(found), found.intact) == ({"w1": 1}, False)


# ---------------------------------------------------------------------------------------------- disks that refuse


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_disk_that_refuses_acknowledges_nothing_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    path = tmp_path / f"s{kind}"
    store, _ = opened(path, auto_save=True)
    put(store, w1=1)

    def refuse(_fd: int) -> None:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", refuse)
        with pytest.raises(appendlog.NotDurable, match=r"is not acknowledged; free space or repair the disk"):
            put(store, w2=2)
        with pytest.raises(appendlog.NotDurable):
            store.save()
        assert numbers(loaded(path)) == {"w1": 1}
    store.commit([])
    assert numbers(loaded(path)) == {"w1": 1, "w2": 2}
    put(store, w3=3)
    saved(store, path)
    store._auto_save = False
    store.close()
    found = loaded(path)
    assert (numbers(found), found.intact) == ({"w1": 1, "w2": 2, "w3": 3}, True)


@pytest.mark.parametrize("trouble", ["database or disk is full", "disk I/O error", "database disk image is malformed"])
def test_a_database_that_refuses_acknowledges_nothing_although_the_journal_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    import sqlite3

    from sqlalchemy.exc import OperationalError

    from procguard.fleet.store import sql

    path = tmp_path / "s.db"
    store, _ = opened(path)
    put(store, w1=1)

    def refuse(*_: object) -> None:
        raise OperationalError("insert", None, sqlite3.OperationalError(trouble))

    with monkeypatch.context() as patched:
        patched.setattr(sql, "_put", refuse)
        with pytest.raises(appendlog.NotDurable):
            put(store, w2=2)
    put(store, w3=3)
    assert numbers(loaded(path)) == {"w1": 1, "w2": 2, "w3": 3}
    store.close()


# ------------------------------------------------------------------------------------------ what the fleet makes of it


def registry(path: Path, wall: float) -> Registry:
    store = open_store(str(path), auto_save=False)
    return Registry(store, EventLog(events_path(str(path))), FleetSettings(), Now(0.0, wall))


@pytest.mark.parametrize("kind", KINDS)
def test_no_epoch_is_granted_twice_whatever_files_are_lost_in_between(tmp_path: Path, kind: str) -> None:
    """Also when all of them are: then it is another fleet, and its epochs are higher all the same."""
    path = tmp_path / f"s{kind}"
    granted: list[int] = []
    wall = 1_790_000_000.0
    for lost in [(), (kind,), (f"{kind}.prev",), (kind, f"{kind}.prev"), (".j",), (kind, ".j"), ("",), (), ("",)]:
        for _ in range(2):
            fleet = registry(path, wall)
            granted += [fleet.next_epoch() for _ in range(3)]
            fleet.commit()
            saved(fleet._store, path)  # type: ignore[arg-type]
            fleet.close()
            wall += 20.0
        for name in os.listdir(tmp_path):
            if any(name.startswith(f"s{ending}") or (ending == ".j" and ".j0" in name) for ending in lost):
                os.unlink(tmp_path / name)
        wall += 60.0
    assert len(set(granted)) == len(granted)
    assert granted == sorted(granted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fleet_s_name_and_key_survive_every_pair_of_lost_files(tmp_path: Path, kind: str) -> None:
    """Otherwise no agent would know its manager any more."""
    path = tmp_path / f"s{kind}"
    first = registry(path, 1_790_000_000.0)
    for n in range(3):
        first.next_epoch()
        first.commit()
        saved(first._store, path)  # type: ignore[arg-type]
        first.close()
        if n < 2:
            first = registry(path, 1_790_000_000.0)
    names = [name for name in os.listdir(tmp_path) if name.startswith(path.name)]
    for lost in itertools.combinations(names, 2):
        with a_copy(path) as copy:
            for name in lost:
                (copy.parent / name).unlink()
            again = registry(copy, 1_790_000_000.0)
            assert (again.fleet_id, again.proof_key("h1")) == (first.fleet_id, first.proof_key("h1")), lost
            again.close()


def test_an_unreadable_state_says_so_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.mkdir()
    with pytest.raises(ProcGuardError, match=r"state.state_file: cannot use .*s.yaml \(Is a directory\)"):
        open_store(str(path)).load()
