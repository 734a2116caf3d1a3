"""LogArchive: uploads the log store's bytes, tracks what is archived, and deletes logs that have expired.

One greenlet uploads an object with new bytes of many workers every `interval_s`, or as soon as OBJECT_BYTES wait, at
most one per second. Files are read and compressed in threads. If the archive does not answer, only this greenlet
waits, and the logs stay on the disk within the spool's limit. The coverage of each stream is cached in memory. An entry
in the index is created before an upload and completed after it, so that a crash leaves no unknown object.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import NamedTuple

import gevent
import gevent.event

from procguard.errors import ProcGuardError
from procguard.fleet.store.interface import Fenced
from procguard.portal.logs import absent
from procguard.portal.logs.archive import objects, rebuild
from procguard.portal.logs.archive.coverage import Range, common, from_zero, lacking, merged
from procguard.portal.logs.archive.index import ArchiveIndex, Key
from procguard.portal.logs.archive.object_store import ObjectDamaged, ObjectMissing, ObjectStore, RunInThread, new_name
from procguard.portal.logs.archive.objects import Chunk, Piece
from procguard.portal.logs.reader import TimesOf, holes
from remote_agent.protocol.messages import directory_name

OBJECT_BYTES = 8 * 1024 * 1024  # log bytes per object, before compression
MAX_STREAMS = 10_000  # limit on the streams of one object
BETWEEN_UPLOADS_S = 1.0
BACKOFF_S = (1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
LATE_UPLOAD_S = 300.0  # after a crash, an upload of this age that has not arrived is given up
DELETED_AT_ONCE = 20  # objects deleted between two uploads
GONE = ".gone"
_LOG_NAME = re.compile(r"^([0-9]{1,10})\.(out|err)\.log$")
READY_S = 60.0  # upper bound of the time in which logs are refused while the index is rebuilt

log = logging.getLogger("procguard.manager.archive")


@dataclass
class ArchiveStatus:
    """`problem`: why nothing is uploaded now, or ""; `waiting_bytes`: on the disk and not archived."""

    place: str
    problem: str = ""
    failing_since: float | None = None  # Unix seconds
    uploaded_at: float | None = None
    uploaded_objects: int = 0  # since the manager started
    uploaded_bytes: int = 0
    read_bytes: int = 0
    unreadable_pieces: int = 0
    waiting_bytes: int = 0


@dataclass
class _Backlog:
    worker_id: str
    since: float  # monotonic
    size: int = 0


class _Upload(NamedTuple):
    name: str
    number: int
    data: bytes
    pieces: list[tuple[Key, Piece]]


@dataclass
class _Changes:
    """Changes of streams during an upload."""

    gone: set[str] = field(default_factory=set)
    floors: dict[str, int] = field(default_factory=dict)


class LogArchive:
    """`directory`: of the log store; `in_thread(function, *arguments)`; `said(problem)`: called once per change, with
    "" when uploads work again; `known()`: {folder: id} of the fleet's workers."""

    def __init__(
        self,
        place: ObjectStore,
        index: ArchiveIndex,
        directory: str,
        *,
        fleet_id: str,
        in_thread: RunInThread,
        term: int = 0,
        interval_s: float = 10.0,
        said: Callable[[str], None] = lambda _: None,
        known: Callable[[], Mapping[str, str]],
        index_is_new: bool = False,
    ) -> None:
        self.place, self.index = place, index
        self.status = ArchiveStatus(place.shown)
        self._directory = directory
        self._fleet_id, self._term = fleet_id, term
        self._in_thread = in_thread
        self._interval_s = interval_s
        self._said = said
        self._known = known
        self._covered: dict[str, dict[tuple[int, str], list[Range]]] = {}
        self._written_at: dict[Key, float] = {}
        self._waiting: OrderedDict[Key, _Backlog] = OrderedDict()
        self._todo: deque[Callable[[], None]] = deque()  # changes of the index, in order
        self._upload: _Upload | None = None
        self._meanwhile = _Changes()
        self._unfinished = True  # uploads of an earlier run may be unfinished
        self._empty_objects = True  # there may be objects without pieces
        self._index_is_new = index_is_new
        self._loaded = False
        self._load_tried = gevent.event.Event()
        self._wake = gevent.event.Event()
        self._ready_by = time.monotonic() + READY_S
        self.was_rebuilt = False
        self.on_load: Callable[[], None] = lambda: None  # set once the coverage is known

    # ------------------------------------------------------------------------------------------------------ coverage

    @property
    def is_ready(self) -> bool:
        """False until the index is loaded: before that the offset at which a log continues is unknown."""
        return self._loaded or time.monotonic() > self._ready_by

    def await_index(self, timeout_s: float) -> None:
        """Wait until the index is loaded or cannot be: before that, a log without its archived parts would look
        complete."""
        self._load_tried.wait(timeout_s)

    def covered(self, folder: str, attempt: int, stream: str) -> list[Range]:
        return self._covered.get(folder, {}).get((attempt, stream), [])

    def upto(self, folder: str, attempt: int, stream: str) -> int:
        """The offset below which every byte is archived or was lost before archiving."""
        return from_zero(self.covered(folder, attempt, stream))

    def length(self, folder: str, attempt: int, stream: str) -> int:
        ranges = self.covered(folder, attempt, stream)
        return ranges[-1][1] if ranges else 0

    def streams(self, folder: str) -> list[tuple[int, str]]:
        return sorted(self._covered.get(folder, {}))

    def folders(self) -> list[str]:
        return list(self._covered)

    def written_at(self, key: Key) -> float:
        """The time at which its last archived piece was written, in Unix seconds."""
        return self._written_at.get(key, 0.0)

    # ------------------------------------------------------------------------------------------------------- changes

    def note(self, worker_id: str, attempt: int, stream: str, size: int) -> None:
        """Note that the log store wrote `size` more bytes of this stream to its disk."""
        key = (directory_name(worker_id), attempt, stream)
        waiting = self._waiting.get(key)
        if waiting is None:
            waiting = self._waiting[key] = _Backlog(worker_id, time.monotonic())
        waiting.size += size
        before = self.status.waiting_bytes
        self.status.waiting_bytes += size
        if before < OBJECT_BYTES <= self.status.waiting_bytes:
            self._wake.set()

    def drop(self, folder: str, below: int) -> None:
        """Delete attempts below `floor` from the archive, in the background."""
        streams = self._covered.get(folder, {})
        going = [one for one in streams if one[0] < below]
        for one in going:
            del streams[one]
            self._written_at.pop((folder, *one), None)
        self._meanwhile.floors[folder] = max(below, self._meanwhile.floors.get(folder, 0))
        self._forget_waiting(lambda key: key[0] == folder and key[1] < below)
        if going:
            self._later(lambda: self.index.drop(folder, below))

    def retire(self, folder: str) -> None:
        """Retire the folder of a removed worker: its logs are kept as `<folder>.gone` until the next worker of that
        name is removed."""
        self._meanwhile.gone.add(folder)
        self._forget_waiting(lambda key: key[0] == folder)
        self._forget_folder(folder + GONE)
        for one, ranges in self._covered.pop(folder, {}).items():
            self._covered.setdefault(folder + GONE, {})[one] = ranges
            self._written_at[(folder + GONE, *one)] = self._written_at.pop((folder, *one), 0.0)
        self._later(lambda: self.index.drop(folder + GONE))
        self._later(lambda: self.index.rename(folder, folder + GONE))

    def _forget_folder(self, folder: str) -> None:
        for one in self._covered.pop(folder, {}):
            self._written_at.pop((folder, *one), None)

    def _forget_waiting(self, chosen: Callable[[Key], bool]) -> None:
        for key in [key for key in self._waiting if chosen(key)]:
            self.status.waiting_bytes -= self._waiting.pop(key).size

    def _later(self, change: Callable[[], None]) -> None:
        self._todo.append(change)
        self._empty_objects = True
        self._wake.set()

    # ---------------------------------------------------------------------------------------------- the greenlet

    def run(self) -> None:
        """Upload until another manager leads."""
        tries = 0
        while True:
            try:
                more = self.step()
                self._report("")
                tries, wait_s = 0, 0.0 if more else self._interval_s / 10
            except Fenced:
                return
            except (ProcGuardError, OSError, ObjectDamaged) as exc:
                self._report(_words(exc))
                wait_s = BACKOFF_S[min(tries, len(BACKOFF_S) - 1)]
                tries += 1
                gevent.sleep(wait_s)
                continue
            except Exception:  # an error here must not end archiving
                log.exception("archiving failed; it is tried again")
                wait_s = BACKOFF_S[-1]
            gevent.sleep(BETWEEN_UPLOADS_S)
            self._wake.wait(wait_s)
            self._wake.clear()

    def _report(self, problem: str) -> None:
        if problem == self.status.problem:
            return
        first = bool(problem) != bool(self.status.problem)
        self.status.problem = problem
        self._load_tried.set()
        if problem:
            log.error("log archive: %s", problem)
        if first:
            self.status.failing_since = time.time() if problem else None
            try:
                self._said(problem)
            except ProcGuardError as exc:  # the state accepts no events now; uploads continue
                log.error("log archive: this could not be recorded: %s", exc)

    def step(self) -> bool:
        """Perform the due work. Returns whether more is due. Raises ProcGuardError, OSError."""
        if not self._loaded:
            self.load()
        self._change_index()
        if self._unfinished:
            self._finish_earlier()
        if self._upload is None and self._is_due():
            self._upload = self._prepare()
        if self._upload is not None:
            self.place.put(self._upload.name, self._upload.data)
            self._finish(self._upload.number, len(self._upload.data), self._upload.pieces)
            self._upload = None
        if self._empty_objects:
            self._delete_objects()
        return self._is_due() or self._empty_objects

    def load(self) -> None:
        """Raises ProcGuardError, OSError."""
        if self._index_is_new:
            rebuild.rebuild(self.place, self.index, self._in_thread)
            self._index_is_new, self.was_rebuilt = False, True
        for one in self.index.streams():
            self._covered.setdefault(one.folder, {})[(one.attempt, one.stream)] = one.covered
            self._written_at[(one.folder, one.attempt, one.stream)] = one.at
        if self._covered:
            self.place.expect_objects()
        workers = self._known()
        for folder in self.folders():
            if not folder.endswith(GONE) and folder not in workers:
                self.retire(folder)
        self._loaded = True
        for key, size in self._in_thread(_unarchived, self._directory, list(workers), dict(self._covered)):
            self.note(workers[key[0]], key[1], key[2], size)
        self.on_load()
        self._load_tried.set()

    def _change_index(self) -> None:
        while self._todo:
            self._todo[0]()  # repeated in the next step if it fails
            self._todo.popleft()

    def _is_due(self) -> bool:
        if self.status.waiting_bytes >= OBJECT_BYTES:
            return True
        oldest = next(iter(self._waiting.values()), None)
        return oldest is not None and time.monotonic() - oldest.since >= self._interval_s

    def _prepare(self) -> _Upload | None:
        """Compress waiting bytes, oldest first. Raises OSError."""
        asked, size = [], 0
        for key, waiting in self._waiting.items():
            asked.append((key, waiting.worker_id, self.covered(*key)))
            size += waiting.size
            if size >= OBJECT_BYTES or len(asked) >= MAX_STREAMS:
                break
        keys = {(one[1], one[0][1], one[0][2]): one[0] for one in asked}
        self._meanwhile = _Changes()
        before = {key: self._waiting[key].size for key, _, _ in asked}
        chunks, done = self._in_thread(_collect, self._directory, asked)
        for key in done:
            self._settle(key, before[key])
        for chunk in chunks:
            key = keys[(chunk.worker_id, chunk.attempt, chunk.stream)]
            if key not in done and chunk.data is not None:
                self._settle(key, len(chunk.data), partly=True)
        if not chunks:
            return None
        wall = time.time()
        data, pieces = self._in_thread(objects.build, chunks, self._fleet_id, self._term, wall)
        name = new_name(self._term, wall)
        placed = [(keys[(one.worker_id, one.attempt, one.stream)], one) for one in pieces]
        return _Upload(name, self.index.begin(name, wall), data, placed)

    def _settle(self, key: Key, size: int, partly: bool = False) -> None:
        """Note that `size` waiting bytes are part of an upload."""
        waiting = self._waiting.get(key)
        if waiting is None:
            return
        taken = min(size, waiting.size)
        waiting.size -= taken
        self.status.waiting_bytes -= taken
        if not waiting.size and not partly:
            del self._waiting[key]
        elif not partly:
            waiting.since = time.monotonic()
            self._waiting.move_to_end(key)

    def _finish(self, number: int, size: int, pieces: list[tuple[Key, Piece]]) -> None:
        """Complete an upload: its pieces become readable, and their bytes may be removed from the disk."""
        self._change_index()
        wanted = [
            (key, one)
            for key, one in pieces
            if key[0] not in self._meanwhile.gone
            and key[1] >= self._meanwhile.floors.get(key[0], 0)
            and not common(self.covered(*key), one.start, one.end)
        ]
        covered: dict[Key, list[Range]] = {}
        for key, one in wanted:
            covered[key] = merged([*covered.get(key, self.covered(*key)), (one.start, one.end)])
        self.index.finish(number, size, wanted, covered)
        for key, ranges in covered.items():
            if key[0] in self._meanwhile.gone or key[1] < self._meanwhile.floors.get(key[0], 0):
                self._later(lambda key=key: self.index.drop(key[0], key[1] + 1))  # type: ignore[misc]
                continue
            self._covered.setdefault(key[0], {})[key[1:]] = ranges
        for key, one in wanted:
            self._written_at[key] = one.at
        self._empty_objects = self._empty_objects or not wanted
        self.status.uploaded_at = time.time()
        self.status.uploaded_objects += 1
        self.status.uploaded_bytes += size

    def _finish_earlier(self) -> None:
        """Complete or discard uploads that an earlier run or the previous leader began."""
        left = False
        for number, name, at in self.index.unfinished():
            if self._upload is not None and number == self._upload.number:
                continue  # an upload of this run, which is retried
            try:
                _, pieces, size = rebuild.read_pieces(self.place, name, self._in_thread, whole=True)
            except ObjectMissing:
                if time.time() - at > LATE_UPLOAD_S:
                    self.index.forget([number])
                else:
                    left = True
                continue
            except ObjectDamaged as exc:
                log.error("log archive: %s: an interrupted upload is left where it is: %s", name, exc)
                self.index.forget([number])
                continue
            placed = [((directory_name(one.worker_id), one.attempt, one.stream), one) for one in pieces]
            self._finish(number, size, placed)
        self._unfinished = left

    def _delete_objects(self) -> None:
        found = self.index.without_pieces(DELETED_AT_ONCE)
        for _, name in found:
            self.place.delete(name)
        self.index.forget(number for number, _ in found)
        self._empty_objects = len(found) == DELETED_AT_ONCE

    def close(self) -> None:
        self.index.close()


def _words(exc: Exception) -> str:
    if isinstance(exc, ProcGuardError):
        return exc.message
    return (exc.strerror if isinstance(exc, OSError) else "") or str(exc) or type(exc).__name__


def _unarchived(
    directory: str, folders: Sequence[str], covered: Mapping[str, Mapping[tuple[int, str], list[Range]]]
) -> list[tuple[Key, int]]:
    """Stream -> number of bytes on the disk that are not archived. Runs in a thread."""
    found: list[tuple[Key, int]] = []
    for folder in folders:
        try:
            names = os.listdir(os.path.join(directory, folder))
        except OSError:
            continue
        known = covered.get(folder, {})
        matches = sorted((int(one[1]), one[2]) for one in map(_LOG_NAME.match, names) if one)
        for attempt, stream in matches:
            size = os.path.getsize(os.path.join(directory, folder, f"{attempt}.{stream}.log"))
            left = sum(end - start for start, end in lacking(known.get((attempt, stream), []), 0, size))
            if left:
                found.append(((folder, attempt, stream), left))
    return found


def _collect(directory: str, asked: Sequence[tuple[Key, str, list[Range]]]) -> tuple[list[Chunk], set[Key]]:
    """Collect bytes on the disk that are not archived, up to OBJECT_BYTES in total, and the streams without a
    remainder. Bytes that only the host has are skipped; lost ones are reported. Runs in a thread."""
    chunks: list[Chunk] = []
    done: set[Key] = set()
    room = OBJECT_BYTES
    for key, worker_id, covered in asked:
        base = f"{directory}/{key[0]}/{key[1]}.{key[2]}"
        try:
            with open(base + ".log", "rb", buffering=0) as file, closing(TimesOf(base + ".idx")) as times:
                size = os.fstat(file.fileno()).st_size
                for start, end, lost_at in _parts(base, size, covered):
                    position = start
                    while position < end and room > 0 and len(chunks) < objects.MAX_PIECES:
                        at = times.at(position)
                        if lost_at is not None:
                            chunks.append(Chunk(worker_id, key[1], key[2], position, end - position, lost_at, None))
                            break
                        data = os.pread(file.fileno(), min(objects.PIECE_BYTES, end - position, room), position)
                        if not data:
                            break
                        records = times.packed(position, position + len(data), objects.MAX_TIMES_BYTES)
                        chunks.append(Chunk(worker_id, key[1], key[2], position, len(data), at, data, records))
                        position += len(data)
                        room -= len(data)
        except FileNotFoundError:
            pass  # its worker was removed, or the attempt deleted
        if room <= 0 or len(chunks) >= objects.MAX_PIECES:
            break
        done.add(key)
    return chunks, done


def _parts(base: str, size: int, covered: list[Range]) -> list[tuple[int, int, float | None]]:
    """(start, end, time of the loss) of each part that is not archived, ascending; None: the part is on the disk."""
    has_holes = os.access(base + ".gaps", os.F_OK) or os.access(base + absent.ENDING, os.F_OK)
    gone = [hole for hole in holes(base, size) if hole.start < hole.end] if has_holes else []
    found: list[tuple[int, int, float | None]] = []
    for start, end in lacking(covered, 0, size):
        position = start
        for hole in gone:
            if hole.end <= position or hole.start >= end:
                continue
            if position < hole.start:
                found.append((position, hole.start, None))
            if hole.at is not None:
                found.append((max(position, hole.start), min(hole.end, end), hole.at))
            position = min(hole.end, end)
        if position < end:
            found.append((position, end, None))
    return found
