"""SpooledLogStore: a log store whose disk is a spool before the archive, and a cache of it.

Archived bytes may be removed from the disk and are fetched again when they are read. A file keeps its length; removed
bytes are marked as absent (absent.py), like those that only a host has. The store decides what is removed, fetch.py
when bytes are fetched.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from procguard.portal.logs import absent, retention
from procguard.portal.logs.archive.archive import LogArchive
from procguard.portal.logs.archive.coverage import Range, common, lacking, merged
from procguard.portal.logs.archive.index import Key
from procguard.portal.logs.archive.reading import ArchiveReader, Run
from procguard.portal.logs.reader import INDEX_RECORD, Hole, read_gaps
from procguard.portal.logs.retention import STEP_BYTES, Held
from procguard.portal.logs.store import LogStore
from procguard.runtime.cooperative import Pace
from remote_agent.logs import retention as log_disk
from remote_agent.protocol.messages import directory_name
from remote_agent.system import paths

PIN_S = 60.0  # fetched bytes are kept for this time if other bytes can be removed
KEPT_INDEX_BYTES = 64 * 1024  # for an attempt that was removed from the disk
MAX_RESTORED_INDEX = 32 * 1024 * 1024
STEP_S = 30.0  # per megabyte of a download
INDEX_S = 10.0  # how long a reader waits for the index of the archive after the start of the manager


class SpooledLogStore(LogStore):
    """A log store whose logs are also archived. Until `attach` is called, it is an ordinary log store."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.archive: LogArchive | None = None
        self.reader: ArchiveReader | None = None
        self._pins = Pins()
        self.bytes_evicted = 0  # removed for keep_per_worker and keep_in_all; still in the archive

    def attach(self, archive: LogArchive, reader: ArchiveReader) -> None:
        """Connect the archive. Must be called before anything is stored or read."""
        self.archive, self.reader = archive, reader
        archive.on_load = self._restore_all

    @property
    def directory(self) -> str:
        return self._directory

    # --------------------------------------------------------------------------------------------- archived parts

    def kept(self, worker_id: str, attempt: int, stream: str, stored: int) -> int:
        """The offset below which everything is archived, at most `stored`."""
        if self.archive is None:
            return super().kept(worker_id, attempt, stream, stored)
        return min(stored, self.archive.upto(directory_name(worker_id), attempt, stream))

    def _took(self, worker_id: str, attempt: int, stream: str, size: int) -> None:
        if self.archive is not None:
            self.archive.note(worker_id, attempt, stream, size)

    def await_index(self) -> None:
        if self.archive is not None:
            self.archive.await_index(INDEX_S)

    def _await_ready(self) -> None:
        if self.archive is not None and not self.archive.is_ready:
            raise OSError(errno.EAGAIN, "the index of the log archive is being rebuilt; the agent retries")

    def _set_floor(self, folder: str, floor: int) -> None:
        if os.path.isdir(folder):
            super()._set_floor(folder, floor)
        if self.archive is not None:
            self.archive.drop(os.path.basename(folder), floor)

    def retire(self, worker_id: str) -> None:
        super().retire(worker_id)
        if self.archive is not None:
            self.archive.retire(directory_name(worker_id))

    def _covered(self, base: str) -> list[Range]:
        return self.archive.covered(*key_of(base)) if self.archive is not None else []

    def _nowhere_else(self, base: str, start: int, end: int) -> list[Range]:
        return lacking(self._covered(base), start, end)

    # ----------------------------------------------------------------------------------------------- eviction

    def measured(self) -> dict[str, list[Held]]:
        """The size of the stream: that on the disk or in the archive, whichever is larger."""
        found = super().measured()
        for folder in self.archive.folders() if self.archive is not None else ():
            known = {(one.attempt, one.stream): one for one in found.get(folder, [])}
            for key in self.archive.streams(folder) if self.archive is not None else ():
                assert self.archive is not None
                size = sum(end - start for start, end in self.archive.covered(folder, *key))
                here = known.get(key) or Held(*key, size, 0)
                at = here.written_at or self.archive.written_at((folder, *key))
                known[key] = replace(here, held=max(here.held, size), written_at=at)
            found[folder] = list(known.values())
        return found

    def _cut(self, folder: str, streams: list[Held], keep: int, at: float) -> None:
        """Free disk space: archived bytes first, then the rest as without an archive."""
        over = retention.total(streams) - keep
        if self.archive is None or not streams or folder.endswith(retention.GONE):
            super()._cut(folder, streams, keep, at)
            return
        if over > 0:
            self._evict(folder, streams, over + keep // retention.ROOM)
            left = [one for one in self._in_thread(retention.measure_one, folder) if self._is_wanted_here(folder, one)]
            cut = retention.decide(left, keep)
            for one in left if cut is not None else ():
                assert cut is not None
                end = one.size if one.attempt < cut.floor else cut.heads.get((one.attempt, one.stream), 0)
                if end:
                    self._drop_head(os.path.join(folder, f"{one.attempt}.{one.stream}"), end, at)

    def _is_wanted_here(self, folder: str, one: Held) -> bool:
        """Whether the disk has bytes that are not archived."""
        covered = self._covered(os.path.join(folder, f"{one.attempt}.{one.stream}"))
        return bool(lacking(covered, 0, one.size)) and one.held > 0

    def _evict(self, folder: str, streams: list[Held], over: int) -> None:
        newest = max(one.attempt for one in streams)
        for one in in_order(streams, lambda key: os.path.join(folder, f"{key[0]}.{key[1]}") in self._pins):
            base = os.path.join(folder, f"{one.attempt}.{one.stream}")
            covered = self._covered(base)
            if over > 0 and one.held and covered:
                whole = one.attempt != newest
                with self._exclusive(base), contextlib.suppress(FileNotFoundError):
                    freed = self._in_thread(evict, base, covered, one.size if whole else over, whole)
                    self._index.doubt(base + ".idx")
                    over -= freed
                    self.bytes_evicted += freed

    def _forget_head(self, base: str, end: int, at: float) -> None:
        covered, size = self._covered(base), self._size(base)
        if not common(covered, 0, end):
            super()._forget_head(base, end, at)
            return
        for one, other in lacking(covered, 0, end):
            self._note_gap(base, one, other, at)
            absent.remove(base, size, one, other)
        absent.put(base, size, common(covered, 0, end))

    # ----------------------------------------------------------------------------------- reading back

    def restore(self, worker_id: str) -> None:
        if self.archive is None:
            return
        floor = self._floor(worker_id)
        for attempt, stream in self.archive.streams(directory_name(worker_id)):
            if attempt >= floor:
                self._restore(self._base(worker_id, attempt, stream))

    def _restore_all(self) -> None:
        """Add files for all archived logs, because searches and lists examine only existing files. A request for a
        single log does not wait for this."""
        rest = Pace()
        for folder in self.archive.folders() if self.archive is not None else ():
            for attempt, stream in self.archive.streams(folder) if self.archive is not None else ():
                if not folder.endswith(retention.GONE):
                    rest()
                    base = os.path.join(self._directory, folder, f"{attempt}.{stream}")
                    self._restore(base)
                    if self.archive is not None and self.archive.was_rebuilt:
                        with self._exclusive(base):
                            self._in_thread(find_again, base, self._covered(base))

    def _restore(self, base: str) -> bool:
        """Returns whether the file was shorter than its archived size."""
        key = key_of(base)
        if self.archive is None or self.archive.length(*key) <= self._size(base):
            return False
        with self._exclusive(base):
            return bool(self._in_thread(restore, base, self._covered(base), self.archive.written_at(key)))

    def length(self, worker_id: str, attempt: int, stream: str) -> int:
        self._await_ready()
        if attempt >= self._floor(worker_id):
            self._restore(self._base(worker_id, attempt, stream))
        return super().length(worker_id, attempt, stream)

    def append(self, worker_id: str, attempt: int, stream: str, *arguments: Any, **named: Any) -> int:
        if self.archive is not None:
            self._await_ready()
            archived = self.archive.length(directory_name(worker_id), attempt, stream)
            base = self._base(worker_id, attempt, stream)
            if archived and archived > self._size(base) and attempt >= self._floor(worker_id):
                self._restore(base)
        return super().append(worker_id, attempt, stream, *arguments, **named)

    def take_back(self, worker_id: str, attempt: int, stream: str, run: Run) -> None:
        """Store bytes read back from the archive, or mark them lost. Keeps bytes already on disk. Raises OSError."""
        base = self._base(worker_id, attempt, stream)
        self._pins.add(base)
        with self._exclusive(base):
            size = self._size(base)
            if run.data is None:
                for one, other in absent.within(absent.read(base, size), run.start, run.end):
                    self._note_gap(base, one, other, run.at)
                    absent.remove(base, size, one, other)
                return
            self._add_times(base, run.times)
            self._fill(base, size, run.start, run.data)
        self._since_check[worker_id] += len(run.data)  # the limits are checked with the next write
        self._all_since_check += len(run.data)

    def lacks_times(self, worker_id: str) -> list[Key]:
        """Archived streams whose index of times is missing on this disk or begins later than the archived bytes."""
        bases = [self._base(worker_id, *one) for one in self._streams(worker_id)]
        return [key_of(base) for base in bases if lacks_times(base, self._covered(base))]

    def add_times(self, key: Key, records: bytes) -> None:
        """Raises OSError."""
        base = os.path.join(self._directory, key[0], f"{key[1]}.{key[2]}")
        with self._exclusive(base):
            self._add_times(base, records)

    def _add_times(self, base: str, records: bytes) -> None:
        if self._in_thread(add_times, base + ".idx", records):
            self._index.doubt(base + ".idx")

    def _hole(self, base: str, hole: Hole, caller: str = "") -> Iterator[bytes]:
        """Stream archived bytes without storing them, because a download may be larger than the disk."""
        position = hole.start
        if self.reader is not None and hole.at is None:
            for run in self.reader.oldest_first(key_of(base), hole.start, hole.end, STEP_S, caller):
                start, end = max(run.start, position), min(run.end, hole.end)
                if start >= end:
                    continue
                if position < start:
                    yield from super()._hole(base, Hole(position, start, None))
                if run.data is None:
                    yield from super()._hole(base, Hole(start, end, run.at))
                else:
                    yield run.data[start - run.start : end - run.start]
                position = end
        if position < hole.end:
            yield from super()._hole(base, Hole(position, hole.end, hole.at))


def key_of(base: str) -> Key:
    folder, name = os.path.split(base)
    attempt, _, stream = name.partition(".")
    return os.path.basename(folder), int(attempt), stream


class Pins:
    """The streams that are being read."""

    def __init__(self) -> None:
        self._until: dict[str, float] = {}

    def add(self, base: str) -> None:
        now = time.monotonic()
        self._until = {one: until for one, until in self._until.items() if until > now}
        self._until[base] = now + PIN_S

    def __contains__(self, base: str) -> bool:
        return self._until.get(base, 0.0) > time.monotonic()


def in_order(streams: Iterable[Held], is_pinned: Callable[[tuple[int, str]], bool]) -> list[Held]:
    """The order of removal: oldest first, streams that are being read last."""
    return sorted(streams, key=lambda one: (is_pinned((one.attempt, one.stream)), one.attempt, -one.held))


def evict(base: str, covered: Sequence[Range], over: int, whole: bool) -> int:
    """Remove archived bytes from the disk, from the log's beginning, until `over` bytes are free. Returns the number of
    bytes freed. `whole`: the attempt has ended, so its index is removed too. Raises OSError. Runs in a thread."""
    size = os.path.getsize(base + ".log")
    gone = merged([*absent.read(base, size), *(gap[:2] for gap in read_gaps(base + ".gaps", size))])
    going: list[Range] = []
    left = over if whole else over // STEP_BYTES * STEP_BYTES + STEP_BYTES
    for one, other in covered:
        for start, end in lacking(gone, min(one, size), min(other, size)):
            if left > 0:
                going.append((start, min(end, start + left)))
                left -= going[-1][1] - start
    if not going:
        return 0
    before, problem = os.stat(base + ".log"), ""
    absent.put(base, size, going)
    for start, end in going:
        problem = log_disk.punch_hole(base + ".log", start, end - start)
        if problem:
            absent.remove(base, size, start, end)  # the bytes are still on the disk
            break
    os.utime(base + ".log", ns=(before.st_atime_ns, before.st_mtime_ns))
    freed = max(0, before.st_blocks - os.stat(base + ".log").st_blocks) * 512
    if whole and not problem and os.path.exists(base + ".idx") and os.path.getsize(base + ".idx") > KEPT_INDEX_BYTES:
        freed += os.stat(base + ".idx").st_blocks * 512
        os.unlink(base + ".idx")
    return freed


def restore(base: str, covered: Sequence[Range], written_at: float) -> bool:
    """Extend a log's file, if it is missing or shorter than its archived part, to that length, with the new range
    marked as absent. Returns whether that was necessary. Raises OSError."""
    end = covered[-1][1] if covered else 0
    try:
        size = os.path.getsize(base + ".log")
    except FileNotFoundError:
        size = -1
    if end <= size or not end:
        return False
    os.makedirs(os.path.dirname(base), mode=0o700, exist_ok=True)
    descriptor = os.open(base + ".log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        absent.put(base, end, [(max(0, size), end)])
        os.ftruncate(descriptor, end)
        if written_at:
            os.utime(descriptor, (written_at, written_at))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def find_again(base: str, covered: Sequence[Range]) -> None:
    """Correct ranges that were recorded as lost although the archive has them (`covered`). Runs in a thread. Raises
    OSError."""
    size = os.path.getsize(base + ".log")
    gaps = read_gaps(base + ".gaps", size)
    found = [part for start, end, _ in gaps for part in common(covered, start, end)]
    if found:
        absent.put(base, size, found)
        left = [(*part, at) for start, end, at in gaps for part in lacking(covered, start, end)]
        text = "".join(f"{start} {end} {at:.3f}\n" for start, end, at in left)
        paths.write_atomic(base + ".gaps", text.encode(), durable=True)


def lacks_times(base: str, covered: Sequence[Range]) -> bool:
    if not covered:
        return False
    try:
        with open(base + ".idx", "rb") as file:
            first = file.read(INDEX_RECORD.size)
    except FileNotFoundError:
        return True
    if len(first) < INDEX_RECORD.size:
        return True
    gone = read_gaps(base + ".gaps", covered[-1][1])
    begin = gone[0][1] if gone and gone[0][0] == 0 else 0
    return bool(INDEX_RECORD.unpack(first)[0] > max(begin, covered[0][0]))


def add_times(path: str, records: bytes) -> bool:
    """Insert the records of restored bytes among the existing ones. Returns whether they are in the index now; a very
    large index is left unchanged. Raises OSError. Runs in a thread."""
    if not records:
        return False
    try:
        with open(path, "rb") as file:
            known = file.read(MAX_RESTORED_INDEX + 1)
    except FileNotFoundError:
        known = b""
    if len(known) > MAX_RESTORED_INDEX:
        return False
    whole = len(known) // INDEX_RECORD.size * INDEX_RECORD.size
    found = dict(INDEX_RECORD.iter_unpack(known[:whole]))
    fresh = [one for one in INDEX_RECORD.iter_unpack(records) if one[0] not in found]
    if not fresh:
        return False
    found.update(fresh)
    paths.write_atomic(path, b"".join(INDEX_RECORD.pack(*one) for one in sorted(found.items())))
    return True
