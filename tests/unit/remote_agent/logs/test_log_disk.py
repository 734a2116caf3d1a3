"""Retention of a worker's logs on its host: a pure decision, carried out without moving an offset."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from remote_agent.logs import retention, watcher
from remote_agent.logs.retention import BURST_BYTES, STEP_BYTES, FileState, decide
from remote_agent.logs.watcher import LogFiles, ShippedWorker

MIB = 2**20


def state(attempt: int, size: int, *, stream: str = "out", complete: bool = True, current: bool = False) -> FileState:
    return FileState(attempt, stream, size, complete, current, size)


def test_a_running_log_keeps_its_last_bytes_shipped_or_not() -> None:
    waits = FileState(1, "out", 100 * MIB + 5, False, True, 100 * MIB + 5)  # the manager is away
    assert decide([waits], 10 * MIB, 50) == ({"1.out": 90 * MIB}, [])


def test_a_burst_that_the_manager_is_taking_gets_more_room_but_not_for_ever() -> None:
    taking = FileState(1, "out", 50 * MIB, False, True, 20 * MIB)
    assert decide([taking], 10 * MIB, 50) == ({"1.out": 20 * MIB}, [])
    faster_than_the_manager = FileState(1, "out", 500 * MIB, False, True, 20 * MIB)
    assert decide([faster_than_the_manager], 10 * MIB, 50) == ({"1.out": 490 * MIB - BURST_BYTES}, [])


def test_a_small_log_is_left_alone() -> None:
    assert decide([state(1, 5 * MIB, current=True)], 10 * MIB, 50) == ({}, [])


def test_only_so_many_attempts_stay_and_only_complete_ones_go() -> None:
    files = [state(n, 10, complete=n != 1) for n in range(1, 7)] + [state(7, 10, complete=False, current=True)]
    assert decide(files, 10 * MIB, 4) == ({}, [3, 2])


def test_finished_attempts_share_one_bound_newest_first() -> None:
    files = [state(1, 6 * MIB), state(2, 6 * MIB), state(3, 6 * MIB), state(4, MIB, current=True)]
    assert decide(files, 12 * MIB, 50) == ({}, [1])


def test_a_finished_attempt_that_the_manager_lacks_leaves_a_hole_of_its_size() -> None:
    files = [state(1, 6 * MIB, complete=False), state(2, 11 * MIB, complete=False), state(3, 5, current=True)]
    cuts, removed = decide(files, 10 * MIB, 50)
    assert removed == [] and cuts == {"1.out": 6 * MIB, "2.out": MIB}


def test_both_streams_of_an_attempt_go_together() -> None:
    files = [state(1, 5), state(1, 5, stream="err", complete=False), state(2, 5, current=True)]
    assert decide(files, 10 * MIB, 1) == ({}, [])
    files[1] = state(1, 5, stream="err")
    assert decide(files, 10 * MIB, 1) == ({}, [1])


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """Holes and blocks are the file system's: here those of a disk."""
    return disk_path


def make_log(path: Path, size: int) -> bytes:
    data = os.urandom(size)
    path.write_bytes(data)
    return data


def test_a_hole_frees_blocks_and_moves_no_offset(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    data = make_log(path, 9 * MIB)
    problem = retention.punch_hole(str(path), 0, 6 * MIB)
    if problem:
        pytest.skip(f"this file system punches no holes: {problem}")
    assert path.stat().st_size == 9 * MIB and path.stat().st_blocks * 512 <= 3 * MIB + STEP_BYTES
    descriptor = os.open(path, os.O_RDONLY)
    try:
        assert retention.next_data(descriptor, 1000, 9 * MIB) == 6 * MIB
        assert os.pread(descriptor, 4 * MIB, 6 * MIB) == data[6 * MIB :]
    finally:
        os.close(descriptor)


def test_a_trimmed_log_keeps_size_offsets_and_its_end(tmp_path: Path) -> None:
    path = tmp_path / "1.log"
    data = make_log(path, 5 * MIB + 7)
    retention.trim(str(path), 3 * MIB)
    found = path.read_bytes()
    assert len(found) == len(data) and found[3 * MIB :] == data[3 * MIB :] and not found[: 3 * MIB].strip(b"\0")
    assert os.listdir(tmp_path) == ["1.log"]


def test_bytes_are_sent_whatever_a_file_system_says_of_holes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system without SEEK_DATA, or with a wrong one, loses no byte."""
    path = tmp_path / "1.log"
    make_log(path, 10_000)
    descriptor = os.open(path, os.O_RDONLY)
    try:
        for answer in (OSError(22, "Invalid argument"), OSError(6, "No such device or address"), 8192):

            def lseek(*_: object, answer: object = answer) -> int:
                if isinstance(answer, OSError):
                    raise answer
                assert isinstance(answer, int)
                return answer

            monkeypatch.setattr(retention.os, "lseek", lseek)
            assert retention.next_data(descriptor, 100, 10_000) == 100
    finally:
        os.close(descriptor)


class Counted(FileState):
    """Counts accesses to it."""

    reads = 0

    def __getattribute__(self, name: str) -> object:
        if not name.startswith("__"):
            Counted.reads += 1
        return super().__getattribute__(name)


def reads_for(count: int) -> int:
    """Of a crash loop's files: `count` finished attempts, each with two streams, and the one that runs."""
    files: list[FileState] = [
        Counted(attempt, stream, 100, attempt % 3 != 0, False, 100)
        for attempt in range(count)
        for stream in ("out", "err")
    ]
    Counted.reads = 0
    decide([*files, state(count, 5, current=True)], 10 * MIB, 10)
    return Counted.reads


def test_ten_times_the_attempts_cost_ten_times_as_much() -> None:
    """The sender of this worker's log is blocked meanwhile."""
    assert reads_for(3_000) <= 10.5 * reads_for(300)
    assert reads_for(300) <= 60 * 300


def test_the_marks_of_many_attempts_are_written_once_a_scan_and_go_in_bounded_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    write = retention.write_marks
    monkeypatch.setattr(retention, "write_marks", lambda place, marks: (written.append(1), write(place, marks)))
    monkeypatch.setattr(watcher, "MAX_REMOVED", 100)
    attempts = tmp_path / "w-0123456789" / "attempts"
    attempts.mkdir(parents=True)
    for number in range(1, 301):
        (attempts / f"{number}.log").write_bytes(b"x" * 10)
        (attempts / f"{number}.exit").write_bytes(b"{}")
    (attempts / "301.log").write_bytes(b"y")
    files = LogFiles(lambda kind, text: None, keep_attempts=10)
    files.update([ShippedWorker("w", str(tmp_path / "w-0123456789"), 301)])
    files.scan(0.0)
    (worker,) = files.workers()
    for one in worker.files.values():
        one.acked = one.size
    left = [601]
    for scan in range(1, 8):
        files.scan(scan * 3.0)
        left.append(len([name for name in os.listdir(attempts) if not name.endswith(".idx")]))
    assert max(before - after for before, after in zip(left, left[1:])) == 200
    assert sorted(os.listdir(attempts))[0] == "292.exit" and left[-1] == 19
    assert len(written) <= 5


@pytest.mark.parametrize("shape", ["nothing", "reserved", "single bytes"])
def test_a_log_that_its_job_made_huge_is_cut_in_few_pieces(
    tmp_path: Path, shape: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds the descriptor: it may make it terabytes long, reserve blocks, or write a byte every 4 MiB."""
    path = tmp_path / "1.log"
    end = 1 << 42
    with open(path, "wb") as file:
        if shape == "reserved":
            os.posix_fallocate(file.fileno(), 0, 8 * MIB)
        for number in range(3000 if shape == "single bytes" else 0):
            os.pwrite(file.fileno(), b"x", number * 4 * MIB)
        os.ftruncate(file.fileno(), end)
    checks: list[int] = []  # each is one piece: nothing, however long, is one
    data_from = retention._data_from
    monkeypatch.setattr(retention, "_data_from", lambda *given: (checks.append(1), data_from(*given))[1])
    problem, upto = retention.punch_some(str(path), 0, end)
    assert len(checks) <= (retention.PIECES if shape == "single bytes" else 3)
    if problem:
        pytest.skip(problem)
    assert upto == end if shape != "single bytes" else 0 < upto < end
    assert retention.punch_hole(str(path), upto, end - upto) == ""
    assert path.stat().st_blocks * 512 < MIB and path.stat().st_size == end
