"""Sending log bytes to the manager: none lost, none duplicated, whatever process dies."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest

from remote_agent.logs import retention, shipper, watcher
from remote_agent.logs.shipper import LogShipper
from remote_agent.logs.watcher import ShippedWorker
from remote_agent.system import paths
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.outcomes import LinkDown
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

ME = AgentCredentials("h1", "fleet-1", "s3cret", "key")


@pytest.fixture
def tmp_path(disk_path: Path) -> Path:
    """Holes and blocks are the file system's: here those of a disk."""
    return disk_path


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    fake.know("h1")
    yield fake
    fake.close()


class Bench:
    """A worker's directory and a shipper that is stepped by hand."""

    def __init__(self, directory: Path, manager: FakeManager, **options: Any) -> None:
        self.directory = str(directory)
        self.manager = manager
        self.received: list[tuple[str, Any]] = []
        self.options = options
        self.newest = 1
        os.makedirs(paths.attempts_dir(self.directory))
        self.shipper = self.fresh()

    def fresh(self) -> LogShipper:
        """As after a start of the agent."""
        connection = Connection(Addresses([self.manager.url]), ME)
        self.shipper = LogShipper(connection, lambda kind, value: self.received.append((kind, value)), **self.options)
        self.update()
        return self.shipper

    def update(self, drained: bool = False) -> None:
        self.shipper.update([ShippedWorker("w", self.directory, self.newest, drained)])

    def write(self, data: bytes, attempt: int = 1, stream: str = "out") -> None:
        with open(paths.log_file(self.directory, attempt, stream), "ab") as file:
            file.write(data)

    def ship(self, now: float = 0.0) -> None:
        for _ in range(1000):
            if not self.step(now):
                return
        raise AssertionError("never done")

    def step(self, now: float = 0.0) -> bool:
        self.scan(now)
        return self.shipper.ship(now)

    def scan(self, now: float = 0.0) -> None:
        """What the watching thread does every 0.1 s, and at once."""
        for worker in self.shipper.files.workers():
            worker.next_check_at = worker.bounds_at = 0.0
        self.shipper.files.scan(now)

    def log_posts(self) -> list[str]:
        return [one.path for one in self.manager.requests if "/logs" in one.path]


@pytest.fixture
def bench(tmp_path: Path, manager: FakeManager) -> Bench:
    return Bench(tmp_path / "w-0123456789", manager)


def test_bytes_arrive_unchanged_in_pieces(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Binary bytes, no final newline, more than one post."""
    bench.shipper._max_chunk_bytes = 1000
    data = os.urandom(5500) + b"no newline"
    bench.write(data)
    bench.ship()
    assert bench.manager.log("w") == data
    bench.write(b"\nmore", stream="out")
    bench.write(b"oops", stream="err")
    bench.ship()
    assert bench.manager.log("w") == data + b"\nmore"
    assert bench.manager.log("w", "1.err") == b"oops"


def test_new_agent_goes_on_where_the_manager_stands(bench: Bench) -> None:
    """After kill -9 the agent has no offsets: it asks the manager, and sends only missing bytes."""
    bench.write(b"one\n")
    bench.ship()
    bench.write(b"two\n")
    bench.fresh()
    bench.ship()
    assert bench.manager.log("w") == b"one\ntwo\n"
    assert "offset=4" in bench.log_posts()[-1]


def test_lost_answer_shows_no_line_twice(bench: Bench) -> None:
    """The manager stored the bytes, but the response was lost: they are sent again and skipped there."""
    bench.write(b"one\n")
    bench.manager.drop_log_answers = 2
    for _ in range(5):
        try:
            bench.ship()
        except LinkDown:
            continue
    bench.write(b"two\n")
    bench.ship()
    assert bench.manager.log("w") == b"one\ntwo\n"


def test_409_resends_from_what_the_manager_has(bench: Bench) -> None:
    """The manager lost the end of its file (power cut): it is sent again."""
    bench.write(b"one\ntwo\n")
    bench.ship()
    del bench.manager.logs[("w", "1.out")][4:]
    bench.write(b"three\n")
    bench.ship()
    assert bench.manager.log("w") == b"one\ntwo\nthree\n"
    assert bench.manager.gaps == []


def test_bytes_that_are_gone_here_are_announced_as_a_gap(tmp_path: Path, manager: FakeManager) -> None:
    """Sent bytes beyond keep_local are punched; a manager that lost them gets a gap instead of zeros."""
    bench = Bench(tmp_path / "w-0123456789", manager, keep_local_bytes=1024 * 1024)
    data = os.urandom(4 * 1024 * 1024)
    bench.write(data)
    bench.ship()
    assert manager.log("w") == data
    path = paths.log_file(bench.directory, 1)
    if os.stat(path).st_blocks * 512 >= len(data):
        pytest.skip("this file system punches no holes")
    assert os.stat(path).st_size == len(data)
    manager.logs[("w", "1.out")].clear()
    bench.fresh()
    bench.ship()
    ((_, _, start, end),) = manager.gaps
    assert (start, end) == (0, 3 * 1024 * 1024)
    assert manager.log("w")[end:] == data[end:]


def test_finished_attempts_are_shipped_whole_and_then_left_alone(bench: Bench) -> None:
    """The last lines before a crash arrive although the next attempt already writes; complete logs are not requested
    again."""
    bench.write(b"last words", attempt=1)
    bench.write(b"new life\n", attempt=2)
    bench.newest = 2
    bench.update()
    bench.ship(now=0.0)
    assert bench.manager.log("w", "1.out") == b"last words" and bench.manager.log("w", "2.out") == b"new life\n"
    bench.ship(now=1.0)
    bench.ship(now=1.0 + watcher.QUIET_S)
    before = len(bench.log_posts())
    bench.fresh()
    bench.ship()
    assert [path for path in bench.log_posts()[before:] if "attempt=1" in path] == []


def test_old_attempts_leave_the_disk_only_when_shipped(bench: Bench) -> None:
    """KEEP_ATTEMPTS stay; an attempt whose bytes are not all acknowledged stays too."""
    count = watcher.KEEP_ATTEMPTS + 3
    for attempt in range(1, count + 1):
        bench.write(b"x\n", attempt)
    bench.newest = count
    bench.update()
    bench.ship(now=1.0)
    assert len(paths.attempts_on_disk(bench.directory)) == count
    bench.ship(now=2.0)
    bench.ship(now=2.0 + watcher.QUIET_S)
    assert paths.attempts_on_disk(bench.directory)[0] == 4
    assert all(bench.manager.log("w", f"{attempt}.out") == b"x\n" for attempt in range(1, count + 1))


def test_drained_is_reported_once_everything_is_acknowledged(bench: Bench) -> None:
    """A worker is removed from the host only after this."""
    bench.write(b"tail")
    bench.update(drained=True)
    bench.step(0.0)
    assert bench.received == []
    bench.ship()
    assert bench.received == [("drained", "w")]


def test_refusing_manager_is_left_in_peace_and_others_go_on(bench: Bench) -> None:
    """403 for a worker: reported once, retried later; no error ends the sending."""
    bench.manager.refuse_status = 403
    bench.write(b"x")
    assert bench.step(0.0) is False
    posts = len(bench.log_posts())
    assert bench.step(1.0) is False and len(bench.log_posts()) == posts
    assert bench.received[0][0] == "log_trouble"
    bench.manager.refuse_status = 0
    bench.ship(now=1.0 + shipper.REFUSED_AGAIN_S)
    assert bench.manager.log("w") == b"x"


def test_too_large_posts_are_halved(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy with a small limit responds with 413."""
    real = bench.manager.take_log

    def limited(worker_id: str, query: dict[str, str], data: bytes) -> tuple[int, dict[str, Any]]:
        return (413, {}) if len(data) > 200_000 else real(worker_id, query, data)

    monkeypatch.setattr(bench.manager, "take_log", limited)
    data = os.urandom(700_000)
    bench.write(data)
    bench.ship()
    assert bench.manager.log("w") == data


def test_the_thread_outlives_a_manager_that_goes_and_comes(bench: Bench) -> None:
    """Lines written meanwhile arrive, each once."""
    bench.shipper = bench.fresh()
    bench.shipper.start()
    port = bench.manager.port
    try:
        bench.write(b"1\n")
        wait_until(lambda: bench.manager.log("w") == b"1\n", what="the first line")
        logs = bench.manager.logs
        bench.manager.close()
        bench.write(b"2\n")
        time.sleep(0.3)
        second = FakeManager(port=port)
        second.know("h1")
        second.logs = logs
        bench.write(b"3\n")
        try:
            wait_until(lambda: second.log("w") == b"1\n2\n3\n", what="the lines written while it was away")
        finally:
            second.close()
    finally:
        bench.shipper.end()
        bench.shipper.join(5)
    assert not bench.shipper.is_alive()


def runs_of(path: str) -> list[tuple[int, float]]:
    """(file offset, wall time) of the runs of bytes in a request, from its URL."""
    query = dict(parse_qsl(urlsplit(path).query))
    offset, at = int(query["offset"]), float(query["at"])
    later = [one.split(":") for one in query["times"].split(",")] if "times" in query else []
    return [(offset, at), *((offset + int(begin), at + int(ms) / 1000) for begin, ms in later)]


def test_a_backlog_is_shipped_with_the_times_it_was_written_at(tmp_path: Path, manager: FakeManager) -> None:
    """Hours later, by an agent that was restarted meanwhile."""
    clock = [1000.0]
    bench = Bench(tmp_path / "w-0123456789", manager, wall=lambda: clock[0])
    for hour in range(4):
        clock[0] = 1000.0 + 3600 * hour
        bench.write(b"%d\n" % hour)
        bench.scan(now=clock[0])
    clock[0] += 3600
    bench.fresh()
    bench.ship()
    assert manager.log("w") == b"0\n1\n2\n3\n"
    assert runs_of(bench.log_posts()[-1]) == [(2 * hour, 1000.0 + 3600 * hour) for hour in range(4)]


def test_more_times_than_fit_in_a_post_make_more_posts(
    tmp_path: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shipper, "MAX_RUNS", 3)
    clock = [1000.0]
    bench = Bench(tmp_path / "w-0123456789", manager, wall=lambda: clock[0])
    for _ in range(8):
        clock[0] += 1
        bench.write(b"x\n")
        bench.scan()
    bench.ship()
    posts = bench.log_posts()[1:]
    assert [len(runs_of(path)) for path in posts] == [3, 3, 2] and manager.log("w") == b"x\n" * 8
    assert [at for path in posts for _, at in runs_of(path)] == [1001.0 + number for number in range(8)]


def punches(path: str) -> bool:
    with open(path, "wb") as file:
        file.write(b"x" * 8192)
    return not retention.punch_hole(path, 0, 4096)


MIB = 1024 * 1024


def test_without_a_manager_the_oldest_bytes_go_and_their_size_is_reported(tmp_path: Path, manager: FakeManager) -> None:
    if not punches(str(tmp_path / "probe")):
        pytest.skip("this file system punches no holes")
    bench = Bench(tmp_path / "w-0123456789", manager, keep_local_bytes=2 * MIB)
    bench.write(b"begin\n")
    bench.ship()
    manager.refuse_status = 503
    data = os.urandom(10 * MIB)
    bench.write(data)
    bench.scan(now=1.0)
    path = Path(paths.log_file(bench.directory, 1))
    assert path.stat().st_blocks * 512 > 9 * MIB, "the manager was there a moment ago"
    bench.scan(now=2.0 + watcher.AWAY_S)
    assert (
        path.stat().st_blocks * 512 <= 3 * MIB + 8192 + watcher.MIN_AHEAD_BYTES and path.stat().st_size == 10 * MIB + 6
    )
    manager.refuse_status = 0
    bench.fresh()
    bench.ship()
    assert manager.gaps == [("w", "1.out", 6, 8 * MIB)]
    assert manager.log("w")[8 * MIB :] == data[8 * MIB - 6 :]


def test_a_finished_attempt_that_had_to_go_unshipped_is_reported_with_its_size(
    tmp_path: Path, manager: FakeManager
) -> None:
    if not punches(str(tmp_path / "probe")):
        pytest.skip("this file system punches no holes")
    bench = Bench(tmp_path / "w-0123456789", manager, keep_local_bytes=2 * MIB)
    for attempt, size in ((1, 1_500_000), (2, 2_000_000), (3, 10)):
        bench.write(b"y" * size, attempt)
    bench.newest = 3
    bench.update()
    bench.scan(now=0.0)
    bench.scan(now=1.0 + watcher.AWAY_S)
    bench.ship(now=1.0 + watcher.AWAY_S)
    assert manager.gaps == [("w", "1.out", 0, 1_500_000)]
    assert manager.log("w", "2.out") == b"y" * 2_000_000 and manager.log("w", "3.out") == b"y" * 10


def test_where_no_hole_can_be_punched_the_log_is_trimmed_at_the_attempts_end(
    tmp_path: Path, manager: FakeManager, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Reported once; a running child's file is never modified; trimmed bytes are never sent as zeros."""
    monkeypatch.setattr(retention, "punch_some", lambda _path, start, _end: ("Operation not supported", start))
    monkeypatch.setattr(retention, "SEEK_DATA", 99)  # nor does it tell what is a hole
    bench = Bench(tmp_path / "w-0123456789", manager, keep_local_bytes=2 * MIB)
    data = os.urandom(6 * MIB + 100)
    bench.write(data)
    path = Path(paths.log_file(bench.directory, 1))
    inode = path.stat().st_ino
    for now in range(10):
        bench.scan(now=float(now))
    assert path.stat().st_blocks * 512 >= 6 * MIB and path.stat().st_ino == inode
    assert [kind for kind, _ in bench.received] == ["log_note"] and "Operation not supported" in bench.received[0][1]
    bench.newest = 2
    bench.write(b"next\n", attempt=2)
    bench.update()
    bench.scan(now=20.0)
    assert path.stat().st_blocks * 512 <= 3 * MIB and path.stat().st_size == len(data)
    bench.fresh()
    bench.ship()
    assert manager.gaps == [("w", "1.out", 0, 4 * MIB)] and manager.log("w")[4 * MIB :] == data[4 * MIB :]
    assert manager.log("w", "2.out") == b"next\n"


def test_a_manager_that_hangs_does_not_stop_the_watch(bench: Bench) -> None:
    """Times and limits are maintained while a request waits for its response."""
    bench.shipper.watch()
    try:
        bench.write(b"one\n")
        wait_until(lambda: any(file.size == 4 for one in bench.shipper.files.workers() for file in one.files.values()))
    finally:
        bench.shipper.end()
    assert bench.manager.log("w") == b""


@pytest.mark.slow
def test_when_gathering_it_posts_seldom_and_all_of_it(tmp_path: Path, manager: FakeManager) -> None:
    """A worker that prints all the time: one request per notification, not per line."""
    bench = Bench(tmp_path, manager)
    bench.shipper.gather(0.5)
    bench.write(b"begins\n")
    bench.shipper.start()
    began = time.monotonic()
    try:
        for number in range(100):
            bench.write(b"line %d\n" % number)
            time.sleep(0.02)  # it prints
        written = os.path.getsize(paths.log_file(bench.directory, 1, "out"))
        wait_until(lambda: len(manager.log("w")) == written, 10, "all of it")
    finally:
        bench.shipper.end()
        bench.shipper.join(10)
    assert len(bench.log_posts()) <= (time.monotonic() - began) / 0.5 + 3
