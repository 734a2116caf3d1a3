"""Reading stored logs backwards: lines with their offsets and times, gaps as marker lines, everything bounded.

A line that rewrote itself with carriage returns (a progress bar) is shown as its last state.

Owns the file formats of one stream: `<attempt>.<stream>.log` (the bytes; a gap is a hole of the same length),
`.idx` (16-byte records: offset, wall time; rising) and `.gaps` (text lines: start, end, wall time). Pure reading:
no locks, no event loop; safe in a worker thread.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, cast

from typing_extensions import NotRequired, TypedDict

from procguard.expression import Expression
from procguard.portal.logs import absent
from remote_agent.logs.grep import COLOURS, last_state
from remote_agent.protocol import messages

INDEX_RECORD = struct.Struct("<Qd")
BLOCK_RECORDS = 64  # records of an index that are read at once
BLOCK_BYTES = 64 * 1024
MAX_LINE_BYTES = 64 * 1024  # longer lines are truncated and marked
MAX_SCAN_BYTES = 128 * 1024 * 1024  # per request, e.g. for a regular expression without matches
MAX_SCAN_S = 10.0  # the same limit in seconds
NARROWER = "narrow it down with since=, attempt= or stream="


class Line(TypedDict):
    """`marker`: a message of ProcGuard about the log, not output of the worker. `partial`: the end of the line has not
    been written yet. `offset`, `end`: bytes. `at`: Unix seconds."""

    attempt: int
    stream: messages.Stream
    offset: int
    end: int
    at: float
    text: str
    marker: NotRequired[bool]
    partial: NotRequired[bool]


@dataclass(frozen=True)
class LogLine:
    """One line. `marker`: a note by ProcGuard, not output of the worker. `partial`: unfinished; `rewinds`: unfinished
    and overwritten by the next output (its last byte is a carriage return)."""

    attempt: int
    stream: str
    offset: int
    at: float
    text: str
    end: int = 0  # offset after its last byte, including the newline
    marker: bool = False
    partial: bool = False
    rewinds: bool = False

    def as_json(self) -> Line:
        line: Line = {
            "attempt": self.attempt,
            "stream": cast(messages.Stream, self.stream),
            "offset": self.offset,
            "end": self.end,
            "at": self.at,
            "text": self.text + "\r" if self.rewinds else self.text,
        }
        if self.marker:
            line["marker"] = True
        if self.partial:
            line["partial"] = True
        return line


class ScanBudget:
    """The number of bytes that a request may still read."""

    def __init__(self, max_bytes: int = MAX_SCAN_BYTES) -> None:
        self.left = max_bytes


class StreamFile:
    """One stored stream of one attempt, for reading."""

    def __init__(self, base: str, attempt: int, stream: str, until: int | None = None) -> None:
        self.base = base  # the path without its extension
        self.attempt = attempt
        self.stream = stream
        self.until = until  # only lines that begin at or before this offset

    def end_at(self, moment: float) -> bool:
        """Exclude bytes written after `moment`. Returns False if nothing is left."""
        with contextlib.closing(TimesOf(self.base + ".idx")) as times:
            behind = times.offset_after(moment)
        if behind is not None:
            self.until = behind - 1
        return behind != 0

    def lines_backward(self, budget: ScanBudget) -> Iterator[LogLine]:
        """The lines, newest first."""
        try:
            descriptor = os.open(self.base + ".log", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return
        try:
            index = TimesOf(self.base + ".idx")
            try:
                for line in self._segments_backward(descriptor, index, budget):
                    if self.until is None or line.offset <= self.until:
                        yield line
            finally:
                index.close()
        finally:
            os.close(descriptor)

    def _segments_backward(self, descriptor: int, index: TimesOf, budget: ScanBudget) -> Iterator[LogLine]:
        size = end = os.fstat(descriptor).st_size
        if self.until is not None:
            end = min(end, self.until + MAX_LINE_BYTES)
        for hole in reversed(holes(self.base, size)):
            if hole.start >= end:
                continue
            yield from self._lines(descriptor, hole.end, end, index, budget)
            at = index.at(hole.start) if hole.at is None else hole.at
            yield LogLine(self.attempt, self.stream, hole.start, at, hole.as_text(), hole.end, marker=True)
            end = hole.start
        yield from self._lines(descriptor, 0, end, index, budget)

    def _lines(self, descriptor: int, start: int, end: int, index: TimesOf, budget: ScanBudget) -> Iterator[LogLine]:
        """Lines of [start, end), newest first. A line longer than MAX_LINE_BYTES is truncated to its beginning or, for
        a progress bar, its last state."""
        position = end
        line = _LineFromItsEnd(terminated=False)
        while position > start:
            if budget.left <= 0:
                text = f"[procguard: stopped looking here; {NARROWER}]"
                yield LogLine(self.attempt, self.stream, position, index.at(position), text, position, marker=True)
                return
            size = min(BLOCK_BYTES, position - start)
            block = os.pread(descriptor, size, position - size)
            if len(block) != size:
                return  # truncated while it was read: the worker was removed
            budget.left -= size
            position -= size
            block_end = size
            while (newline := block.rfind(b"\n", 0, block_end)) >= 0:
                line.prepend(block[newline + 1 : block_end])
                if line.length or line.terminated:
                    yield self._line(position + newline + 1, line, index)
                line, block_end = _LineFromItsEnd(terminated=True), newline
            line.prepend(block[:block_end])
        if line.length or line.terminated:
            yield self._line(start, line, index)

    def _line(self, offset: int, line: _LineFromItsEnd, index: TimesOf) -> LogLine:
        end = offset + line.length + (1 if line.terminated else 0)
        shown, cut = line.shown()
        text = shown.decode("utf-8", "replace")
        if cut:
            text += f" [procguard: line cut, {cut:,} bytes more]"
        # A rewritten line (progress bar) has the text and the time of its last state.
        at = index.at(end - 1 if line.state is not None else offset)
        rewinds = line.rewinds and not line.terminated
        return LogLine(self.attempt, self.stream, offset, at, text, end, partial=not line.terminated, rewinds=rewinds)


class _LineFromItsEnd:
    """A line that is read backwards, in bounded memory for any length."""

    def __init__(self, terminated: bool) -> None:
        self.terminated = terminated  # followed by a newline
        self.length = 0
        self.state: bytes | None = None  # the text after its last carriage return, if any
        self.rewinds = False
        self._head = b""  # its first bytes, as far as read
        self._cut = 0  # bytes omitted after `_head`

    def prepend(self, part: bytes) -> None:
        if not part:
            return
        if not self.length:
            self.rewinds = part.endswith(b"\r")
        self.length += len(part)
        if self.state is not None:
            return  # only the offset of its beginning is still needed
        self._head = part + self._head
        if not self._cut:
            body = self._head.rstrip(b"\r")
            rewound = body.rfind(b"\r")
            if rewound >= 0:
                self.state, self._head = body[rewound + 1 :], b""
                return
        if len(self._head) > MAX_LINE_BYTES:
            self._cut += len(self._head) - MAX_LINE_BYTES
            self._head = self._head[:MAX_LINE_BYTES]

    def shown(self) -> tuple[bytes, int]:
        """Returns (text to show, number of omitted bytes)."""
        whole = last_state(self._head) if self.state is None and not self._cut else self.state or self._head
        return whole[:MAX_LINE_BYTES], self._cut + max(0, len(whole) - MAX_LINE_BYTES)


class TimesOf:
    """Looks up the wall time at which an offset was written: that of the last record at or before it. Adjacent lines
    usually share a record, so the last result is tried first."""

    def __init__(self, path: str) -> None:
        self._block, self._block_number = b"", -1  # the block read last: a search ends in adjacent records
        self._holds = range(0)  # the range of offsets for which `_answer` is valid
        self._answer = 0.0
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            self._descriptor = -1
            self._records = 0
            return
        self._records = os.fstat(self._descriptor).st_size // INDEX_RECORD.size

    def at(self, offset: int) -> float:
        if offset not in self._holds:
            self._find(offset)
        return self._answer

    def offset_after(self, moment: float) -> int | None:
        """The offset of the first byte written after `moment`; None if there is none."""
        behind = bisect_right(range(self._records), moment, key=lambda number: self._record(number)[1])
        return self._record(behind)[0] if behind < self._records else None

    def offset_before(self, moment: float) -> int:
        """The offset of the last record at or before `moment`, which contains what was written then."""
        behind = bisect_right(range(self._records), moment, key=lambda number: self._record(number)[1])
        return self._record(behind - 1)[0] if behind else 0

    def packed(self, start: int, end: int, max_bytes: int) -> bytes:
        """The records that begin in [start, end), in the file's format; every n-th if there are too many."""
        low = bisect_left(range(self._records), start, key=lambda number: self._record(number)[0])
        high = self._records
        if low < high and self._record(high - 1)[0] >= end:
            high = bisect_left(range(high), end, low, key=lambda number: self._record(number)[0])
        every = max(1, -(-(high - low) * INDEX_RECORD.size // max_bytes))
        if every == 1 and low < high:
            data = os.pread(self._descriptor, (high - low) * INDEX_RECORD.size, low * INDEX_RECORD.size)
            return data[: len(data) // INDEX_RECORD.size * INDEX_RECORD.size]
        found = (os.pread(self._descriptor, INDEX_RECORD.size, one * INDEX_RECORD.size)
                 for one in range(low, high, every))  # fmt: skip
        return b"".join(one for one in found if len(one) == INDEX_RECORD.size)

    def _find(self, offset: int) -> None:
        low = bisect_right(range(self._records), offset, key=lambda number: self._record(number)[0])
        begin, self._answer = self._record(low - 1) if low else (0, 0.0)
        end = self._record(low)[0] if low < self._records else offset + 1
        self._holds = range(begin, end)

    def _record(self, number: int) -> tuple[int, float]:
        block, beside = divmod(number, BLOCK_RECORDS)
        if block != self._block_number:
            size = BLOCK_RECORDS * INDEX_RECORD.size
            self._block, self._block_number = os.pread(self._descriptor, size, block * size), block
        offset, at = INDEX_RECORD.unpack_from(self._block, beside * INDEX_RECORD.size)
        return int(offset), float(at)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)


class Hole(NamedTuple):
    """Bytes that are not on this disk. `at` None: the archive or the worker's host may have them."""

    start: int
    end: int
    at: float | None

    def as_text(self, short: bool = False) -> str:
        size = f"{self.end - self.start:,} bytes of this log"
        if self.at is None:
            return f"[procguard: {size} are not on the manager's disk and could not be fetched now]"
        return (
            f"[procguard: {size} were dropped]"
            if short
            else (f"[procguard: {size} were dropped before they reached the manager]")
        )


def holes(base: str, size: int) -> list[Hole]:
    """Ascending, disjoint ranges that are lost or only on the host."""
    gone = [Hole(*gap) for gap in read_gaps(base + ".gaps", size)]
    found = list(gone)
    for start, end in absent.read(base, size):
        begin = start
        for gap in gone:
            if gap.start < end and begin < gap.end:
                if begin < gap.start:
                    found.append(Hole(begin, gap.start, None))
                begin = max(begin, gap.end)
        if begin < end:
            found.append(Hole(begin, end, None))
    return sorted(found, key=lambda hole: hole.start)


def read_gaps(path: str, file_size: int) -> list[tuple[int, int, float]]:
    """(start, end, wall time) of each gap, ascending, none beyond the file's end. Lines torn or zeroed by a power loss
    are skipped."""
    try:
        with open(path, "rb") as file:
            gaps = sorted(gap for line in file if (gap := _gap(line)) is not None)
    except FileNotFoundError:
        return []
    merged: list[tuple[int, int, float]] = []
    for start, end, at in gaps:
        if end > file_size or start >= end:
            continue  # recorded, but the manager died before the file grew
        if merged and start <= merged[-1][1]:  # also merges a beginning that was cut repeatedly
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]), at)
            continue
        merged.append((start, end, at))
    return merged


def _gap(line: bytes) -> tuple[int, int, float] | None:
    try:
        start, end, at = line.split()
        return int(start), int(end), float(at)
    except ValueError:
        return None


def newest_first(files: list[StreamFile], budget: ScanBudget) -> Iterator[LogLine]:
    """Lines of one attempt's streams, merged by time, newest first; each stream keeps its own order."""
    streams = [file.lines_backward(budget) for file in files]
    if len(streams) == 1:
        return streams[0]
    return heapq.merge(*streams, key=lambda line: -line.at)


# --------------------------------------------------------------------------------------------------- filtering


def line_filter(wanted: Expression) -> Callable[[LogLine], bool]:
    """A predicate for `regex=`. It sees a line without its colours, as remote_agent/logs/grep.py does on a host."""
    found_in, without_colours = wanted.found_in, COLOURS.sub

    def matches(line: LogLine) -> bool:
        text = line.text
        return line.marker or found_in(without_colours("", text) if "\x1b" in text else text)

    return matches
