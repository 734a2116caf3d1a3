"""The lines around one place of a log: what a link to a line, a search hit or a time opens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from procguard.portal.logs.around import LogAddress, address_at, excerpt
from procguard.portal.logs.store import LogStore


def no_sync(paths: Iterable[str]) -> None:
    list(paths)


@pytest.fixture
def store(tmp_path: Path) -> LogStore:
    """Attempt 1 wrote 100 lines of 9 bytes, one a second from 1000, stderr one at 1050.5; attempt 2 one at 2000."""

    def here(work: Any, *arguments: Any) -> Any:
        return work(*arguments)

    made = LogStore(str(tmp_path / "logs"), keep_attempts=3, sync=no_sync, in_thread=here)
    for number in range(100):
        made.append("w1", 1, "out", number * 9, b"line %03d\n" % number, 1000.0 + number)
    made.append("w1", 1, "err", 0, b"Traceback\n", 1050.5)
    made.append("w1", 2, "out", 0, b"again\n", 2000.0)
    return made


def texts(store: LogStore, place: LogAddress, before: int, after: int) -> tuple[list[str], str | None]:
    found = excerpt(store, "w1", place, before, after)
    return [line.text for line in found.lines], found.target.text if found.target else None


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("3.out.73014", LogAddress(3, "out", 73014)),
        ("1.err.0", LogAddress(1, "err", 0)),
        ("3.log.1", None),
        ("3.out.1\n", None),
        ("3.out.", None),
        ("-1.out.4", None),
        ("2026-11-23T22:00:00Z", None),
        ("9" * 40 + ".out.1", None),
    ],
)
def test_an_address_is_attempt_stream_and_offset(text: str, address: LogAddress | None) -> None:
    assert LogAddress.parse(text) == address


def test_a_line_is_found_with_its_context(store: LogStore) -> None:
    assert texts(store, LogAddress(1, "out", 20 * 9), 2, 1) == (
        ["line 018", "line 019", "line 020", "line 021"],
        "line 020",
    )
    assert texts(store, LogAddress(1, "out", 20 * 9 + 4), 0, 0) == (["line 020"], "line 020")


def test_the_other_stream_stands_where_its_time_belongs(store: LogStore) -> None:
    lines, target = texts(store, LogAddress(1, "err", 0), 2, 0)
    assert (lines, target) == (["line 049", "line 050", "Traceback"], "Traceback")
    lines, target = texts(store, LogAddress(1, "out", 51 * 9), 3, 1)
    assert (lines, target) == (["line 049", "line 050", "Traceback", "line 051", "line 052"], "line 051")


def test_at_the_ends_of_a_log_there_is_less_context(store: LogStore) -> None:
    assert texts(store, LogAddress(1, "out", 0), 5, 1) == (["line 000", "line 001"], "line 000")
    assert texts(store, LogAddress(1, "out", 99 * 9), 1, 5) == (["line 098", "line 099"], "line 099")


def test_what_the_manager_does_not_hold_has_no_target(store: LogStore) -> None:
    for place in (LogAddress(1, "out", 900), LogAddress(7, "out", 0), LogAddress(2, "err", 0)):
        assert texts(store, place, 5, 5) == ([], None)


@pytest.mark.parametrize(
    ("moment", "address"),
    [
        (999.0, None),
        (1000.0, LogAddress(1, "out", 0)),
        (1020.5, LogAddress(1, "out", 180)),
        (1050.6, LogAddress(1, "err", 0)),
        (1999.0, LogAddress(1, "out", 99 * 9)),
        (5000.0, LogAddress(2, "out", 0)),
    ],
)
def test_a_moment_leads_to_what_was_written_last_by_then(
    store: LogStore, moment: float, address: LogAddress | None
) -> None:
    assert address_at(store, "w1", moment) == address


def test_the_last_lines_of_a_range_end_where_the_range_ends(store: LogStore) -> None:
    """Of both streams, and of no attempt that began later."""

    def tail(**question: Any) -> list[str]:
        return [line.text for line in store.tail("w1", 3, **question)]

    assert tail(before=1050.7) == ["line 049", "line 050", "Traceback"]
    assert tail(before=1050.7, stream="out") == ["line 048", "line 049", "line 050"]
    assert tail(since=1049.5, before=1050.2) == ["line 050"]
    assert tail(before=999.0) == []
    assert tail(before=3000.0) == ["line 098", "line 099", "again"]
