"""Times of a log's bytes: kept for bytes that wait for hours, bounded in memory and on disk."""

from __future__ import annotations

from pathlib import Path

import pytest

from remote_agent.logs import time_index
from remote_agent.logs.time_index import POINT, TimeIndex


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "1.log")


def test_bytes_have_the_time_of_the_scan_that_saw_them_first(path: str) -> None:
    index = TimeIndex(path)
    index.saw(10, 100.0)
    index.saw(10, 101.0)
    index.saw(30, 102.0)
    assert index.runs(0, 30, 99) == ([(0, 100.0), (10, 102.0)], 30)
    assert index.runs(12, 20, 99) == ([(12, 102.0)], 20)


def test_a_post_takes_only_as_many_runs_as_fit_in_it(path: str) -> None:
    index = TimeIndex(path)
    for number in range(1, 6):
        index.saw(number * 10, 100.0 + number)
    assert index.runs(5, 50, 2) == ([(5, 101.0), (10, 102.0)], 20)


def test_what_waits_for_the_manager_keeps_its_times_over_an_agents_death(path: str) -> None:
    index = TimeIndex(path)
    for number in range(1, 6):
        index.saw(number * 10, 100.0 + number)
        index.write(100.0 + number, waiting=True)
    again = TimeIndex(path)
    again.saw_first(50, 105.0)
    assert again.runs(0, 50, 99) == index.runs(0, 50, 99)


def test_bytes_that_came_while_no_agent_watched_are_spread_over_that_time(path: str) -> None:
    index = TimeIndex(path)
    index.saw(100, 1000.0)
    index.write(1000.0, waiting=True)
    again = TimeIndex(path)
    again.saw_first(1100, 1100.0)
    runs, end = again.runs(100, 1100, 99)
    assert end == 1100
    for offset, at in runs:
        assert at == pytest.approx(1000 + (offset - 100) / 10, abs=100 / time_index.UNWATCHED_PARTS + 0.1)


def test_a_file_that_is_new_to_the_agent_has_its_mtime(path: str) -> None:
    index = TimeIndex(path)
    index.saw_first(500, 77.0)
    assert index.runs(0, 500, 9) == ([(0, 77.0)], 500)


def test_shipped_points_leave_memory_and_the_last_one_stays(path: str) -> None:
    index = TimeIndex(path)
    for number in range(1, 101):
        index.saw(number, float(number))
    index.forget_before(100)
    assert len(index) == 1 and index.last == 100
    index.saw(101, 200.0)
    assert index.runs(100, 101, 9) == ([(100, 200.0)], 101)


def test_the_index_stays_bounded_and_its_resolution_even(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days without a manager: memory and disk stay small, times become coarser and never wrong by more than that."""
    monkeypatch.setattr(time_index, "MAX_POINTS", 100)
    index = TimeIndex(path)
    for number in range(1, 10_001):
        index.saw(number, 1000.0 + number)
        index.write(1000.0 + number, waiting=True)
        assert len(index) <= 100
    assert Path(path + ".idx").stat().st_size <= 2 * 100 * POINT.size
    runs, _ = index.runs(0, 10_000, 10_000)
    assert runs[0][0] == 0 and runs[-1][1] == 11_000.0
    assert all(0 <= at - (1000.0 + offset) <= 2 * 10_000 / 50 for offset, at in runs)
    assert len(TimeIndex(path)) <= 100


@pytest.mark.parametrize("end", [b"torn", b"\0" * 64, POINT.pack(5, 10.0), POINT.pack(2**63, float("nan"))])
def test_a_damaged_end_costs_only_itself(path: str, end: bytes) -> None:
    index = TimeIndex(path)
    index.saw(100, 10.0)
    index.write(10.0, waiting=True)
    with open(path + ".idx", "ab") as file:
        file.write(end)
    again = TimeIndex(path)
    assert again.last == 100
    again.saw(200, 20.0)
    again.write(20.0, waiting=True)
    assert TimeIndex(path).runs(0, 200, 9) == ([(0, 10.0), (100, 20.0)], 200)


def test_a_clock_that_jumps_back_is_reported_as_it_is(path: str) -> None:
    index = TimeIndex(path)
    index.saw(10, 5000.0)
    index.saw(20, 1000.0)
    assert index.runs(0, 20, 9) == ([(0, 5000.0), (10, 1000.0)], 20)


def test_no_index_says_no_time(path: str) -> None:
    assert TimeIndex(path).runs(0, 10, 9) == ([(0, 0.0)], 10)
