"""LogIndex: records when the stored bytes of each stream were written, as increasing 16-byte records (offset, wall
time).

The writer of `<attempt>.<stream>.idx`; `reader.TimesOf` reads it. A record may be on disk before its bytes; after a
crash or a partial write, the first new record removes such records. Owns no lock: the store allows one writer per
stream.

The owner of the bytes supplies the times, so that the index has its own size limit: the larger it is, the coarser it
becomes.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

from procguard.portal.logs.reader import INDEX_RECORD

INDEX_EVERY_S = 0.1  # resolution of `since` and of merging by time
# A new agent knows only roughly when bytes were written while no agent watched: times may be earlier than those of
# stored bytes by up to the interval of its records (log_times.WRITE_SHIPPED_S). Times that go back further indicate
# that a clock was set.
ROUGHLY_S = 15.0
COARSER_BYTES = 16 * 1024 * 1024  # the resolution is halved after each: 29 hours of a line every 0.1 s, then 58, 116, …
MAX_INDEX_BYTES = 256 * 1024 * 1024  # per stream; later bytes have the time of the last record
MAX_REMEMBERED_STREAMS = 20_000


class LogIndex:
    def __init__(self) -> None:
        # path -> wall time of its last record, its size
        self._last: OrderedDict[str, tuple[float | None, int]] = OrderedDict()

    def write(self, path: str, stored: int, runs: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
        """Record `runs` (offset, wall time) of bytes that will be stored from `stored` on. Returns the runs with
        corrected times: times within a stream decrease only if the clock was set. Raises OSError."""
        last, size = self._last.pop(path) if path in self._last else _cut_and_read_last(path, stored)
        every_s = INDEX_EVERY_S * 2 ** (size // COARSER_BYTES)
        noted: list[tuple[int, float]] = []
        records: list[bytes] = []
        indexed = last
        for offset, written_at in runs:
            at = written_at if last is None or not 0 < last - written_at < ROUGHLY_S else last
            last = at
            noted.append((offset, at))
            if size + len(records) * INDEX_RECORD.size >= MAX_INDEX_BYTES:
                continue
            if indexed is None or not 0 <= at - indexed < every_s:
                records.append(INDEX_RECORD.pack(offset, at))
                indexed = at
        if records:
            _append(path, b"".join(records))
        if indexed is not None:
            self._last[path] = (indexed, size + len(records) * INDEX_RECORD.size)
        if len(self._last) > MAX_REMEMBERED_STREAMS:
            self._last.popitem(last=False)
        return noted

    def doubt(self, path: str) -> None:
        """Check the file before the next record, because not all bytes were written or the stream was deleted."""
        self._last.pop(path, None)


def runs_of(offset: int, skipped: int, at: float, times: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    """[(file offset, wall time)…] of the new bytes, without the `skipped` ones; times closer than the index's
    resolution are merged."""
    found = [(offset + skipped, at)]
    for begin, when in times:
        if begin <= skipped:
            found = [(offset + skipped, when)]
        elif not 0 <= when - found[-1][1] < INDEX_EVERY_S:
            found.append((offset + begin, when))
    return found


def _cut_and_read_last(path: str, stored: int) -> tuple[float | None, int]:
    """Remove a torn end and the records of bytes that are not stored. Returns the time of the last remaining record
    (None if there is none) and the file's size."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None, 0
    try:
        size = os.fstat(descriptor).st_size
        whole = size // INDEX_RECORD.size
        last = None
        while whole:
            begin, at = INDEX_RECORD.unpack(os.pread(descriptor, INDEX_RECORD.size, (whole - 1) * INDEX_RECORD.size))
            if begin < stored:
                last = float(at)
                break
            whole -= 1
        if whole * INDEX_RECORD.size != size:
            os.ftruncate(descriptor, whole * INDEX_RECORD.size)
        return last, whole * INDEX_RECORD.size
    finally:
        os.close(descriptor)


def _append(path: str, data: bytes) -> None:
    """Append all records. Raises OSError also for a partial write."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    finally:
        os.close(descriptor)
