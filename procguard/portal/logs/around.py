"""Log lines around a position: an address (attempt, stream, offset) or a time.

Owns the format of an address, `3.out.73014`, used by links, searches and the API. Reads files through the log store;
safe in a worker thread. Knows no HTTP.
"""

from __future__ import annotations

import os
import re
from bisect import bisect_left
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from procguard.portal.logs.reader import INDEX_RECORD, LogLine, ScanBudget
from procguard.portal.logs.store import LogStore

DEFAULT_LINES = 200  # lines on each side
MAX_LINES = 5_000
MAX_FORWARD_BYTES = 16 * 1024 * 1024  # limit of bytes read forward from a place
_ADDRESS = re.compile(r"([0-9]{1,9})\.(out|err)\.([0-9]{1,15})")
_BLOCK_BYTES = 64 * 1024


@dataclass(frozen=True)
class LogAddress:
    """The address of a byte in a worker's log, usually the first of a line."""

    attempt: int
    stream: str  # "out" or "err"
    offset: int  # bytes from the beginning of this stream

    @classmethod
    def parse(cls, text: str) -> LogAddress | None:
        """Parse `3.out.73014`; None if it is not an address."""
        found = _ADDRESS.fullmatch(text)
        return cls(int(found[1]), found[2], int(found[3])) if found else None


@dataclass(frozen=True)
class Excerpt:
    lines: list[LogLine]  # oldest first
    target: LogLine | None  # the requested line; None if the manager does not have it


NOTHING = Excerpt([], None)


def address_at(store: LogStore, worker_id: str, moment: float) -> LogAddress | None:
    """The address of the last line written at or before `moment` (Unix seconds); None if everything kept is newer."""
    best: tuple[float, LogAddress] | None = None
    for attempt, stream in reversed(store.streams(worker_id)):
        if best is not None and attempt < best[1].attempt:
            break  # an earlier attempt ended before this one began
        found = _record_at_time(store.index_path(worker_id, attempt, stream), moment)
        if found is not None and (best is None or found.at > best[0]):
            best = (found.at, LogAddress(attempt, stream, found.offset))
    return best[1] if best else None


def beside(store: LogStore, worker_id: str, place: LogAddress) -> dict[tuple[int, str], int]:
    """Stream -> the offset written at the same time as `place`, for each stream of its attempt."""
    found = {(place.attempt, place.stream): place.offset}
    other = "err" if place.stream == "out" else "out"
    own = _record_at_offset(store.index_path(worker_id, place.attempt, place.stream), place.offset)
    record = _record_at_time(store.index_path(worker_id, place.attempt, other), own.at) if own else None
    if record is not None:
        found[(place.attempt, other)] = record.offset
    return found


def excerpt(store: LogStore, worker_id: str, place: LogAddress, before: int, after: int) -> Excerpt:
    """Up to `before` and `after` lines around `place`, of both streams of its attempt, in the order of their times."""
    if not store.holds(worker_id, place.attempt, place.stream, place.offset):
        return NOTHING
    last = _nth_line_behind(store, worker_id, place, after)
    wanted: dict[tuple[int, str], int | None] = {(place.attempt, place.stream): last}
    other = "err" if place.stream == "out" else "out"
    own = _record_at_offset(store.index_path(worker_id, place.attempt, place.stream), last)
    beside = _record_at_time(store.index_path(worker_id, place.attempt, other), own.at) if own else None
    if beside is not None:
        wanted[(place.attempt, other)] = None if beside.end is None else beside.end - 1
    newer: deque[LogLine] = deque(maxlen=after)
    older: list[LogLine] = []
    target: LogLine | None = None
    for line in store.newest_lines(worker_id, wanted, ScanBudget()):
        if target is not None:
            if len(older) >= before:
                break
            older.append(line)
        elif line.stream == place.stream and line.offset <= place.offset:
            target = line
            if not before:
                break
        else:
            newer.append(line)
    lines = [*reversed(older), *([target] if target else []), *reversed(newer)]
    return Excerpt(lines, target)


def _nth_line_behind(store: LogStore, worker_id: str, place: LogAddress, count: int) -> int:
    """The start of the `count`-th line after the one at `place`, or of the last line."""
    position, begin = place.offset, place.offset
    limit = position + MAX_FORWARD_BYTES
    while count > 0 and position < limit:
        block = store.read(worker_id, place.attempt, place.stream, position, position + _BLOCK_BYTES)
        if not block:
            break
        newline = block.find(b"\n")
        while newline >= 0 and count > 0:
            begin = position + newline + 1
            count -= 1
            newline = block.find(b"\n", newline + 1)
        position += len(block)
    return begin


@dataclass(frozen=True)
class _Record:
    """Bytes from `offset` to `end` (None: end of the file) that were written at the time `at` (Unix seconds)."""

    offset: int
    at: float
    end: int | None


def _record_at_time(path: str, moment: float) -> _Record | None:
    """The last record written at or before `moment`."""
    return _last_record(path, lambda record: record[1] <= moment)


def _record_at_offset(path: str, offset: int) -> _Record | None:
    """The record that holds the byte at `offset`."""
    return _last_record(path, lambda record: record[0] <= offset)


def _last_record(path: str, holds: Callable[[tuple[int, float]], bool]) -> _Record | None:
    """The last record of an index for which `holds` is true; it is true up to some record and false for all later
    ones."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        count = os.fstat(descriptor).st_size // INDEX_RECORD.size

        def record(number: int) -> tuple[int, float]:
            offset, at = INDEX_RECORD.unpack(os.pread(descriptor, INDEX_RECORD.size, number * INDEX_RECORD.size))
            return int(offset), float(at)

        behind = bisect_left(range(count), True, key=lambda number: not holds(record(number)))
        if not behind:
            return None
        offset, at = record(behind - 1)
        return _Record(offset, at, record(behind)[0] if behind < count else None)
    finally:
        os.close(descriptor)
