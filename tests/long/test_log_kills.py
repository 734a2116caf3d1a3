"""No line lost or duplicated, the child never blocked, while its agent and its manager are killed repeatedly.

Short forms run always, the long ones by `pytest -m long`.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.logs import retention
from tests.long import children
from tests.long.rig import Rig
from tests.waiting import wait_until

MIB = 2**20
ADOPTED_S, MAX_GAP_MS = 1.0, 100.0  # the promises; the short forms run beside other tests and are given more time
BUSY = 5


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path, for the sockets in it."""
    path = Path(tempfile.mkdtemp(prefix="pgl"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


def until_stored(rig: Rig, worker_id: str, timeout_s: float = 60) -> bytes:
    """Wait until the manager has all that the child has written so far; what it has."""
    size = os.path.getsize(rig.host_log(worker_id))
    wait_until(lambda: rig.stored_bytes(worker_id) >= size, timeout_s, f"{size} bytes with the manager")
    return rig.stored(worker_id).read_bytes()


def until_grown(rig: Rig, worker_id: str) -> None:
    size = rig.stored_bytes(worker_id)
    wait_until(lambda: rig.stored_bytes(worker_id) > size, 20, "lines after it")


def check_kills_of_the_agent(folder: Path, kills: int, wait_s: int = 1) -> None:
    """kill -9 of the agent `kills` times under a child that prints 1,000 numbered lines a second."""
    notes = folder / "notes"
    adopted_s: list[float] = []
    with Rig(folder / "rig") as rig:
        rig.declare({"w1": {"command": children.numbers(notes)}})
        rig.start_agent()
        pid = rig.running_pid("w1")
        wait_until(lambda: rig.stored_bytes("w1") > 0, 20, "the first lines")
        rng = random.Random(kills)
        for number in range(kills):
            time.sleep(rng.uniform(0, 0.5))
            rig.kill_agent()
            log_bytes, began = rig.agent_log_bytes(), time.monotonic()
            rig.start_agent()
            adopted_s.append(rig.adopted_within_s(began, log_bytes))
            if number % 5 == 0:  # also kills in the midst of shipping a backlog, and before anything was asked
                until_grown(rig, "w1")
        assert int(rig.status("w1")["pid"]) == pid and rig.status("w1")["attempt"] == 1
        data = until_stored(rig, "w1")
        found = children.noted(notes)
    lost, doubled = children.wrong_lines(data)
    print(
        f"{kills} kills, {data.count(10):,} lines: {lost} lost, {doubled} doubled; adopted after "
        f"{sorted(adopted_s)[len(adopted_s) // 2]:.2f} s (median), {max(adopted_s):.2f} s (worst); {found}"
    )
    assert (lost, doubled) == (0, 0)
    assert max(adopted_s) <= ADOPTED_S * wait_s


def check_lines_through_kills(folder: Path, lines: int, per_s: float, kills: int, keep: int, wait_s: int = 1) -> None:
    """`lines` numbered lines with `kills` kills of agent and manager in turn, holes punched behind them."""
    notes, pad = folder / "notes", "x" * 56
    most_disk = most_log = 0
    with Rig(folder / "rig", f"logs.keep_local={keep}") as rig:
        rig.declare(
            {"w1": {"command": children.numbers(notes, lines, per_s, 0.005, pad), "restart": {"policy": "never"}}}
        )
        rig.start_agent()
        rig.running_pid("w1")
        rng = random.Random(7)
        pause_s = lines / per_s / (kills + 1)
        for number in range(kills):
            deadline = time.monotonic() + pause_s * rng.uniform(0.5, 1.2)
            while time.monotonic() < deadline:
                most_disk = max(most_disk, rig.disk_bytes("w1"))
                time.sleep(0.02)
            if number % 2:
                rig.manager.kill()
                rig.manager.start()
            else:
                rig.kill_agent()
                rig.start_agent()
        timeout_s = 60 + lines / per_s
        wait_until(lambda: children.noted(notes).get("done"), timeout_s, "the child's last line", every_s=0.1)
        most_log = os.path.getsize(rig.host_log("w1"))
        data = until_stored(rig, "w1", 60)
        wait_until(lambda: rig.disk_bytes("w1") <= keep + 2 * MIB, 20, "the disk's bound at rest")
        found = children.noted(notes)
        gaps = rig.stored("w1").with_suffix(".gaps").exists()
    lost, doubled = children.wrong_lines(data)
    print(
        f"{kills} kills, {data.count(10):,} lines: {lost} lost, {doubled} doubled; host's disk at most "
        f"{most_disk / MIB:.1f} MiB of a log of {most_log / MIB:.1f} MiB (keep_local {keep / MIB:.0f} MiB); {found}"
    )
    assert data.count(b"\n") == lines and (lost, doubled) == (0, 0) and not gaps
    # A dead agent punches no holes: bytes written meanwhile are added.
    assert most_disk <= keep + 2 * MIB + 3 * per_s * (len(pad) + 8)
    assert found["worst_gap_ms"] <= MAX_GAP_MS * wait_s, found


def test_five_kills_of_the_agent_lose_and_double_nothing(folder: Path) -> None:
    check_kills_of_the_agent(folder, 5, BUSY)


def test_fifty_thousand_lines_pass_kills_of_agent_and_manager(folder: Path) -> None:
    check_lines_through_kills(folder, 50_000, 12_500, 3, 2 * MIB, BUSY)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_hundred_kills_of_the_agent_lose_and_double_nothing(folder: Path) -> None:
    check_kills_of_the_agent(folder, 100)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_million_lines_pass_twenty_kills_of_agent_and_manager(folder: Path) -> None:
    check_lines_through_kills(folder, 1_000_000, 10_000, 20, 8 * MIB)


def test_two_hundred_thousand_lines_wait_for_a_manager_while_the_agent_is_restarted(folder: Path) -> None:
    """The manager is absent throughout; on its return everything arrives once, with the original times."""
    notes = folder / "notes"
    with Rig(folder / "rig") as rig:
        rig.declare(
            {"w1": {"command": children.numbers(notes, 200_000, 50_000, 0.005), "restart": {"policy": "never"}}}
        )
        rig.start_agent()
        wait_until(lambda: rig.stored_bytes("w1") > 0, 30, "the first lines")
        rig.manager.kill()
        for _ in range(3):
            time.sleep(0.5)
            rig.kill_agent()
            rig.start_agent()
        wait_until(lambda: children.noted(notes).get("done"), 60, "the child's last line")
        ended = time.time()
        time.sleep(1.5)
        rig.manager.start()
        data = until_stored(rig, "w1")
        assert data.count(b"\n") == 200_000 and children.wrong_lines(data) == (0, 0)
        path = "/api/remote-workers/w1/logs?tail=100000&format=json"
        lines = json.loads(rig.manager.request("GET", path, timeout_s=60)[1])["lines"]
        times = [line["at"] for line in lines]
        assert max(times) <= ended + 0.3, "the backlog's times are when it was written, not when it came"
        backwards = [(later - earlier) for earlier, later in zip(times, times[1:]) if later < earlier]
        assert not backwards and max(times) - min(times) > 1.0, (backwards[:9], min(times), max(times))


def test_what_a_manager_that_is_away_too_long_misses_is_marked_with_its_size(folder: Path) -> None:
    """keep_local also limits unsent bytes: the oldest are deleted, the child is not blocked, the log states how
    many."""
    notes, pad, keep = folder / "notes", "x" * 500, MIB
    with Rig(folder / "rig", f"logs.keep_local={keep}") as rig:
        rig.declare(
            {"w1": {"command": children.numbers(notes, 30_000, 6_000, 0.005, pad), "restart": {"policy": "never"}}}
        )
        rig.start_agent()
        wait_until(lambda: rig.stored_bytes("w1") > 0, 30, "the first lines")
        if retention.punch_hole(rig.host_log("w1"), 0, 0) not in ("", "Invalid argument"):
            pytest.skip("this file system punches no holes")
        rig.manager.kill()
        before = rig.stored_bytes("w1")
        wait_until(lambda: children.noted(notes).get("done"), 60, "the child's last line")
        wait_until(lambda: rig.disk_bytes("w1") <= keep + 2 * MIB, 20, "the disk's bound without a manager")
        whole = Path(rig.host_log("w1")).stat().st_size
        rig.manager.start()
        wait_until(lambda: rig.stored_bytes("w1") == whole, 30, "the rest at the manager")
        ((start, end),) = [
            tuple(int(one) for one in line.split()[:2])
            for line in rig.stored("w1").with_suffix(".gaps").read_text().splitlines()
        ]
        assert start >= before and whole - end >= keep
        assert f"{end - start:,} bytes of this log were dropped" in rig.manager.log_text("w1")
        assert children.noted(notes)["worst_gap_ms"] <= MAX_GAP_MS * BUSY
