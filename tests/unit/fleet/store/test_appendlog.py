"""What was acknowledged is on disk. A disk that refuses and a waiter that is killed cost nothing and block nobody."""

from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.store import appendlog
from tests.waiting import wait_until


def test_many_writers_share_their_syncs_and_each_returns_durable(tmp_path: Path) -> None:
    log = appendlog.AppendLog(str(tmp_path / "log"))
    writers = [threading.Thread(target=log.append, args=([{"n": n}],)) for n in range(50)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(20)
    found = appendlog.examine(str(tmp_path / "log"))
    assert not found.torn and not found.damaged
    assert sorted(record["n"] for record in found.records) == list(range(50))


def test_nobody_waits_longer_than_for_two_writes_also_where_one_of_them_switches(tmp_path: Path) -> None:
    """What comes while a write goes on is led by the next in the row, whoever that is."""
    may_go, slow = threading.Event(), []

    def run(task: Any) -> None:
        slow.append(1)
        if len(slow) == 1:
            may_go.wait(10)
        task()

    log = appendlog.AppendLog(str(tmp_path / "log"), run)
    first = threading.Thread(target=log.append, args=([{"n": -1}],))
    first.start()
    wait_until(lambda: bool(slow), 5, "the first write has begun")
    others = [threading.Thread(target=log.append, args=([{"n": n}],)) for n in range(40)]
    switch = threading.Thread(target=log.switch, args=(str(tmp_path / "next"), [], {"next": 2}))
    for number, thread in enumerate([*others[:20], switch, *others[20:]]):
        thread.start()
        wait_until(lambda most=number: len(log._waiters) > most, 5, "it waits")
    began = time.monotonic()
    may_go.set()
    for thread in [first, switch, *others]:
        thread.join(10)
    assert time.monotonic() - began < appendlog.LOOK_AGAIN_S  # they were woken, and did not just look again
    found = [appendlog.examine(str(tmp_path / name)).records for name in ("log", "next")]
    numbers = [record["n"] for record in (*found[0], *found[1]) if "n" in record]
    assert sorted(numbers) == [-1, *range(40)] and found[0][-1] == {"next": 2}
    assert len(slow) <= 4


class Disk:
    """Refuses what it is told to: {"write": errno, "fdatasync": errno, "ftruncate": errno}; writes half before."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.refuses: dict[str, int] = {}
        for name in ("write", "fdatasync", "ftruncate"):
            monkeypatch.setattr(os, name, self._guarded(name, getattr(os, name)))

    def _guarded(self, name: str, real: Any) -> Any:
        def call(fd: int, *arguments: Any) -> Any:
            if name not in self.refuses:
                return real(fd, *arguments)
            if name == "write" and len(arguments[0]) > 10:
                return real(fd, arguments[0][:10])
            raise OSError(self.refuses[name], os.strerror(self.refuses[name]))

        return call


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("calls", [("write",), ("fdatasync",), ("write", "ftruncate"), ("fdatasync", "ftruncate")])
def test_a_disk_that_refuses_is_an_error_and_the_change_follows_when_it_takes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: tuple[str, ...], code: int
) -> None:
    """Also where the half-written line could not be cut off at once: nothing may follow a torn line."""
    log = appendlog.AppendLog(str(tmp_path / "log"))
    log.append([{"n": 1}])
    disk = Disk(monkeypatch)
    disk.refuses = dict.fromkeys(calls, code)
    for n in (2, 3):
        with pytest.raises(appendlog.NotDurable, match=os.strerror(code)):
            log.append([{"n": n}])
    assert log.pending_lines == 2
    disk.refuses = {}
    log.append([{"n": 4}])
    assert log.pending_lines == 0
    found = appendlog.examine(str(tmp_path / "log"))
    assert ([record["n"] for record in found.records], found.torn, found.damaged) == ([1, 2, 3, 4], False, False)


def test_a_waiter_that_is_killed_while_it_writes_holds_nobody_up(tmp_path: Path) -> None:
    """A greenlet may be killed at any moment, also the one that writes for all the others."""

    class Killed(BaseException):
        pass

    threads: list[threading.Thread] = []
    kill = [True]

    def in_a_thread(task: Any) -> None:
        threads.append(threading.Thread(target=task))
        threads[-1].start()
        if kill:
            kill.clear()
            raise Killed
        threads[-1].join(10)

    log = appendlog.AppendLog(str(tmp_path / "log"), in_a_thread)
    with pytest.raises(Killed):
        log.append([{"n": 1}])
    log.append([{"n": 2}])
    log.close()
    assert [record["n"] for record in appendlog.examine(str(tmp_path / "log")).records] == [1, 2]


def test_a_waiter_that_is_killed_before_its_write_began_takes_nothing_along(tmp_path: Path) -> None:
    late: list[Any] = []

    class Killed(BaseException):
        pass

    def never_begun(task: Any) -> None:
        if not late:
            late.append(task)
            raise Killed
        task()

    log = appendlog.AppendLog(str(tmp_path / "log"), never_begun)
    with pytest.raises(Killed):
        log.append([{"n": 1}])
    log.append([{"n": 2}])
    late[0]()  # the thread that was to write gets its turn at last
    log.close()
    assert [record["n"] for record in appendlog.examine(str(tmp_path / "log")).records] == [1, 2]


def test_a_second_keeper_that_refuses_takes_the_lines_back(tmp_path: Path) -> None:
    """What only one of the two has is not durable, and is written again in order."""
    kept: list[int] = []
    refuse = [True]

    def also(payloads: list[int]) -> None:
        if refuse:
            refuse.clear()
            raise OSError(errno.ENOSPC, "full")
        kept.extend(payloads)

    log = appendlog.AppendLog(str(tmp_path / "log"), also=also)
    with pytest.raises(appendlog.NotDurable, match="full"):
        log.append([{"n": 1}], payload=1)
    assert appendlog.examine(str(tmp_path / "log")).records == []
    log.append([{"n": 2}], payload=2)
    assert kept == [1, 2]
    assert [record["n"] for record in appendlog.examine(str(tmp_path / "log")).records] == [1, 2]


def test_a_switch_ends_one_file_and_begins_the_next(tmp_path: Path) -> None:
    log = appendlog.AppendLog(str(tmp_path / "a"))
    log.append([1], wait=False)
    log.switch(str(tmp_path / "b"), ["head"], "end")
    log.append([2])
    assert appendlog.examine(str(tmp_path / "a")).records == [1, "end"]
    assert appendlog.examine(str(tmp_path / "b")).records == ["head", 2]


def test_a_switch_that_the_disk_refuses_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = appendlog.AppendLog(str(tmp_path / "a"))
    log.append([1])
    disk = Disk(monkeypatch)
    disk.refuses = {"fdatasync": errno.EIO}
    with pytest.raises(appendlog.NotDurable):
        log.switch(str(tmp_path / "b"), ["head"], "end")
    disk.refuses = {}
    log.append([2])
    assert appendlog.examine(str(tmp_path / "a")).records == [1, 2]
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize(
    ("tail", "torn", "damaged"),
    [
        (b'0badc0de [["workers","w2",{"n', True, False),  # cut
        (b"0badc0de [1]\n" + b"\0" * 30, True, False),  # space that was never filled
        (b"0badc0de [1]\n", False, True),  # whole, but not what was written
        (b"0badc0de [1]\n" + appendlog._line(3), False, True),  # something good follows
        (appendlog._line(3)[:-1] + b"X", False, True),  # only its end was changed
    ],
)
def test_a_torn_end_is_told_from_damage(tmp_path: Path, tail: bytes, torn: bool, damaged: bool) -> None:
    path = tmp_path / "log"
    path.write_bytes(appendlog._line(1) + appendlog._line(2) + tail)
    found = appendlog.examine(str(path))
    assert (found.records[:2], found.torn, found.damaged) == ([1, 2], torn, damaged)
