"""A worker cannot fill the manager's disk: its own oldest bytes are deleted, and the log states how many."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.portal.logs import retention
from procguard.portal.logs.retention import Held
from procguard.portal.logs.store import LogStore
from remote_agent.logs import retention as log_disk

MIB = 2**20


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """Holes and blocks are the file system's: here those of a disk."""
    return disk_path


def here(work, *arguments):
    return work(*arguments)


def store_of(path: Path, **bounds: int) -> LogStore:
    return LogStore(str(path / "logs"), sync=lambda paths: None, in_thread=here, **bounds)


def can_punch(path: Path) -> bool:
    probe = path / "probe"
    probe.write_bytes(b"x" * 4 * MIB)
    return not log_disk.punch_hole(str(probe), 0, MIB)


def write(store: LogStore, worker: str, attempt: int, size: int, stream: str = "out") -> None:
    line = (b"%07d\n" % attempt) * (MIB // 8)
    for _ in range(size // MIB):
        stored = store.length(worker, attempt, stream)
        assert store.append(worker, attempt, stream, stored, line, at=1.0) == stored + MIB


def test_old_attempts_go_first_and_whole() -> None:
    streams = [Held(1, "out", 10 * MIB, 10 * MIB), Held(2, "out", 10 * MIB, 10 * MIB), Held(3, "err", 4 * MIB, 4 * MIB)]
    assert retention.decide(streams, 24 * MIB) is None
    assert retention.decide(streams, 20 * MIB) == retention.Cut(2, {})
    assert retention.decide(streams, 8 * MIB) == retention.Cut(3, {})


def test_of_the_newest_attempt_the_head_goes_of_its_largest_stream() -> None:
    streams = [Held(3, "out", 40 * MIB, 16 * MIB), Held(3, "err", 2 * MIB, 2 * MIB)]
    cut = retention.decide(streams, 16 * MIB)
    assert cut is not None and cut.floor == 0
    assert cut.heads == {(3, "out"): 28 * MIB}  # 24 MiB are a hole already; 2 too many, and an eighth of 16 for room


def test_who_has_more_than_a_share_gives_and_nobody_else() -> None:
    held = {"flood": 900 * MIB, "large": 300 * MIB, "small": 10 * MIB, "tiny": 1 * MIB}
    assert retention.share(held, 2000 * MIB) is None
    share = retention.share(held, 800 * MIB)
    assert share is not None and 300 * MIB < share < 400 * MIB  # 700 less the others' 311: only the flood gives


def test_a_worker_that_prints_without_end_keeps_its_end_and_says_what_went(tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system cannot give back parts of a file")
    store = store_of(tmp_path, keep_per_worker=16 * MIB)
    write(store, "w1", 1, 4 * MIB)
    write(store, "w1", 2, 40 * MIB)
    (folder,) = (tmp_path / "logs").iterdir()
    assert retention.total(retention.measure_one(str(folder))) <= 18 * MIB
    assert store.length("w1", 2, "out") == 40 * MIB  # offsets stay what they were
    assert store.attempts("w1") == [2] and store.bytes_dropped >= 26 * MIB
    last = store.tail("w1", lines=5)
    assert [line.text for line in last] == ["0000002"] * 5
    text = b"".join(store.raw("w1", None, None))
    assert text.startswith(b"[procguard: ") and b"dropped]" in text[:100] and b"\0" not in text
    assert store.append("w1", 1, "out", 0, b"late\n", at=2.0) == 5  # of an attempt that is gone: taken, not kept
    assert store.attempts("w1") == [2]


def test_all_together_stay_within_their_bound_and_the_quiet_lose_nothing(tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system cannot give back parts of a file")
    store = store_of(tmp_path, keep_in_all=32 * MIB)
    for worker in ("quiet1", "quiet2"):
        write(store, worker, 1, 2 * MIB)
    write(store, "gone", 1, 4 * MIB)
    store.retire("gone")
    write(store, "flood", 1, 60 * MIB)
    found = retention.measure(str(tmp_path / "logs"))
    assert sum(map(retention.total, found.values())) <= 36 * MIB
    assert not any(name.endswith(".gone") for name in found)
    for worker in ("quiet1", "quiet2"):
        assert b"dropped" not in b"".join(store.raw(worker, None, None))


def test_where_no_part_of_a_file_can_go_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_disk, "punch_hole", lambda path, offset, length: "Operation not supported")
    store = store_of(tmp_path, keep_per_worker=4 * MIB)
    with pytest.raises(OSError, match=r"logs\.keep_per_worker"):
        write(store, "w1", 1, 8 * MIB)
    stored = store.length("w1", 1, "out")
    with pytest.raises(OSError, match="used up"):
        write(store, "w1", 1, MIB)
    assert store.length("w1", 1, "out") == stored  # nothing more is taken
    monkeypatch.undo()
    if can_punch(tmp_path):
        write(store, "w1", 1, 2 * MIB)
