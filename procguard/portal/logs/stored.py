"""StoredLogs: reads the workers' log bytes from the manager's disk, as lines or as they are.

Owns where the files of a stream are; writes nothing. May be read in a worker thread while the event loop writes
(store.py).
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import gevent.threadpool

from procguard.expression import Expression
from procguard.portal.logs import disk
from procguard.portal.logs.reader import (
    MAX_SCAN_S,
    NARROWER,
    Hole,
    LogLine,
    ScanBudget,
    StreamFile,
    TimesOf,
    holes,
    line_filter,
    newest_first,
)
from remote_agent.logs.grep import COLOURS
from remote_agent.protocol.messages import LogMatch, directory_name

READ_THREADS = 2
LAST_LINE_CHARS = 300
STEP_S = 0.1
P = ParamSpec("P")
T = TypeVar("T")
_LOG_NAME = re.compile(r"^([0-9]{1,10})\.(out|err)\.log$")


def in_one_go(function: Callable[P, Generator[None, None, T]]) -> Callable[P, T]:
    """Wrap a function that runs in steps: runs all of them at once and returns the result."""

    def whole(*arguments: P.args, **named: P.kwargs) -> T:
        steps = function(*arguments, **named)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result: T = end.value
                return result

    return whole


class StoredLogs:
    def __init__(self, directory: str) -> None:
        self._directory = os.path.abspath(directory)
        self._readers = gevent.threadpool.ThreadPool(READ_THREADS)

    def lengths(self, worker_id: str) -> dict[str, int]:
        """{"3.out": bytes}"""
        return {
            f"{attempt}.{stream}": self._size(self._base(worker_id, attempt, stream))
            for attempt, stream in self._streams(worker_id)
        }

    def attempts(self, worker_id: str) -> list[int]:
        return sorted({attempt for attempt, _ in self._streams(worker_id)})

    def last_lines(self, worker_id: str, attempt: int, lines: int) -> list[str]:
        """The last non-empty lines of an attempt, truncated and without control characters; empty if none are stored
        here."""
        try:
            found = self.beside(self.tail, worker_id, lines * 4, attempt)
        except OSError:
            return []
        own = (COLOURS.sub("", one.text.rpartition("\r")[2]) for one in found if not one.marker)
        shown = ("".join(letter for letter in text if letter.isprintable()).rstrip() for text in own)
        return [text[:LAST_LINE_CHARS] for text in shown if text][-lines:]

    def tail_steps(
        self,
        worker_id: str,
        lines: int = 200,
        attempt: int | None = None,
        stream: str | None = None,
        since: float | None = None,
        expression: Expression | None = None,
        keep_partial: bool = False,
        before: float | None = None,
    ) -> Generator[None, None, list[LogLine]]:
        """The last `lines` matching lines, oldest first, across attempts; in steps of STEP_S, so that the caller can do
        other work in between. `since`, `before`: limits of the time of writing, Unix seconds.

        `keep_partial`: include unfinished lines that do not match `expression` (yet). With an expression, the scan ends
        after MAX_SCAN_S with a line that reports it.
        """
        wanted = line_filter(expression) if expression is not None else None
        until = time.monotonic() + MAX_SCAN_S
        step_ends = time.monotonic() + STEP_S
        found: list[LogLine] = []
        for line in self._newest_first(worker_id, attempt, stream, before):
            if len(found) >= lines or (since is not None and line.at < since):
                break
            if wanted is None or wanted(line) or (keep_partial and line.partial):
                found.append(line)
            if wanted is None or (now := time.monotonic()) < step_ends:
                continue
            yield
            step_ends = time.monotonic() + STEP_S
            if now > until:
                text = f"[procguard: stopped looking here after {MAX_SCAN_S:g} s; {NARROWER}]"
                found.append(LogLine(line.attempt, line.stream, line.offset, line.at, text, line.offset, marker=True))
                break
        return found[::-1]

    tail = in_one_go(tail_steps)  # safe in a worker thread

    def written(self, matches: Sequence[LogMatch]) -> list[float]:
        """The time at which the first byte of each line was written; 0: not known here."""
        return self.beside(self._written, matches)

    def _written(self, matches: Sequence[LogMatch]) -> list[float]:
        found: dict[int, float] = {}
        key = lambda number: (matches[number].worker_id, matches[number].attempt, matches[number].stream)  # noqa: E731
        for (worker_id, attempt, stream), numbers in itertools.groupby(sorted(range(len(matches)), key=key), key=key):
            base = self._base(worker_id, attempt, stream)
            stored = self._size(base)
            with contextlib.closing(TimesOf(base + ".idx")) as times:
                for number in numbers:
                    offset = matches[number].offset
                    found[number] = times.at(offset) if offset < stored else 0.0
        return [found[number] for number in range(len(matches))]

    def beside(self, work: Callable[..., T], *arguments: Any) -> T:
        """Run `work`, which reads files, in a thread, because it may read many megabytes. The event loop continues."""
        result: T = self._readers.apply(work, arguments)
        return result

    def streams(self, worker_id: str) -> list[tuple[int, str]]:
        """(attempt, stream) of everything stored of a worker, oldest first."""
        return self._streams(worker_id)

    def holds(self, worker_id: str, attempt: int, stream: str, offset: int) -> bool:
        return offset < self._size(self._base(worker_id, attempt, stream))

    def newest_lines(
        self, worker_id: str, wanted: dict[tuple[int, str], int | None], budget: ScanBudget
    ) -> Iterator[LogLine]:
        """Lines of these (attempt, stream), newest first; of each stream only those that begin at or before its
        offset."""
        for attempt in sorted({attempt for attempt, _ in wanted}, reverse=True):
            files = [
                StreamFile(self._base(worker_id, attempt, stream), attempt, stream, until)
                for (number, stream), until in sorted(wanted.items(), key=lambda item: item[0])
                if number == attempt
            ]
            yield from newest_first(files, budget)
            if budget.left <= 0:
                return

    def read(self, worker_id: str, attempt: int, stream: str, start: int, end: int) -> bytes:
        """Stored bytes [start, end), as far as they exist here."""
        try:
            with open(self._base(worker_id, attempt, stream) + ".log", "rb") as file:
                file.seek(start)
                return file.read(max(0, end - start))
        except FileNotFoundError:
            return b""

    def between(self, worker_id: str, attempt: int, stream: str, start: int, end: int) -> list[LogLine]:
        """Lines that end after `start` and begin before `end`, oldest first, with a marker for each hole."""
        file = StreamFile(self._base(worker_id, attempt, stream), attempt, stream, end - 1)
        lines = itertools.takewhile(lambda line: line.end > start, file.lines_backward(ScanBudget()))
        return list(lines)[::-1]

    def raw(self, worker_id: str, attempt: int | None, stream: str | None, caller: str = "") -> Iterator[bytes]:
        """The bytes as the worker wrote them, oldest attempt first, in blocks; each gap is replaced by a line.
        `caller`: whose share of the archive's reader slots is used."""
        for number, name in self._streams(worker_id):
            if attempt not in (None, number) or stream not in (None, name):
                continue
            base = self._base(worker_id, number, name)
            position, size = 0, self._size(base)
            for hole in holes(base, size):
                yield from disk.blocks(base + ".log", position, hole.start)
                yield from self._hole(base, hole, caller)
                position = hole.end
            yield from disk.blocks(base + ".log", position, size)

    @staticmethod
    def _size(base: str) -> int:
        try:
            return os.path.getsize(base + ".log")
        except FileNotFoundError:
            return 0

    def _newest_first(
        self, worker_id: str, attempt: int | None, stream: str | None, before: float | None
    ) -> Iterator[LogLine]:
        budget = ScanBudget()
        for number, streams in itertools.groupby(reversed(self._streams(worker_id)), key=lambda pair: pair[0]):
            if attempt not in (None, number):
                continue
            files = [
                StreamFile(self._base(worker_id, number, name), number, name)
                for _, name in streams
                if stream in (None, name)
            ]
            if before is not None:
                files = [file for file in files if file.end_at(before)]
            yield from newest_first(files, budget)
            if budget.left <= 0:
                return

    # ---------------------------------------------------------------------- for logs that are stored elsewhere, too

    def restore(self, worker_id: str) -> None:
        """Hook, called before a worker's logs are read: add files for logs that are stored only elsewhere. Raises
        OSError."""

    def await_index(self) -> None:
        """Hook: wait for the index of logs that are stored only elsewhere. Called before logs are read."""

    def _hole(self, base: str, hole: Hole, caller: str = "") -> Iterator[bytes]:
        """The text that represents a hole in a download."""
        yield f"{hole.as_text(short=True)}\n".encode()

    # ----------------------------------------------------------------------------------------------- places

    def _streams(self, worker_id: str) -> list[tuple[int, str]]:
        """(attempt, stream) of everything stored of a worker, oldest first."""
        try:
            names = os.listdir(self._worker_directory(worker_id))
        except FileNotFoundError:
            return []
        found = (_LOG_NAME.match(name) for name in names)
        return sorted((int(match[1]), match[2]) for match in found if match)

    def _worker_directory(self, worker_id: str) -> str:
        return f"{self._directory}/{directory_name(worker_id)}"

    def index_path(self, worker_id: str, attempt: int, stream: str) -> str:
        return self._base(worker_id, attempt, stream) + ".idx"

    def _base(self, worker_id: str, attempt: int, stream: str) -> str:
        return f"{self._directory}/{directory_name(worker_id)}/{attempt}.{stream}"
