"""Reads archived bytes back: onto the log store's disk, where all readers find them, or directly for a download.

Owns the limits per request and of concurrent reads. Objects are fetched by range requests, one per piece. A piece whose
length or digest differs from the index counts as missing. Event loop only.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import gevent
import gevent.lock
import gevent.pool

from procguard.errors import LimitExceeded, ProcGuardError
from procguard.fleet.store.interface import Fenced
from procguard.portal.logs.archive import objects
from procguard.portal.logs.archive.archive import LogArchive
from procguard.portal.logs.archive.coverage import Range, common
from procguard.portal.logs.archive.index import Key, StoredPiece
from procguard.portal.logs.archive.object_store import ObjectDamaged, RunInThread

FETCHES, READERS, READERS_OF_ONE = 8, 8, 2
PIECES_AT_ONCE = 128
MAX_REPORTED = 1_000
TURN_LOOK_S = 0.1
RUN_BYTES = 1024 * 1024  # bytes of pieces fetched concurrently

log = logging.getLogger("procguard.manager.archive")


class Run(NamedTuple):
    """Bytes [start, end) of a stream, and the records of their times; `data` None: lost, at `at`, before they were
    archived."""

    start: int
    end: int
    data: bytes | None
    times: bytes
    at: float


class ArchiveReader:
    """`in_thread(function, *arguments)`: for decompressing."""

    def __init__(self, archive: LogArchive, in_thread: RunInThread) -> None:
        self._archive = archive
        self._in_thread = in_thread
        self._pool = gevent.pool.Pool(FETCHES)
        self._readers: Counter[str] = Counter()
        self._reported: set[str] = set()  # objects

    @contextmanager
    def turn(self, caller: str) -> Iterator[None]:
        """Wait for one of a few reader slots; each caller has fewer. Raises LimitExceeded."""
        if self._readers[caller] >= READERS_OF_ONE or self._readers.total() >= READERS:
            raise LimitExceeded.for_now("the log archive is being read by others", "ask again in a moment", 2)
        self._readers[caller] += 1
        try:
            yield
        finally:
            self._readers[caller] -= 1
            if not self._readers[caller]:
                del self._readers[caller]

    def newest_first(self, key: Key, start: int, end: int, deadline: float) -> Iterator[Run]:
        """Runs that overlap [start, end), last first. Ends early at `deadline` (monotonic) or if the archive does not
        answer; skips unreadable pieces."""
        while start < end and time.monotonic() < deadline:
            try:
                pieces = self._archive.index.pieces(key, start, end, PIECES_AT_ONCE)
            except (OSError, ProcGuardError) as exc:
                log.error("log archive: its index cannot be read: %s", exc)
                return
            if not pieces:
                return
            run: list[StoredPiece] = []
            for piece in pieces:
                run.append(piece)
                if sum(one.length for one in run if one.packed) >= RUN_BYTES:
                    break
            fetched = self._pool.map(self._fetch, run)
            if not any(fetched):
                return
            yield from _joined(fetched)
            end = run[-1].start

    def oldest_first(self, key: Key, start: int, end: int, step_s: float, caller: str) -> Iterator[Run]:
        """As `newest_first`, in log order, in steps of RUN_BYTES of at most `step_s` each. Each step takes a reader
        slot and releases it before its bytes are sent."""
        while start < end:
            upto, deadline = min(end, start + RUN_BYTES), time.monotonic() + step_s
            runs: list[Run] = []
            while not runs and time.monotonic() < deadline:
                try:
                    with self.turn(caller):
                        runs = sorted(self.newest_first(key, start, upto, deadline), key=lambda run: run.start)
                    break
                except LimitExceeded:
                    gevent.sleep(TURN_LOOK_S)
            for run in runs:
                yield run
                upto = max(upto, run.end)
            start = upto

    def holds(self, key: Key, start: int, end: int) -> list[Range]:
        return common(self._archive.covered(*key), start, end)

    def _fetch(self, piece: StoredPiece) -> Run | None:
        """Fetch a piece; None if it cannot be read."""
        if not piece.packed:
            return Run(piece.start, piece.start + piece.length, None, b"", piece.at)
        try:
            packed = self._archive.place.get(piece.name, piece.position, piece.packed)
            data = self._in_thread(_unpacked, packed, piece.length, piece.digest)
            if isinstance(data, ObjectDamaged):
                raise data
        except (ProcGuardError, ObjectDamaged) as exc:
            if isinstance(exc, Fenced):
                raise
            self._archive.status.unreadable_pieces += 1
            if piece.name not in self._reported:  # repeated requests must not fill the manager's log
                self._reported.add(piece.name)
                log.error("log archive: a piece of %s cannot be read: %s", piece.name, exc)
                if len(self._reported) > MAX_REPORTED:
                    self._reported.clear()
            return None
        self._archive.status.read_bytes += piece.packed
        return Run(piece.start, piece.start + piece.length, data[0], data[1], piece.at)


def _unpacked(packed: bytes, length: int, digest: bytes) -> tuple[bytes, bytes] | ObjectDamaged:
    try:
        return objects.unpack(packed, length, digest)
    except ObjectDamaged as exc:
        return exc


def _joined(fetched: Sequence[Run | None]) -> Iterator[Run]:
    """Merge adjacent runs, because each is one write to the disk. Last first."""
    joined: list[Run] = []
    for run in fetched:
        if joined and (run is None or run.data is None or run.end != joined[-1].start):
            yield _one_of(joined)
            joined = []
        if run is not None and run.data is None:
            yield run
        elif run is not None:
            joined.append(run)
    if joined:
        yield _one_of(joined)


def _one_of(joined: list[Run]) -> Run:
    parts = joined[::-1]
    data, times = b"".join(one.data or b"" for one in parts), b"".join(one.times for one in parts)
    return Run(parts[0].start, parts[-1].end, data, times, parts[0].at)
