"""Every store keeps what it acknowledged: the same tests on all of them."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from procguard.errors import ProcGuardError
from procguard.fleet.store import journaled, open_store
from tests.unit.store_rig import KINDS, loaded, numbers, opened, put, saved, saved_by_process, segments


@pytest.fixture(params=KINDS)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / f"state{request.param}"


def copied(path: Path, to: str) -> Path:
    """The files as they are now, under a running store: what a machine that dies at this moment leaves."""
    folder = path.parent / to
    folder.mkdir()
    for name in os.listdir(path.parent):
        if name.startswith(path.name):
            shutil.copy(path.parent / name, folder / name)
    return folder / path.name


def test_a_new_state_is_empty_and_intact(path: Path) -> None:
    store, found = opened(path)
    assert (found.tables, found.intact, found.notes) == ({}, True, [])
    store.close()


def test_what_was_committed_is_there_after_an_abandoned_run(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1, w2=2)
    store.commit([("workers", "w1", {"n": 3}), ("workers", "w2", None)])
    found = loaded(copied(path, "died"))
    assert (numbers(found), found.intact, found.notes) == ({"w1": 3}, True, [])
    store.close()


def test_what_was_committed_is_there_after_an_orderly_end(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    store.close()
    again, found = opened(path)
    assert (numbers(found), found.intact) == ({"w1": 1}, True)
    again.close()


def test_later_changes_win_whatever_lies_between_them(path: Path) -> None:
    store, _ = opened(path)
    for n in range(50):
        put(store, w1=n, **{f"v{n}": n})
        if n in (15, 35):
            saved(store, path)
    store.commit([("workers", "v7", None)])
    expected = {"w1": 49, **{f"v{n}": n for n in range(50) if n != 7}}
    assert numbers(loaded(copied(path, "died"))) == expected
    store.close()
    assert numbers(loaded(path)) == expected


def test_a_deleted_record_stays_deleted_over_snapshots_and_comes_back_when_put_again(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store, path)
    store.commit([("workers", "w1", None), ("workers", "never", None)])
    saved(store, path)
    assert numbers(loaded(copied(path, "one"))) == {}
    put(store, w1=2)
    assert numbers(loaded(copied(path, "two"))) == {"w1": 2}
    store.close()


def test_a_commit_without_wait_is_durable_with_the_next_one(path: Path) -> None:
    store, _ = opened(path)
    store.commit([("workers", "w1", {"n": 1})], wait=False)
    store.commit([])
    assert numbers(loaded(copied(path, "died"))) == {"w1": 1}
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


@pytest.mark.slow
def test_a_process_of_its_own_writes_the_snapshot_and_an_idle_store_none(path: Path) -> None:
    store, _ = opened(path, auto_save=True)
    put(store, w1=1)
    saved_by_process(store, path)
    before = segments(path)
    store.save()
    assert segments(path) == before
    put(store, w1=2)
    saved_by_process(store, path)
    assert os.path.exists(f"{path}.prev")
    assert len(segments(path)) <= 2
    put(store, w1=3)
    store.close()
    assert numbers(loaded(path)) == {"w1": 3}


def test_an_end_does_not_wait_for_a_snapshot_that_takes_long(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who stops a manager of ten thousand workers gives it some seconds: the journal has everything."""
    slow: list[subprocess.Popen[bytes]] = []

    def start(saver: journaled.SavingProcess, _words: list[str]) -> None:
        slow.append(subprocess.Popen(["sleep", "60"]))
        saver._pid = slow[-1].pid

    monkeypatch.setattr(journaled.SavingProcess, "start", start)
    monkeypatch.setattr(journaled, "SAVED_AT_END_S", 0.1)
    store, _ = opened(path, auto_save=True)
    put(store, w1=1)
    store.close()
    assert len(slow) == 1 and slow[0].wait(10) == -signal.SIGKILL
    assert numbers(loaded(path)) == {"w1": 1}


def test_the_journal_stays_short_when_snapshots_are_made(path: Path) -> None:
    store, _ = opened(path)
    for n in range(4):
        put(store, w1=n)
        saved(store, path)
    assert len(segments(path)) <= 3
    store.close()


def test_auto_save_false_writes_no_snapshot_and_loses_nothing(path: Path) -> None:
    store, _ = opened(path, auto_save=False)
    put(store, w1=1)
    store.save()
    store.close()
    assert not os.path.exists(f"{path}.prev")
    assert numbers(loaded(path)) == {"w1": 1}


def test_everything_is_private_and_the_umask_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the whole process's: two threads that change it and change it back can leave it changed."""
    before = os.umask(0)
    try:
        with monkeypatch.context() as patched:
            patched.setattr(os, "umask", lambda _mask: pytest.fail("the umask of all threads was changed"))
            store, _ = opened(path)
            for n in range(3):
                put(store, w1=n)
                saved(store, path)
            names = os.listdir(path.parent)
            assert [oct(os.stat(path.parent / name).st_mode & 0o077) for name in names] == ["0o0"] * len(names)
            store.close()
    finally:
        os.umask(before)


def test_reading_changes_nothing(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store, path)
    put(store, w1=2)
    store.close()
    before = {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)}
    assert numbers(loaded(path)) == {"w1": 2}
    assert {name: (path.parent / name).read_bytes() for name in os.listdir(path.parent)} == before


def test_many_committers_share_their_syncs_and_each_returns_durable(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, _ = opened(path)
    syncs = []
    real = os.fdatasync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (syncs.append(fd), time.sleep(0.005), real(fd)))
    wrong: list[Any] = []

    def commit(n: int) -> None:
        put(store, **{f"w{n}": n})
        if numbers(loaded(copied(path, f"seen{n}"))).get(f"w{n}") != n:
            wrong.append(n)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert len(syncs) < 24
    store.close()
    assert numbers(loaded(path)) == {f"w{n}": n for n in range(24)}


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


def test_a_state_of_a_newer_release_is_refused_and_left_alone(path: Path) -> None:
    store, _ = opened(path)
    put(store, w1=1)
    saved(store, path)
    store.close()
    if path.suffix == ".yaml":
        path.write_text(path.read_text().replace("format: 1", "format: 7"))
    else:
        import sqlite3

        with sqlite3.connect(path) as database:
            database.execute("""UPDATE procguard_records SET body = replace(body, '"format":1', '"format":7')""")
        database.close()
    before = path.read_bytes()
    with pytest.raises(ProcGuardError, match="format 7; this release reads up to 1"):
        open_store(str(path)).load()
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content", [b"all:\n  hosts:\n    web-01:\n", b"", b"\x89PNG", b"SQLite format 3\x00" + b"x" * 200]
)
def test_a_file_that_is_no_state_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(ProcGuardError, match=r"is not a state of ProcGuard .*; restore it from a backup, move it away"):
        open_store(str(path)).load()
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_used_is_one_clear_error(path: Path) -> None:
    (path.parent / "file").write_text("")
    with pytest.raises(ProcGuardError, match=r"state.state_file: cannot use .*; choose another place"):
        open_store(str(path.parent / "file" / path.name)).load()


# ----------------------------------------------------------------------------------------------- each kind's own


def test_the_yaml_snapshot_is_readable_and_holds_the_records(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    store, _ = opened(path)
    store.commit([("workers", "训练", {"command": "python train.py"})])
    saved(store, path)
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert document["tables"]["workers"]["训练"]["command"] == "python train.py"
    store.close()


@pytest.mark.parametrize("text", ["训练 🚂", "a\x7f\x85\u2028b", "# - {x: [1]}\n\ttwo: 'lines'", "yes", "0x1f", "a: b"])
def test_whatever_reads_yaml_reads_the_snapshot_as_we_do(tmp_path: Path, text: str) -> None:
    path = tmp_path / "s.yaml"
    record = {"text": text, text: [1.5, 10**15, True, None, {}], "empty": ""}
    store, _ = opened(path)
    store.commit([("workers", text, record)])
    saved(store, path)
    store.close()
    assert yaml.safe_load(path.read_text(encoding="utf-8"))["tables"]["workers"] == {text: record}
    _, found = opened(path)
    assert found.tables["workers"] == {text: record}


def test_a_snapshot_in_another_layout_is_read(tmp_path: Path) -> None:
    """Every field on a line of its own, as an editor or another program may write it."""
    path = tmp_path / "s.yaml"
    store, _ = opened(path)
    store.commit([("workers", "w1", {"n": 1, "command": "python train.py"})])
    saved(store, path)
    store.close()
    document = yaml.safe_load(path.read_text(encoding="utf-8"))
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
    _, found = opened(path)
    assert found.intact
    assert found.tables["workers"]["w1"] == {"n": 1, "command": "python train.py"}


def test_the_database_shows_each_commit_at_once_to_whoever_looks(tmp_path: Path) -> None:
    import sqlite3

    path = tmp_path / "s.db"
    store, _ = opened(path)
    put(store, w1=1)
    looker = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    assert looker.execute("select body from procguard_records where kind='workers'").fetchall() == [('{"n":1}',)]
    assert looker.execute("pragma journal_mode").fetchone() == ("wal",)
    looker.close()
    store.close()


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
@settings(max_examples=25, deadline=None)
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
            saved(store, path)
        else:
            store.close()
            store, found = opened(path)
            assert (numbers(found), found.intact) == (model, True)
    store.close()
    assert numbers(loaded(path)) == model
