"""SQLite's store and its readable snapshot; test_store_conformance.py tests what every store guarantees."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.errors import ProcGuardError
from procguard.fleet.history.query import EventQuery
from procguard.fleet.store import database, open_store, snapshot, sqlite
from tests.sizes import examples
from tests.unit.store_rig import KINDS, changed, loaded, numbers, opened, put, saved
from tests.waiting import wait_until


@pytest.fixture(params=[*KINDS, "network"])
def path(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """`network`: as on a file system that machines share, without a write-ahead log."""
    if request.param == "network":
        monkeypatch.setattr(database, "on_network", lambda _path: True)
        return tmp_path / "state.yaml"
    return tmp_path / f"state{request.param}"


def copied(path: Path, to: str) -> Path:
    """A copy of the files of a running store: what remains if the machine dies now."""
    folder = path.parent / to
    folder.mkdir()
    for name in os.listdir(path.parent):
        if name.startswith(path.stem):
            shutil.copy(path.parent / name, folder / name)
    return folder / path.name


def test_later_changes_win_whatever_lies_between_them(path: Path) -> None:
    store, _ = opened(path)
    for n in range(50):
        put(store, w1=n, **{f"v{n}": n})
        if n in (15, 35):
            saved(store)
    store.commit([("workers", "v7", None)])
    expected = {"w1": 49, **{f"v{n}": n for n in range(50) if n != 7}}
    assert numbers(loaded(copied(path, "died"))) == expected
    store.close()
    assert numbers(loaded(path)) == expected


def test_a_deleted_record_stays_deleted_over_snapshots_and_comes_back_when_put_again(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store)
    store.commit([("workers", "w1", None), ("workers", "never", None)])
    saved(store)
    assert numbers(loaded(copied(path, "one"))) == {}
    put(store, w1=2)
    assert numbers(loaded(copied(path, "two"))) == {"w1": 2}
    store.close()


@pytest.mark.parametrize(
    "text", ["训练 🚂", "\x00\x1f\u2028", 'quote " and \\', "- yaml: {", "", "null", "~", "=", "2026-11-24"]
)
def test_any_text_comes_back_as_it_was(path: Path, text: str) -> None:
    store, _ = opened(path)
    record = {"command": text, text: [text, None, 1.5, True], "deep": {"deeper": {text: text}}}
    store.commit([("workers", "w-" + text.replace("\x00", ""), record)])
    store.close()
    assert list(loaded(path).tables["workers"].values()) == [record]


def test_everything_is_private_and_the_umask_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The umask belongs to the process: two threads that change and restore it can leave it changed."""
    before = os.umask(0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda _mask: pytest.fail("the umask of all threads was changed"))
            store, _ = opened(path)
            for n in range(3):
                put(store, w1=n)
                saved(store)
            names = os.listdir(path.parent)
            assert [oct(os.stat(path.parent / name).st_mode & 0o077) for name in names] == ["0o0"] * len(names)
            store.close()
    finally:
        os.umask(before)


def test_reading_changes_nothing(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store)
    put(store, w1=2)
    store.close()
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}
    assert numbers(loaded(path)) == {"w1": 2}
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before


# ------------------------------------------------------------------------------------------------------ the history


def event(seq: int, **values: Any) -> tuple[str, dict[str, Any]]:
    return "events", {"seq": seq, "at": f"2026-11-24T00:00:{seq:02}.000Z", "kind": "x", "reason": f"r{seq}", **values}


@pytest.mark.parametrize("field", ["worker", "host", "operation"])
def test_what_is_asked_for_most_is_found_by_an_index(tmp_path: Path, field: str) -> None:
    store, _ = opened(tmp_path / "s.db")
    where, values = database.condition("events", EventQuery(**{field: ("a",)}))
    assert store._reader is not None
    plan = store._reader.execute(f"EXPLAIN QUERY PLAN SELECT body FROM history WHERE {where} ORDER BY seq", values)
    assert f"USING INDEX history_{field}" in str(plan.fetchall())
    store.close()


# ------------------------------------------------------------------------------------------------- the snapshot


@pytest.mark.slow
def test_a_process_of_its_own_writes_the_snapshot_within_seconds_and_an_idle_store_none(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    store, _ = opened(path, auto_save=True)
    for n in range(3):
        store.commit([("workers", "训练", {"command": "python train.py", "n": n})])
        began = time.monotonic()

        def shown() -> Any:
            store.save()
            return path.exists() and yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]["workers"]["训练"]

        wait_until(lambda n=n: (shown() or {}).get("n") == n, 20, "the snapshot", 0.05)
        assert time.monotonic() - began < 15
    wait_until(store._saver_ended, 10, "the saving process ends")
    store._save_due = 0.0
    store.save()
    assert not store._saver.running()
    store.close()


def test_an_end_does_not_wait_for_a_snapshot_that_takes_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops a manager of ten thousand workers gives it some seconds: the database has everything."""
    path = tmp_path / "s.yaml"
    slow: list[subprocess.Popen[bytes]] = []

    def start(saver: snapshot.SavingProcess, *_words: str) -> None:
        slow.append(subprocess.Popen(["sleep", "60"]))
        saver._pid, saver._began = slow[-1].pid, time.monotonic()

    monkeypatch.setattr(snapshot.SavingProcess, "start", start)
    monkeypatch.setattr(sqlite, "SAVED_AT_END_S", 0.1)
    store, _ = opened(path, auto_save=True)
    put(store, w1=1)
    store.close()
    assert len(slow) == 1
    assert slow[0].wait(10) in (-signal.SIGKILL, 0)  # 0: the store has learnt of its end before this test
    assert numbers(loaded(path)) == {"w1": 1}


@pytest.mark.slow
@pytest.mark.parametrize("auto_save", [True, False])
def test_an_end_leaves_a_complete_snapshot_unless_auto_save_is_off(tmp_path: Path, auto_save: bool) -> None:
    path = tmp_path / "s.yaml"
    store, _ = opened(path, auto_save=auto_save)
    put(store, w1=1)
    store.close()
    assert path.exists() is auto_save
    assert numbers(loaded(path)) == {"w1": 1}
    if auto_save:
        path.with_suffix(".db").unlink()
        found = loaded(path)
        assert (numbers(found), found.intact) == ({"w1": 1}, False)  # may be older than what runs


def with_two_snapshots(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store)
    put(store, w1=2)
    saved(store)
    store.close()


@pytest.mark.parametrize("database_is_there", [True, False])
@pytest.mark.parametrize("harm", ["edited", "restored", "of another", "not one"])
def test_a_snapshot_that_is_not_the_last_one_written_is_neither_ignored_nor_overwritten(
    tmp_path: Path, harm: str, database_is_there: bool
) -> None:
    path, other = tmp_path / "s.yaml", tmp_path / "other.yaml"
    with_two_snapshots(path)
    if harm == "edited":
        path.write_text(path.read_text().replace('"n": 2', '"n": 7'))
    elif harm == "restored":
        os.replace(f"{path}.prev", path)
    elif harm == "of another":
        with_two_snapshots(other)
        os.replace(other, path)
    else:
        path.write_text("all:\n  hosts:\n    web-01:\n")
    if not database_is_there:
        if harm in ("restored", "of another"):
            return  # then it is a state to start from, and every agent is asked
        path.with_suffix(".db").unlink()
    before = path.read_bytes()
    with pytest.raises(ProcGuardError, match=r"not the snapshot that .* invoke state.import"):
        opened(path)
    assert path.read_bytes() == before


def test_a_snapshot_newer_than_its_database_is_used_and_every_agent_asked(tmp_path: Path) -> None:
    """The database was restored, or lost its write-ahead log."""
    path = tmp_path / "s.yaml"
    store, _ = opened(path)
    put(store, w1=1)
    store.close()
    shutil.copy(path.with_suffix(".db"), tmp_path / "older.db")
    with_two_snapshots(path)
    os.replace(tmp_path / "older.db", path.with_suffix(".db"))
    store, found = opened(path)
    assert (numbers(found), found.intact) == ({"w1": 2}, False)
    put(store, w1=3)
    store.close()
    assert (numbers(loaded(path)), loaded(path).intact) == ({"w1": 3}, True)


def test_a_start_with_a_complete_database_parses_no_record_of_the_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, parsed = tmp_path / "s.yaml", list[str]()
    with_two_snapshots(path)
    as_written = snapshot.as_written

    def noting(lines: list[str]) -> dict[str, Any] | None:
        parsed.extend(lines)
        return as_written(lines)

    monkeypatch.setattr(snapshot, "as_written", noting)
    assert numbers(loaded(path)) == {"w1": 2}
    assert parsed and not [line for line in parsed if line.startswith(" ")]


def test_a_snapshot_with_a_broken_record_and_the_right_checksum_is_refused_where_it_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with_two_snapshots(path)
    broken = path.read_bytes().replace(b'"n": 2}', b'"n": 2')
    head, _, _ = broken.partition(b"\ntables:\n")
    written = snapshot.read(str(path))
    assert written is not None
    former = snapshot._checksum(written.data.partition(b"\ntables:\n")[0], written.data)
    path.write_bytes(broken.replace(former.encode(), snapshot._checksum(head, broken).encode()))
    path.with_suffix(".db").unlink()
    with pytest.raises(ProcGuardError, match=r"not the snapshot that .* invoke state.import"):
        opened(path)


# ------------------------------------------------------------------------------------------- versions, size, place


def test_a_state_of_a_newer_release_is_refused_with_what_to_do_and_left_alone(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    store.close()
    place = Path(store.database)
    changed(place, "UPDATE state SET release = '9.1.0'")
    changed(place, "PRAGMA user_version = 7")
    before = place.read_bytes()
    for action in (lambda: opened(path), lambda: loaded(path)):
        with pytest.raises(
            ProcGuardError, match=r"by ProcGuard 9.1.0 in format 7; .* start ProcGuard 9.1.0 or a later"
        ):
            action()
    assert place.read_bytes() == before


def test_a_snapshot_of_a_newer_release_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    with_two_snapshots(path)
    path.write_text(path.read_text().replace("format: 2", "format: 7"))
    with pytest.raises(ProcGuardError, match="format 7; this release reads up to 2"):
        opened(path)


def test_an_older_state_is_migrated_after_a_copy_was_made(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    store.close()
    before = Path(store.database).read_bytes()
    monkeypatch.setattr(database, "MIGRATIONS", (*database.MIGRATIONS, "CREATE TABLE extra (one TEXT)"))
    store, found = opened(path)
    assert (numbers(found), found.intact) == ({"w1": 1}, True)
    put(store, w2=2)
    store.close()
    copy = Path(f"{store.database}.v1")
    assert copy.stat().st_mode & 0o077 == 0 and len(copy.read_bytes()) == len(before)
    assert numbers(loaded(path)) == {"w1": 1, "w2": 2}


@pytest.mark.parametrize("content", [b"", b"\x89PNG", b"SQLite format 3\x00" + b"x" * 200])
def test_a_file_that_is_no_state_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    place = path.with_suffix(".db")
    place.write_bytes(content)
    with pytest.raises(
        ProcGuardError, match=r"is not a whole state of ProcGuard: .*; restore a backup.*state\.rebuild"
    ):
        open_store(str(path)).load()
    assert place.read_bytes() == content


def test_a_write_ahead_log_stays_bounded_while_commits_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "CHECKPOINT_BYTES", 100_000)
    store, _ = opened(tmp_path / "s.db")
    largest = 0
    for n in range(200):
        put(store, w1=n)
        store.save()
        largest = max(largest, (tmp_path / "s.db-wal").stat().st_size)
    assert largest < 200_000
    store.close()


def test_a_network_file_system_is_recognised(tmp_path: Path) -> None:
    assert not database.on_network(str(tmp_path / "s.db"))


@pytest.mark.slow
def test_twenty_thousand_records_load_within_seconds(path: Path) -> None:
    store, _ = opened(path)
    record = {"spec": {"command": "python train.py --rank 7", "env": {"A": "b" * 50}}, "state": "running"}
    store.commit([("workers", f"w{n}", {**record, "n": n}) for n in range(20_000)])
    store.close()
    began = time.monotonic()
    again, found = opened(path)
    took_s = time.monotonic() - began
    assert len(found.tables["workers"]) == 20_000
    assert took_s < 30
    again.close()


# ------------------------------------------------------------------------------------------------- clear refusals


def test_a_place_that_cannot_be_used_is_one_clear_error(path: Path) -> None:
    (path.parent / "file").write_text("")
    with pytest.raises(ProcGuardError, match=r"state.state_file: cannot use .*; choose another place"):
        open_store(str(path.parent / "file" / path.name)).load()


# ----------------------------------------------------------------------------------------------- each kind's own


@pytest.mark.parametrize("text", ["训练 🚂", "a\x7f\x85\u2028b", "# - {x: [1]}\n\ttwo: 'lines'", "yes", "0x1f", "a: b"])
def test_whatever_reads_yaml_reads_the_snapshot_as_we_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    record = {"text": text, text: [1.5, 10**15, True, None, {}], "empty": ""}
    store, _ = opened(path)
    store.commit([("workers", text, record)])
    saved(store)
    store.close()
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]["workers"] == {text: record}
    _, found = opened(path)
    assert found.tables["workers"] == {text: record}


# --------------------------------------------------------------------------------------------- any course of things

STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abcd"), st.integers(0, 9)),
        st.tuples(st.just("delete"), st.sampled_from("abcd"), st.just(0)),
        st.tuples(st.just("save"), st.just(""), st.just(0)),
        st.tuples(st.just("restart"), st.just(""), st.just(0)),
    ),
    max_size=12,
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=examples(25), deadline=None)
@given(steps=STEPS)
def test_any_course_of_changes_snapshots_and_restarts_is_kept(
    kind: str, tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, str, int]]
) -> None:
    path = tmp_path_factory.mktemp("course") / f"s{kind}"
    store, _ = opened(path)
    model: dict[str, int] = {}
    for what, name, n in steps:
        if what == "put":
            put(store, **{name: n})
            model[name] = n
        elif what == "delete":
            store.commit([("workers", name, None)])
            model.pop(name, None)
        elif what == "save":
            saved(store)
        else:
            store.close()
            store, found = opened(path)
            assert (numbers(found), found.intact) == (model, True)
    store.close()
    assert numbers(loaded(path)) == model


def test_the_process_that_writes_a_snapshot_loads_only_what_it_uses() -> None:
    """It starts every few seconds while the state changes."""
    unused = {"pydantic_core", "logging", "procguard.fleet.store.sqlite"}
    script = f"import sys, procguard.fleet.store.__main__; print({unused} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=60, capture_output=True, text=True)
    assert done.stdout == "set()\n"
