"""Logs beyond one disk: archived logs are read as if they were local, and nothing else is."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.errors import LimitExceeded
from procguard.fleet.agents.log_search import Question
from procguard.fleet.model import clock
from procguard.portal.logs import fetch, own_search, spool
from procguard.portal.logs.archive import objects, reading
from procguard.portal.logs.archive.coverage import common, from_zero, lacking, merged
from procguard.portal.logs.archive.object_store import ArchiveFailed, FolderStore, ObjectDamaged, new_name
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.own_search import OwnSearch
from procguard.portal.logs.store import LogStore
from remote_agent.protocol.messages import directory_name
from tests.archive_rig import FLEET, ArchiveRig, here, numbered
from tests.unit.fleet_world import World
from tests.unit.portal.logs.test_log_quota import can_punch
from tests.waiting import wait_until

MIB = 2**20


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[ArchiveRig]:
    made = ArchiveRig(tmp_path)
    yield made
    made.archive.close()


def filled(rig: ArchiveRig) -> dict[str, bytes]:
    """Three workers, two attempts and both streams, with a part that was lost: {worker: what a download has}."""
    rig.write("w1", 1, numbered(0, 3_000))
    rig.write("w1", 1, numbered(0, 10), "err", at=1_001.5)
    rig.write("w1", 2, numbered(3_000, 9_000), at=2_000.0)
    rig.write("w2", 1, b"progress 1\rprogress 2\rprogress 3")
    rig.store.append("w3", 1, "out", 0, b"before\n", 1_000.0)
    rig.store.append("w3", 1, "out", 500, b"after\n", 1_100.0, gap=True)
    return {one: rig.download(one) for one in rig.workers}


def test_a_manager_that_lost_its_disk_shows_every_archived_line(rig: ArchiveRig) -> None:
    downloads = filled(rig)
    tails = {one: rig.store.tail(one, 10_000) for one in rig.workers}
    rig.archive_all()
    assert len(rig.objects()) == 1  # of all of them together
    rig.again(lost_disk=True)
    assert {one: rig.download(one) for one in rig.workers} == downloads
    for one in rig.workers:
        rig.tail(one)
        assert rig.store.tail(one, 10_000) == tails[one]  # with offsets, times and the marker of what was lost
    assert rig.archive.status.waiting_bytes == 0  # nothing is uploaded twice
    assert rig.store.length("w1", 2, "out") == 6_000 * 61  # the offset from which its agent continues
    rig.store.append("w1", 2, "out", 6_000 * 61, b"on\n", 3_000.0)
    assert rig.tail("w1", 2)[-1] == "on"


def test_a_log_asked_for_right_after_the_start_waits_for_the_index(rig: ArchiveRig) -> None:
    """It would look empty, or complete without its beginning."""
    downloads = filled(rig)
    rig.archive_all()
    rig.again(lost_disk=True, loaded=False)
    asked = gevent.spawn(rig.download, "w1")
    asked.join(1.0)
    assert not asked.ready()
    rig.archive.load()
    assert asked.get(timeout=10) == downloads["w1"]


def test_a_log_is_shown_without_its_archive_where_the_index_cannot_be_read(
    rig: ArchiveRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig.write("w1", 1, b"here\n")
    rig.again(loaded=False)

    def broken() -> list[Any]:
        raise OSError("no index")

    monkeypatch.setattr(rig.archive.index, "streams", broken)
    greenlet = gevent.spawn(rig.archive.run)
    try:
        assert gevent.spawn(rig.download, "w1").get(timeout=10) == b"here\n"
    finally:
        greenlet.kill()


def test_lines_since_a_time_in_the_middle_of_a_piece_are_shown(rig: ArchiveRig) -> None:
    rig.write("w1", 1, numbered(0, 5_000))  # one piece, written from 1000 to 1004
    rig.archive_all()
    since = rig.tail("w1", 10_000, since=1_003.0)
    assert 1_000 < len(since) < 2_000
    rig.again(lost_disk=True)
    assert rig.tail("w1", 10_000, since=1_003.0) == since


def test_of_very_many_pieces_some_times_are_enough(rig: ArchiveRig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "MAX_TIMES", 4)
    for number in range(12):
        rig.write("w1", 1, numbered(100 * number, 100 * number + 100), at=1_000.0 + 100 * number)
        rig.archive_all()
    between = rig.tail("w1", 10_000, since=1_350.0, until=1_650.0)
    key = (directory_name("w1"), 1, "out")
    length = rig.archive.length(*key)
    assert len(rig.archive.index.times(key)) == 12
    some = [(0, 1_000.0), (length // 4, 1_300.0), (length // 2, 1_600.0), (length // 4 * 3, 1_900.0)]
    assert rig.archive.index.times(key, length // 4) == some
    rig.again(lost_disk=True)
    assert rig.tail("w1", 10_000, since=1_350.0, until=1_650.0) == between
    assert between[0].startswith("line 00000400") and between[-1].startswith("line 00000699")


def test_the_index_is_made_again_from_the_objects(rig: ArchiveRig) -> None:
    downloads = filled(rig)
    rig.archive_all()
    rig.write("w1", 2, numbered(9_000, 9_100))
    rig.archive_all()
    downloads["w1"] = rig.download("w1")
    rig.again(lost_disk=True, lost_index=True)
    assert {one: rig.download(one) for one in rig.workers} == downloads


def test_a_log_larger_than_its_bound_leaves_the_disk_and_is_read_whole(tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system has no holes")
    rig, whole = ArchiveRig(tmp_path, keep_per_worker=2 * MIB), b""
    for number in range(8):
        more = numbered(number * 16_000, (number + 1) * 16_000)
        rig.write("w1", 1 + number // 5, more, at=1_000.0 + 100 * number)
        whole += more
        rig.archive_all()
    held = sum(os.stat(path).st_blocks * 512 for path in (tmp_path / "logs").rglob("*"))
    assert held < 3 * MIB and rig.store.bytes_dropped == 0 and rig.store.bytes_evicted > 4 * MIB
    assert rig.download("w1") == whole
    assert rig.tail("w1", 100_000, attempt=1) == whole.decode().split("\n")[:80_000]
    assert rig.tail("w1", 3, until=1_099.0)[-1] == f"line {15_999:08d} ".ljust(60, "x")
    rig.write("w1", 2, numbered(128_000, 160_000), at=2_000.0)  # what was fetched goes again, nothing else
    rig.archive_all()
    assert rig.download("w1") == whole + numbered(128_000, 160_000) and rig.store.bytes_dropped == 0


def test_what_came_while_the_index_was_made_again_hides_nothing(rig: ArchiveRig) -> None:
    """It takes longer than the agent's retention: the agent sends its remaining bytes, and marks the rest as lost."""
    downloads = filled(rig)
    rig.archive_all()
    whole = rig.download("w1")
    attempt_2 = numbered(3_000, 9_000)
    rig.archive.close()
    shutil.rmtree(rig.directory / "logs")
    late = LogStore(str(rig.directory / "logs"), sync=lambda _: None, in_thread=here)
    late.append("w1", 2, "out", 300_000, attempt_2[300_000:] + b"more\n", 2_100.0, gap=True)
    for path in rig.directory.glob("index.db*"):
        path.unlink()
    rig.open()
    assert rig.download("w1") == whole + b"more\n"
    assert rig.download("w3") == downloads["w3"]  # what is really lost is marked as before


class FailingStore(FolderStore):
    """`plan(name)`: what happens instead of a put, or before and after it."""

    def __init__(self, directory: Path) -> None:
        super().__init__(str(directory), FLEET, here)
        self.before: Callable[[], None] = lambda: None
        self.after: Callable[[], None] = lambda: None

    def put(self, name: str, data: bytes) -> None:
        self.before()
        super().put(name, data)
        self.after()


def failing() -> None:
    raise ArchiveFailed("logs.archive: file:///shared: Stale file handle", "mount it")


class Killed(BaseException):
    pass


def killed() -> None:
    raise Killed


def test_an_archive_that_is_away_costs_its_bound_and_is_reported_once(tmp_path: Path) -> None:
    if not can_punch(tmp_path):
        pytest.skip("this file system has no holes")
    (tmp_path / "shared").mkdir()
    place = FailingStore(tmp_path / "shared")
    rig = ArchiveRig(tmp_path, place, keep_per_worker=2 * MIB)
    rig.write("w1", 1, numbered(0, 16_000))
    rig.archive_all()
    place.before = failing
    rig.write("w1", 1, numbered(16_000, 100_000))
    for _ in range(3):
        with pytest.raises(ArchiveFailed):
            rig.archive.step()
    assert rig.store.kept("w1", 1, "out", 100_000 * 61) == 16_000 * 61
    assert rig.store.bytes_dropped > 0  # the oldest that is not archived, as without an archive
    place.before = lambda: None
    rig.archive_all()
    rig.again(lost_disk=True)
    found = rig.download("w1")
    assert found.startswith(numbered(0, 16_000)) and found.endswith(numbered(90_000, 100_000))
    assert b"bytes of this log were dropped]" in found


def test_a_manager_that_is_killed_in_an_upload_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """At any step: before, after, and while the index is written."""
    (tmp_path / "shared").mkdir()
    place, random_ = FailingStore(tmp_path / "shared"), random.Random(7)
    rig, whole = ArchiveRig(tmp_path, place), {one: b"" for one in ("w1", "w2", "w3")}
    written = 0
    for _ in range(60):
        for worker in rig.workers:
            more = numbered(written, written + random_.randrange(200))
            written += 200
            rig.write(worker, 1, more)
            whole[worker] += more
        moment = random_.choice(["before", "after", "finish", "begin", "never"])
        if moment in ("before", "after"):
            setattr(place, moment, killed)
        elif moment in ("finish", "begin"):
            setattr(rig.archive.index, moment, lambda *_: killed())
        with pytest.raises(Killed) if moment != "never" else contextlib.nullcontext():
            rig.archive_all()
        place.before = place.after = lambda: None
        rig.again(lost_disk=random_.random() < 0.2 and rig.store.kept("w1", 1, "out", 2**40) == len(whole["w1"]))
    rig.archive_all()
    rig.again(lost_disk=True)
    assert {one: rig.download(one) for one in rig.workers} == whole
    stored = sum(piece.length for one in rig.workers for piece in _pieces(rig, one))
    assert stored == sum(map(len, whole.values()))  # each byte once


def _pieces(rig: ArchiveRig, worker: str) -> list[Any]:
    [key] = [key for key in rig.archive._written_at if key[0].startswith(worker)]
    return rig.archive.index.pieces(key, 0, 2**60, 10_000)


# --------------------------------------------------------------------------------------------------- who else writes


@pytest.mark.parametrize("arrived", ["whole", "torn"])
def test_an_upload_of_this_run_is_not_settled_as_one_of_an_earlier(tmp_path: Path, arrived: str) -> None:
    """An earlier run's upload may still arrive, so each step looks for such. Meanwhile one of this run fails, and what
    the server has of it is not known: it is tried again, and nothing else."""
    (tmp_path / "shared").mkdir()
    place = FailingStore(tmp_path / "shared")
    rig = ArchiveRig(tmp_path, place)
    rig.archive.index.begin(new_name(0, 1.0), time.time())  # of a manager that was killed
    rig.write("w1", 1, numbered(0, 1_000))
    place.after = failing
    with pytest.raises(ArchiveFailed):
        rig.archive.step()
    [found] = rig.objects()
    if arrived == "torn":
        os.truncate(found, 100)
        place.before = lambda: found.unlink(missing_ok=True)  # of one that writes over it
    place.after = lambda: None
    rig.archive.step()
    place.before = lambda: None
    for number in range(1, 4):
        rig.write("w1", 1, numbered(1_000 * number, 1_000 * number + 1_000))
        rig.archive.step()
    rig.again(lost_disk=True)
    assert rig.download("w1") == numbered(0, 4_000)


@pytest.mark.parametrize("lost_index", [False, True])
def test_an_object_whose_end_never_arrived_is_not_taken_for_whole(tmp_path: Path, lost_index: bool) -> None:
    """A server that is killed in mid-upload leaves it as long as announced, with zeros at its end; the manager dies
    too. Its bytes are uploaded again."""
    (tmp_path / "shared").mkdir()
    place = FailingStore(tmp_path / "shared")
    rig = ArchiveRig(tmp_path, place)
    rig.write("w1", 1, random.Random(1).randbytes(200_000))
    rig.write("w2", 1, random.Random(2).randbytes(200_000))
    whole = {one: rig.download(one) for one in ("w1", "w2")}
    place.after = killed
    with pytest.raises(Killed):
        rig.archive.step()
    [torn] = rig.objects()
    torn.write_bytes(torn.read_bytes()[:-150_000] + bytes(150_000))
    place.after = lambda: None
    rig.again(lost_index=lost_index)
    rig.archive_all()
    rig.again(lost_disk=True)
    assert {one: rig.download(one) for one in ("w1", "w2")} == whole


def test_an_object_that_somebody_changed_is_not_shown(rig: ArchiveRig) -> None:
    downloads = filled(rig)
    rig.archive_all()
    rig.write("w1", 2, numbered(9_000, 9_100))
    rig.archive_all()
    first, _ = rig.objects()
    data = bytearray(first.read_bytes())
    data[-2000] ^= 1
    os.chmod(first, 0o600)
    first.write_bytes(data)
    rig.again(lost_disk=True)
    shown = {one: rig.download(one) for one in rig.workers}
    damaged = [one for one in rig.workers if shown[one] != downloads[one]]
    assert 1 <= len(damaged) <= 2 and rig.archive.status.unreadable_pieces > 0
    assert any(b"could not be fetched now" in shown[one] for one in damaged)


def test_nothing_unpacks_to_more_than_was_announced() -> None:
    bomb = zlib.compress(bytes(64 * MIB), 9)
    with pytest.raises(ObjectDamaged, match="longer than what may be archived"):
        objects.unpack(bomb, 1_000, b"")
    data, pieces = objects.build([objects.Chunk("w1", 1, "out", 0, 3, 1.0, b"abc")], FLEET, 1, 2.0)
    start, head = data[: objects.START_BYTES], data[objects.START_BYTES : pieces[0].position]
    assert objects.read_header(start, head)[1] == pieces
    for position in range(len(data)):
        for flipped in (0x01, 0x80):
            changed = bytearray(data)
            changed[position] ^= flipped
            found = b"abc"
            with contextlib.suppress(ObjectDamaged):
                begin = bytes(changed[: objects.START_BYTES])
                body = objects.START_BYTES + objects.header_length(begin)
                objects.read_header(begin, bytes(changed[objects.START_BYTES : body]))
                found, _ = objects.unpack(bytes(changed[body:]), 3, pieces[0].digest)
                assert position >= body  # of the header not a bit
            assert found == b"abc"


def test_no_name_of_a_worker_becomes_a_path(tmp_path: Path) -> None:
    hostile = ("../../x", "a b", "ü" * 40, "-rf")
    rig = ArchiveRig(tmp_path, workers=hostile)
    for one in hostile:
        rig.write(one, 1, b"line\n")
    rig.archive_all()
    [only] = rig.objects()
    assert only.parent.parent == tmp_path / "shared" / FLEET
    with pytest.raises(ArchiveFailed):
        rig.place.get("../../../etc/passwd", 0, 10)
    rig.again(lost_disk=True)
    assert [rig.download(one) for one in hostile] == [b"line\n"] * 4


def test_one_reader_leaves_turns_to_the_others(rig: ArchiveRig, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(rig)
    rig.archive_all()
    rig.again(lost_disk=True)
    reader = rig.store.reader
    assert reader is not None
    with reader.turn("eve"), reader.turn("eve"):
        with pytest.raises(LimitExceeded):
            reader.turn("eve").__enter__()
        rig.store.fetch("w1", None, None, MIB, caller="eve")
        assert "could not be fetched now" in rig.store.tail("w1")[0].text  # a marker, and no error
        mine = rig.store.raw("w1", None, None, "eve")
        monkeypatch.setattr(reading, "TURN_LOOK_S", 0.0)
        monkeypatch.setattr(spool, "STEP_S", 0.01)
        assert b"could not be fetched now" in b"".join(mine)  # a download waits for its turn, with an end
        rig.store.fetch("w1", None, None, MIB, caller="ann")
        assert len(rig.store.tail("w1")) == 200


# ------------------------------------------------------------------------------------------------------- retention


def test_an_object_goes_with_the_last_that_is_wanted_of_it(tmp_path: Path) -> None:
    rig = ArchiveRig(tmp_path, keep_attempts=2)
    rig.write("w1", 1, b"first\n")
    rig.write("w2", 1, b"beside\n")
    rig.archive_all()
    for attempt in (2, 3):
        rig.write("w1", attempt, b"later\n")
    rig.archive_all()
    assert len(rig.objects()) == 2 and rig.archive.streams(directory_name("w1")) == [(2, "out"), (3, "out")]
    rig.store.drop_below(directory_name("w2"), 2, [])
    rig.archive_all()
    assert len(rig.objects()) == 1
    rig.again(lost_disk=True)
    assert rig.download("w1") == b"later\nlater\n" and rig.download("w2") == b""


def test_a_worker_of_the_same_name_begins_with_an_empty_log(rig: ArchiveRig) -> None:
    rig.write("w1", 1, b"of the first\n")
    rig.archive_all()
    rig.store.retire("w1")
    rig.write("w1", 1, b"second\n")
    rig.archive_all()
    assert rig.download("w1") == b"second\n"
    rig.again(lost_disk=True)
    assert rig.download("w1") == b"second\n"
    rig.again(lost_disk=True, lost_index=True)
    assert rig.download("w1") == b"second\n"
    rig.store.retire("w1")
    rig.archive_all()
    assert len(rig.objects()) == 1  # the one before the one that is gone now
    rig.workers = ("w2",)
    rig.again()
    assert rig.archive.streams(directory_name("w1")) == []


def test_ranges() -> None:
    ranges = merged([(5, 7), (0, 2), (2, 3), (9, 9)])
    assert ranges == [(0, 3), (5, 7)]
    assert lacking(ranges, 0, 10) == [(3, 5), (7, 10)] and common(ranges, 2, 6) == [(2, 3), (5, 6)]
    assert (from_zero(ranges), from_zero([(1, 2)]), from_zero([])) == (3, 0, 0)


def test_names_of_objects_rise_and_never_meet() -> None:
    names = [new_name(7, 1_000.0 + number / 1000) for number in range(100)]
    assert names == sorted(names) and len({new_name(7, 1.0) for _ in range(1_000)}) == 1_000


# ---------------------------------------------------------------------------------------------------------- search


def search(rig: ArchiveRig, directory: Path, **asked: Any) -> tuple[Any, list[str]]:
    """The manager's part of a search for `needle`: (the part, its lines)."""
    world = World(directory)
    world.deploy({"h1": {one: {"command": "sleep 9"} for one in rig.workers}})
    workers = world.fleet.operations.matching("", "")
    question = world.fleet.log_searches.begin(Question("needle", **asked), workers, clock.read(), lambda: None)
    rig.store.fetch_for_search = rig.fetcher.for_search
    find = lambda text: (0, 1) if "needle" in text else None  # noqa: E731
    OwnSearch(rig.store, Matching(), question, find, "ann").begin()
    wait_until(lambda: gevent.sleep(0.01) or (question.fresh and question.parts[""].status != "asked"), 20, "its end")
    part, lines = question.fresh[-1]
    return part, [f"{one.worker_id} {one.attempt}.{one.stream}.{one.offset} {one.text}" for one in lines]


def test_a_search_finds_what_only_the_archive_has(rig: ArchiveRig, tmp_path: Path) -> None:
    rig.write("w1", 1, b"the first needle\n" + numbered(0, 3_000), at=1_000.0)
    rig.write("w2", 1, numbered(0, 3_000) + b"needle two\n", at=2_000.0)
    rig.archive_all()
    rig.again(lost_disk=True)
    (tmp_path / "a").mkdir()
    part, lines = search(rig, tmp_path / "a", since=500.0)
    assert (part.status, part.reason) == ("done", "")
    assert lines == ["w2 1.out.183000 needle two", "w1 1.out.0 the first needle"]


def test_a_search_says_what_of_the_archive_it_has_not_looked_at(
    rig: ArchiveRig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_search, "ARCHIVE_BYTES", 2 * MIB)
    for number in range(4):
        rig.write("w1", 1, b"needle %d\n" % number + numbered(0, 30_000), at=1_000.0 + 100 * number)
        rig.archive_all()
    rig.again(lost_disk=True)
    (tmp_path / "a").mkdir()
    part, lines = search(rig, tmp_path / "a")
    assert part.status == "timeout" and "MB of older logs are in the archive and were not searched" in part.reason
    assert [line.split()[-1] for line in lines] == ["3"]  # the newest
    (tmp_path / "b").mkdir()
    _, lines = search(rig, tmp_path / "b", until=1_050.0)
    assert [line.split()[-1] for line in lines] == ["0"]
