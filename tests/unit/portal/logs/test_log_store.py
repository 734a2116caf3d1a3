"""The workers' logs on the manager's disk: nothing duplicated, nothing silently missing, everything bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from procguard import expression
from procguard.agent_api.interface import LogGap
from procguard.portal.logs import disk, retention, stored
from procguard.portal.logs import index as log_index
from procguard.portal.logs import store as logs
from procguard.portal.logs.reader import INDEX_RECORD, MAX_LINE_BYTES, LogLine, line_filter
from procguard.portal.logs.store import LogStore


def no_sync(paths: Iterable[str]) -> None:
    for path in paths:
        assert os.path.exists(path)


def here(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    return LogStore(str(tmp_path / "logs"), keep_attempts=3, sync=no_sync, in_thread=here)


def texts(store: LogStore, worker: str = "w1", **query: object) -> list[str]:
    return [line.text for line in store.tail(worker, **query)]  # type: ignore[arg-type]


def test_what_arrives_twice_is_stored_once(store: LogStore) -> None:
    assert store.append("w1", 1, "out", 0, b"one\ntwo\n", 10.0) == 8
    assert store.append("w1", 1, "out", 0, b"one\ntwo\n", 10.0) == 8
    assert store.append("w1", 1, "out", 4, b"two\nthree\n", 11.0) == 14
    assert texts(store) == ["one", "two", "three"]


def test_bytes_beyond_the_stored_length_are_asked_for_from_there(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"abc", 10.0)
    with pytest.raises(LogGap) as refusal:
        store.append("w1", 1, "out", 7, b"xyz", 10.0)
    assert refusal.value.extra == {"acked": 3}
    assert store.length("w1", 1, "out") == 3


def test_a_declared_gap_keeps_offsets_and_shows_a_marker_with_its_size(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"first\n", 10.0)
    assert store.append("w1", 1, "out", 5_006, b"later\n", 20.0, gap=True) == 5_012
    first, marker, later = store.tail("w1")
    assert (first.text, later.text, later.offset) == ("first", "later", 5_006)
    assert marker.marker and "5,000 bytes" in marker.text and marker.offset == 6
    downloaded = b"".join(store.raw("w1", None, None))
    assert b"\0" not in downloaded and b"5,000 bytes" in downloaded


def test_an_acknowledged_length_survives_the_manager(tmp_path: Path, store: LogStore) -> None:
    store.append("w1", 2, "err", 0, b"x" * 100, 10.0)
    again = LogStore(str(tmp_path / "logs"), sync=no_sync, in_thread=here)
    assert again.lengths("w1") == {"2.err": 100}
    assert again.append("w1", 2, "err", 90, b"x" * 20, 11.0) == 110


def test_bytes_are_made_durable_before_they_are_acknowledged(tmp_path: Path) -> None:
    synced: list[str] = []
    store = LogStore(str(tmp_path), sync=synced.extend, in_thread=here)
    store.append("w1", 1, "out", 0, b"x", 1.0)
    assert any(path.endswith("1.out.log") for path in synced)


def test_the_tail_goes_back_across_attempts(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"a1\na2\n", 10.0)
    store.append("w1", 2, "out", 0, b"b1\nb2\n", 20.0)
    assert texts(store, lines=3) == ["a2", "b1", "b2"]
    assert texts(store, attempt=1) == ["a1", "a2"]


def test_streams_of_an_attempt_are_merged_by_time(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"o1\n", 10.0)
    store.append("w1", 1, "err", 0, b"e2\n", 11.0)
    store.append("w1", 1, "out", 3, b"o3\n", 12.0)
    assert texts(store) == ["o1", "e2", "o3"]
    assert texts(store, stream="err") == ["e2"]


def test_since_cuts_by_the_time_the_lines_were_written(store: LogStore) -> None:
    for number in range(10):
        store.append("w1", 1, "out", number * 3, f"l{number}\n".encode(), 100.0 + number)
    assert texts(store, since=107.0) == ["l7", "l8", "l9"]


def test_regex_searches_further_back_than_the_last_lines(store: LogStore) -> None:
    lines = "".join(f"{'epoch' if n % 100 == 0 else 'step'} {n}\n" for n in range(5_000))
    store.append("w1", 1, "out", 0, lines.encode(), 10.0)
    assert texts(store, lines=2, expression=expression.read("^epoch [0-9]+$")) == ["epoch 4800", "epoch 4900"]


@pytest.mark.parametrize("pattern", [r"(a+)+$", r"(a|a)*$", r"(.*a){20,}", r"(\w+\s?)*$", "a.*a.*a.*b"])
def test_patterns_that_run_away_in_other_engines_are_quick(pattern: str) -> None:
    began = time.thread_time()
    line_filter(expression.read(pattern))(LogLine(1, "out", 0, 0.0, "a" * 16_000 + "!"))
    assert time.thread_time() - began < 1.0


def test_a_search_ends_in_time_and_says_so(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.append("w1", 1, "out", 0, b"line\n" * 1000, 10.0)
    monkeypatch.setattr(stored, "MAX_SCAN_S", 0.0)
    monkeypatch.setattr(stored, "STEP_S", 0.0)
    assert texts(store, expression=expression.read("nothing")) == [
        "[procguard: stopped looking here after 0 s; narrow it down with since=, attempt= or stream=]"
    ]


@pytest.mark.parametrize(
    ("pattern", "line"),
    [
        (r"ERROR|WARN", "WARN disk is slow"),
        (r"epoch \d+.*loss", "epoch 12 done, loss 0.1"),
        (r"(?i)oom", "killed: OOM"),
        (r"^\[\d{4}-\d\d\] .*$", "[2026-11] started"),
    ],
)
def test_usual_patterns_are_taken(pattern: str, line: str) -> None:
    matches = line_filter(expression.read(pattern))
    assert matches(LogLine(1, "out", 0, 0.0, line))
    assert not matches(LogLine(1, "out", 0, 0.0, "step 3"))


@pytest.mark.parametrize("size", [65_535, 65_536, 65_537, 131_072, 200_001])
def test_lines_across_read_blocks_keep_offsets_and_text(store: LogStore, size: int) -> None:
    filler = b"".join(b"line %06d\n" % n for n in range(size // 12))
    store.append("w1", 1, "out", 0, filler + b"last\n", 10.0)
    lines = store.tail("w1", lines=10**6)
    assert b"".join(line.text.encode() + b"\n" for line in lines) == filler + b"last\n"
    whole = filler + b"last\n"
    assert all(whole[line.offset : line.end] == line.text.encode() + b"\n" for line in lines)


def test_a_line_of_19_megabytes_is_cut_and_says_so(store: LogStore) -> None:
    data = b"before\n" + b"x" * 19_000_000 + b"\nafter\n"
    store.append("w1", 1, "out", 0, data, 10.0)
    before, huge, after = store.tail("w1")
    assert (before.text, after.text) == ("before", "after")
    assert huge.offset == 7 and huge.end == 7 + 19_000_001
    assert len(huge.text) < MAX_LINE_BYTES + 200 and "line cut, 18,934,464 bytes more" in huge.text


def test_empty_lines_stay(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"\n\na\n\n", 10.0)
    assert texts(store) == ["", "", "a", ""]


def test_a_last_line_without_its_end_is_partial(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"done\nprogr", 10.0)
    assert [(line.text, line.partial) for line in store.tail("w1")] == [("done", False), ("progr", True)]


def test_hostile_bytes_become_text(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"\xff\xfe\x1b[31m<script>\r\n", 10.0)
    assert texts(store) == ["��\x1b[31m<script>"]


def test_old_attempts_are_dropped_and_their_latecomers_swallowed(store: LogStore) -> None:
    for attempt in range(1, 6):
        store.append("w1", attempt, "out", 0, b"x\n", 10.0)
    assert store.attempts("w1") == [3, 4, 5]
    assert store.append("w1", 1, "out", 2, b"late\n", 20.0) == 7
    assert store.attempts("w1") == [3, 4, 5]


def test_ids_never_become_paths_of_their_own(tmp_path: Path, store: LogStore) -> None:
    store.append("A..b", 1, "out", 0, b"x", 1.0)
    store.append("a..b", 1, "out", 0, b"yy", 1.0)
    assert (store.length("A..b", 1, "out"), store.length("a..b", 1, "out")) == (1, 2)
    names = os.listdir(tmp_path / "logs")
    assert len(names) == 2 and all("." not in name for name in names)


def test_followers_receive_each_byte_once_in_order(store: LogStore) -> None:
    received: list[tuple[int, bytes]] = []
    store.on_append(lambda worker, attempt, stream, offset, data, at: received.append((offset, data)))
    store.append("w1", 1, "out", 0, b"abc", 1.0)
    store.append("w1", 1, "out", 1, b"bcde", 1.0)
    store.append("w1", 1, "out", 0, b"abcde", 1.0)
    assert received == [(0, b"abc"), (3, b"de")]


def test_a_worker_that_is_gone_leaves_no_bytes_to_a_later_one_of_its_name(tmp_path: Path, store: LogStore) -> None:
    for life in (b"first", b"second"):
        assert store.append("w1", 1, "out", 0, life, 1.0) == len(life)
        store.retire("w1")
        assert store.lengths("w1") == {} and store.tail("w1") == []
    kept = list((tmp_path / "logs").glob("*.gone/1.out.log"))
    assert [path.read_bytes() for path in kept] == [b"second"]


def test_a_backlog_keeps_the_times_it_was_written_at(store: LogStore) -> None:
    """Sent hours later in one piece, beside another stream that arrived in time."""
    store.append("w1", 1, "err", 0, b"e at 150\n", 150.0)
    store.append("w1", 1, "out", 0, b"o at 100\no at 200\no at 300\n", 100.0, times=[(9, 200.0), (18, 300.0)])
    assert texts(store) == ["o at 100", "e at 150", "o at 200", "o at 300"]
    assert texts(store, since=180.0) == ["o at 200", "o at 300"]


def test_times_of_bytes_that_are_stored_already_are_skipped_with_them(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"one\n", 100.0)
    store.append("w1", 1, "out", 0, b"one\ntwo\nthree\n", 100.0, times=[(4, 200.0), (8, 300.0)])
    assert [(line.text, line.at) for line in store.tail("w1")] == [("one", 100.0), ("two", 200.0), ("three", 300.0)]


def killed_before_its_bytes_were_there(store: LogStore, torn: bytes) -> None:
    """A store that recorded the times of "two" and "three" and then nothing more."""
    store.append("w1", 1, "out", 0, b"one\n", 100.0)
    (index,) = Path(store._directory).glob("*/1.out.idx")
    with open(index, "ab") as file:
        file.write(INDEX_RECORD.pack(4, 200.0) + INDEX_RECORD.pack(8, 300.0) + torn)


@pytest.mark.parametrize("torn", [b"", b"half a record"[:7]])
def test_times_written_down_just_before_the_manager_died_do_not_mix_with_the_next_ones(
    tmp_path: Path, store: LogStore, torn: bytes
) -> None:
    killed_before_its_bytes_were_there(store, torn)
    again = LogStore(str(tmp_path / "logs"), sync=no_sync, in_thread=here)
    again.append("w1", 1, "out", 4, b"two\nthree\nfour\n", 210.0, times=[(10, 400.0)])
    found = [(line.text, line.at) for line in again.tail("w1")]
    assert found == [("one", 100.0), ("two", 210.0), ("three", 210.0), ("four", 400.0)]


def test_times_of_bytes_that_a_full_disk_refused_do_not_mix_with_the_next_ones(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.append("w1", 1, "out", 0, b"one\n", 100.0)
    append = disk.append_all
    with monkeypatch.context() as patch:
        patch.setattr(disk, "append_all", lambda path, data: 0 if path.endswith(".log") else append(path, data))
        store.append("w1", 1, "out", 4, b"two\nthree\n", 200.0, times=[(4, 300.0)])
    store.append("w1", 1, "out", 4, b"two\nthree\n", 210.0)
    assert [(line.text, line.at) for line in store.tail("w1")] == [("one", 100.0), ("two", 210.0), ("three", 210.0)]


def test_a_new_agents_rough_times_never_lie_before_what_is_stored(tmp_path: Path, store: LogStore) -> None:
    """It interpolates times from its predecessor's last record on, which is older than the bytes that that one sent."""
    store.append("w1", 1, "out", 0, b"one\n", 100.0)
    store.append("w1", 1, "out", 4, b"two\nthree\n", 97.0, times=[(4, 99.0)])
    again = LogStore(str(tmp_path / "logs"), sync=no_sync, in_thread=here)
    again.append("w1", 1, "out", 14, b"four\nfive\n", 96.0, times=[(5, 101.0)])
    assert [line.at for line in again.tail("w1")] == [100.0, 100.0, 100.0, 100.0, 101.0]


def test_a_clock_that_was_set_back_is_shown_as_it_was(store: LogStore) -> None:
    store.append("w1", 1, "out", 0, b"one\n", 5000.0)
    store.append("w1", 1, "out", 4, b"two\n", 1400.0)
    assert [line.at for line in store.tail("w1")] == [5000.0, 1400.0]


def test_followers_receive_each_run_of_bytes_with_its_time(store: LogStore) -> None:
    received: list[tuple[int, bytes, float]] = []
    store.on_append(lambda worker, attempt, stream, offset, data, at: received.append((offset, data, at)))
    store.append("w1", 1, "out", 0, b"aabbcc", 1.0, times=[(2, 1.01), (4, 5.0)])
    assert received == [(0, b"aabb", 1.0), (4, b"cc", 5.0)]


def test_a_gap_may_come_without_bytes(store: LogStore) -> None:
    assert store.append("w1", 1, "out", 500, b"", 9.0, gap=True) == 500
    (line,) = store.tail("w1")
    assert line.marker and "500 bytes" in line.text


PROGRESS = b"".join(b"\r%3d%%|%s| %d/100" % (n, b"#" * (n // 10), n) for n in range(101))


@pytest.mark.parametrize(
    "data,shown",
    [
        (b"start\n" + PROGRESS + b"\nend\n", ["start", "100%|##########| 100/100", "end"]),
        (b"10%\r20%\r30%\r", ["30%"]),
        (b"windows\r\nline\r\n", ["windows", "line"]),
        (b"\r\r\r\n", [""]),
        (b"50%\r\r100%\r\r\n", ["100%"]),
    ],
)
def test_a_progress_bar_shows_as_its_last_state(store: LogStore, data: bytes, shown: list[str]) -> None:
    store.append("w1", 1, "out", 0, data, 10.0)
    assert texts(store) == shown
    assert b"".join(store.raw("w1", None, None)) == data


def test_a_progress_bar_of_hours_shows_its_last_state_and_where_its_line_begins(store: LogStore) -> None:
    """Megabytes without a newline; it is not yet over."""
    store.append("w1", 1, "out", 0, b"before\n", 10.0)
    data = b"".join(b"\rstep %d of 300000" % n for n in range(150_000))
    store.append("w1", 1, "out", 7, data, 20.0)
    before, bar = store.tail("w1")
    assert (before.text, bar.text) == ("before", "step 149999 of 300000")
    assert (bar.offset, bar.end, bar.partial) == (7, 7 + len(data), True)


def test_what_comes_next_overwrites_a_bar_that_ends_in_a_carriage_return(store: LogStore) -> None:
    """Reported to the portal, which appends the live pieces to the text."""
    store.append("w1", 1, "out", 0, b"10%\r20%\r", 10.0)
    (line,) = store.tail("w1")
    assert line.text == "20%" and line.as_json()["text"] == "20%\r"


# ----------------------------------------------------------------------------------------------- files beside the bytes


def test_an_index_has_a_bound_whatever_times_are_said(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clocks that jump with each byte would write sixteen times what they log."""
    monkeypatch.setattr(log_index, "MAX_INDEX_BYTES", 50 * INDEX_RECORD.size)
    for number in range(200):
        store.append("w1", 1, "out", number, b"\n", 1_000.0 + 1_000 * (number % 2) + number)
    index = next(Path(store._directory).rglob("1.out.idx"))
    assert index.stat().st_size == 50 * INDEX_RECORD.size
    assert store.length("w1", 1, "out") == 200 and len(store.tail("w1", 500)) == 200


def test_an_index_becomes_coarser_as_it_grows_and_loses_no_line(
    store: LogStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_index, "COARSER_BYTES", 20 * INDEX_RECORD.size)
    for number in range(200):
        store.append("w1", 1, "out", number * 2, b"x\n", 1_000.0 + 0.11 * number)
    index = next(Path(store._directory).rglob("1.out.idx"))
    assert 40 < index.stat().st_size // INDEX_RECORD.size < 100
    lines = store.tail("w1", 500)
    assert len(lines) == 200 and abs(lines[-1].at - 1_021.89) < 2


def test_gaps_without_end_are_refused(store: LogStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_GAPS_BYTES", 1_000)
    with pytest.raises(OSError, match="too many parts"):
        for number in range(1, 200):
            store.append("w1", 1, "out", number * 10, b"x", 1_000.0, gap=True)
    assert next(Path(store._directory).rglob("1.out.gaps")).stat().st_size < 1_100


def test_attempts_that_rise_without_end_leave_one_number_behind(store: LogStore) -> None:
    for attempt in range(1, 60):
        store.append("w1", attempt, "out", 0, b"x\n", 1_000.0)
    assert store.attempts("w1") == [57, 58, 59]
    assert next(Path(store._directory).rglob("floor")).read_text() == "57\n"


def test_what_lies_beside_a_log_counts_for_its_worker(tmp_path: Path) -> None:
    folder = tmp_path / "w1"
    folder.mkdir()
    (folder / "1.out.log").write_bytes(b"x" * 4_096)
    (folder / "1.out.idx").write_bytes(b"x" * 40_960)
    (folder / "1.out.gaps").write_bytes(b"x" * 8_192)
    [held] = retention.measure_one(str(folder))
    assert retention.total([held]) >= 4_096 + 40_960 + 8_192 and held.held == 4_096
