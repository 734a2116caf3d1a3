"""LogStore: the workers' log bytes on the manager's disk. The length of a file is what has been acknowledged.

Bytes are permanently identified by (worker, attempt, stream, offset): duplicates are skipped, missing bytes are
requested again, and lost bytes become a hole of the same length with a marker. One writer (the event loop); disk
flushes run in a worker thread. Reading is in stored.py. Knows nothing of HTTP or workers' states.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import gevent.lock
import gevent.threadpool

from procguard.agent_api.interface import LogGap
from procguard.portal.logs import absent, disk, retention
from procguard.portal.logs.disk import DiskThreads, sync_files
from procguard.portal.logs.index import LogIndex, runs_of
from procguard.portal.logs.stored import StoredLogs
from remote_agent.logs import retention as log_disk
from remote_agent.protocol.messages import directory_name
from remote_agent.system import paths

MAX_GAPS_BYTES = 4 * 1024 * 1024  # limit of a stream's list of gaps: some 100,000
CHECKS = 16  # checks of the disk while one limit's worth of bytes is written
WRITE_HERE_BYTES = 64 * 1024  # smaller writes are made on the event loop, because a thread would take longer
MAX_FLOORS = 50_000  # workers

AppendHook = Callable[[str, int, str, int, bytes, float], None]  # worker, attempt, stream, offset, data, at


class LogStore(StoredLogs):
    def __init__(
        self,
        directory: str,
        keep_attempts: int = 50,
        sync: Callable[[Iterable[str]], None] = sync_files,
        in_thread: Callable[..., Any] | None = None,
        keep_per_worker: int = 2**60,
        keep_in_all: int = 2**60,
    ) -> None:
        """`in_thread(function, *arguments)` runs it in a thread that may wait for the disk. `keep_per_worker`,
        `keep_in_all`: limits in bytes on the disk, beyond which the oldest output is deleted."""
        super().__init__(directory)
        self._keep_attempts = keep_attempts
        self._keep_per_worker = keep_per_worker
        self._keep_in_all = keep_in_all
        self._since_check: Counter[str] = Counter()  # bytes written by each worker since its disk usage was checked
        self._full: set[str] = set()
        self._floors: dict[str, int] = {}  # folder -> the content of its file `floor`
        self._all_since_check = 2**60  # True at the start, because the existing logs are not known yet
        self._sync_files = sync
        self._in_thread = in_thread or DiskThreads()
        # stream -> its lock, and the number of callers that hold it or wait
        self._writing: dict[str, tuple[gevent.lock.BoundedSemaphore, int]] = {}
        self._hooks: list[AppendHook] = []
        self._index = LogIndex()
        os.makedirs(self._directory, mode=0o700, exist_ok=True)
        self.hosts_hold: Callable[[], bool] = lambda: False  # whether hosts may have bytes that are missing here
        # (worker, attempt, stream, max bytes): fetches bytes that only hosts have before they are read (fetch.py)
        self.fetch: Callable[..., None] = lambda *_, **__: None
        # The same for archived parts before a search; returns the number of bytes that are still missing (fetch.py)
        self.fetch_for_search: Callable[..., int] = lambda *_, **__: 0
        self.bytes_stored = 0  # counted in this run, for /metrics
        self.bytes_lost = 0
        self.bytes_dropped = 0  # for keep_per_worker and keep_in_all

    def on_append(self, hook: AppendHook) -> None:
        """`hook` is called for each run of new bytes, in the order of the file, before they are acknowledged."""
        self._hooks.append(hook)

    # ---------------------------------------------------------------------------------------------- writing

    def append(
        self,
        worker_id: str,
        attempt: int,
        stream: str,
        offset: int,
        data: bytes,
        at: float,
        gap: bool = False,
        times: Sequence[tuple[int, float]] = (),
    ) -> int:
        """Store bytes that begin at `offset`; returns the stored length, durable.

        The first byte was written at `at`; `times`: (index in `data`, wall time) from which another time applies.
        `gap`: the bytes between the stored length and `offset` are lost. Raises LogGap if bytes before `offset` are
        missing, OSError if the disk refuses.
        """
        base = self._base(worker_id, attempt, stream)
        self._await_ready()
        if attempt < self._floor(worker_id):
            return offset + len(data)  # this attempt's logs were deleted long ago; the sender need not keep them
        if worker_id in self._full:
            self._keep_one_bounded(worker_id, at)
        with self._exclusive(base):
            changed = [base + ".log"]
            if self._prepare(base):
                changed.append(os.path.dirname(base))
            stored = os.path.getsize(base + ".log")
            if offset > stored:
                if gap:
                    self._write_gap(base, stored, offset, at)
                    changed.append(base + ".gaps")
                    self._took(worker_id, attempt, stream, 0)
                elif self.hosts_hold():
                    self._leave_to_host(base, stored, offset, at)
                else:
                    raise LogGap(stored, offset)
                stored = offset
            skipped = min(stored - offset, len(data))
            if skipped and self.hosts_hold():
                self._fill(base, stored, offset, data[:skipped])
            if skipped < len(data):
                runs = self._index.write(base + ".idx", stored, runs_of(offset, skipped, at, times))
                fresh = memoryview(data)[skipped:]
                written = 0
                try:
                    if len(fresh) <= WRITE_HERE_BYTES:
                        written = disk.append_all(base + ".log", fresh)
                    else:
                        written = self._in_thread(disk.append_all, base + ".log", fresh)
                finally:
                    if written < len(fresh):
                        self._index.doubt(base + ".idx")
                self._notify_followers(worker_id, attempt, stream, fresh[:written], runs)
                self.bytes_stored += written
                stored += written
                self._took(worker_id, attempt, stream, written)
            self._in_thread(self._sync_files, changed)
        if len(changed) > 1:
            self._drop_old_attempts(worker_id)
        self._keep_bounds(worker_id, len(data), at)
        return stored

    def length(self, worker_id: str, attempt: int, stream: str) -> int:
        """The number of stored bytes of one stream; they are durable on return."""
        path = self._base(worker_id, attempt, stream) + ".log"
        if not os.path.exists(path):
            return 0
        self._in_thread(self._sync_files, [path])
        return os.path.getsize(path)

    # ------------------------------------------------------------------------------- bytes that only the host has

    def announce(self, worker_id: str, attempt: int, stream: str, size: int, at: float) -> None:
        """Record that the host has `size` bytes of this stream that a manager has acknowledged; those missing here are
        marked as absent. Raises OSError."""
        base = self._base(worker_id, attempt, stream)
        if attempt < self._floor(worker_id) or size <= 0:
            return
        with self._exclusive(base):
            self._prepare(base)
            stored = os.path.getsize(base + ".log")
            if size > stored:
                self._leave_to_host(base, stored, size, at)

    def fill(self, worker_id: str, attempt: int, stream: str, offset: int, data: bytes) -> None:
        """Store absent bytes. Bytes that are already here are unchanged. Raises OSError."""
        base = self._base(worker_id, attempt, stream)
        with self._exclusive(base):
            self._fill(base, self._size(base), offset, data)
        self._took(worker_id, attempt, stream, len(data))
        self._keep_bounds(worker_id, len(data), time.time())

    def lose(self, worker_id: str, attempt: int, stream: str, start: int, end: int, at: float) -> None:
        """Record that the host no longer has these bytes either. Raises OSError."""
        base = self._base(worker_id, attempt, stream)
        with self._exclusive(base):
            size = self._size(base)
            for part in absent.within(absent.read(base, size), start, end):
                for one, other in self._nowhere_else(base, *part):
                    self._note_gap(base, one, other, at)
                    self.bytes_lost += other - one
                    absent.remove(base, size, one, other)

    def absent(
        self, worker_id: str, attempt: int | None = None, stream: str | None = None
    ) -> list[tuple[int, str, int, int]]:
        """(attempt, stream, start, end) of the ranges that only the host has, newest first."""
        found = []
        for number, name in reversed(self._streams(worker_id)):
            if attempt in (None, number) and stream in (None, name):
                base = self._base(worker_id, number, name)
                found += [(number, name, *one) for one in reversed(absent.read(base, self._size(base)))]
        return found

    def kept(self, worker_id: str, attempt: int, stream: str, stored: int) -> int:
        """The offset, at most `stored`, below which this manager has every byte."""
        ranges = absent.read(self._base(worker_id, attempt, stream), stored) if self.hosts_hold() else []
        return ranges[0][0] if ranges else stored

    # ------------------------------------------------------------------- for a store that has an archive (spool.py)

    def _await_ready(self) -> None:
        """Hook: raises OSError while the offsets at which logs continue are not known yet."""

    def _took(self, worker_id: str, attempt: int, stream: str, size: int) -> None:
        """Hook: `size` more bytes of this stream were written to the disk."""

    def _nowhere_else(self, base: str, start: int, end: int) -> list[tuple[int, int]]:
        """The parts of [start, end) that the archive does not have."""
        return [(start, end)]

    def _set_floor(self, folder: str, floor: int) -> None:
        """Record that attempts below `floor` may be deleted."""
        self._floors.pop(os.path.basename(folder), None)
        paths.write_atomic(os.path.join(folder, "floor"), f"{floor}\n".encode())

    def _forget_head(self, base: str, end: int, at: float) -> None:
        disk.append_all(base + ".gaps", f"0 {end} {at:.3f}\n".encode())
        absent.remove(base, self._size(base), 0, end)

    def _leave_to_host(self, base: str, start: int, end: int, at: float) -> None:
        absent.add(base, start, end)
        os.truncate(base + ".log", end)
        self._index.write(base + ".idx", start, [(start, at)])

    def _fill(self, base: str, size: int, offset: int, data: bytes) -> None:
        ranges = absent.within(absent.read(base, size), offset, offset + len(data))
        for start, end in ranges:
            self._in_thread(disk.write_at, base + ".log", start, data[start - offset : end - offset])
            self.bytes_stored += end - start
        if ranges:
            absent.remove(base, size, offset, offset + len(data))

    # ------------------------------------------------------------------------------------------- the disk's bounds

    def _keep_bounds(self, worker_id: str, written: int, at: float) -> None:
        """Check the disk once a sixteenth of a worker's limit, or of the total limit, was written."""
        self._since_check[worker_id] += written
        self._all_since_check += written
        if self._since_check[worker_id] * CHECKS >= self._keep_per_worker:
            del self._since_check[worker_id]
            self._keep_one_bounded(worker_id, at)
        if self._all_since_check * CHECKS >= self._keep_in_all:
            self._all_since_check = 0
            self._keep_all_bounded(at)

    def _keep_one_bounded(self, worker_id: str, at: float) -> None:
        folder = self._worker_directory(worker_id)
        # set until it has succeeded: no more bytes are accepted for a worker whose logs cannot be trimmed
        self._full.add(worker_id)
        self._cut(folder, self._in_thread(retention.measure_one, folder), self._keep_per_worker, at)
        self._full.discard(worker_id)

    def _keep_all_bounded(self, at: float) -> None:
        keep = retention.bound_of_disk(self._directory, self._keep_in_all)
        found = self._in_thread(retention.measure, self._directory)
        held = {name: retention.total(streams) for name, streams in found.items()}
        for name in [name for name in held if name.endswith(retention.GONE)]:
            if sum(held.values()) > keep:
                self.bytes_dropped += held.pop(name)
                self._in_thread(shutil.rmtree, os.path.join(self._directory, name), True)
        share = retention.share(held, keep)
        for name in held if share is not None else ():
            self._cut(os.path.join(self._directory, name), found[name], share or 0, at)

    def _cut(self, folder: str, streams: list[retention.Held], keep: int, at: float) -> None:
        """Delete the given parts of a worker's logs. Raises OSError if the file system cannot free parts of a file; the
        sender then keeps its bytes."""
        cut = retention.decide(streams, keep)
        if cut is None:
            return
        if cut.floor:
            self._drop_below(folder, cut.floor, streams)
        for one in streams:
            if one.attempt >= cut.floor and (one.attempt, one.stream) in cut.heads:
                base = os.path.join(folder, f"{one.attempt}.{one.stream}")
                self._drop_head(base, cut.heads[(one.attempt, one.stream)], at)

    def measured(self) -> dict[str, list[retention.Held]]:
        """{a worker's folder: its streams}; folders of removed workers end with `retention.GONE`."""
        found: dict[str, list[retention.Held]] = self._in_thread(retention.measure, self._directory)
        return found

    def drop_below(self, folder: str, floor: int, streams: list[retention.Held]) -> int:
        """Delete the attempts of a measured folder below `floor`; returns the bytes. Raises OSError."""
        return self._drop_below(os.path.join(self._directory, folder), floor, streams)

    def _drop_below(self, folder: str, floor: int, streams: list[retention.Held]) -> int:
        self._set_floor(folder, floor)
        going = [one for one in streams if one.attempt < floor]
        for one in going:
            base = os.path.join(folder, f"{one.attempt}.{one.stream}")
            with self._exclusive(base):
                self._in_thread(self._remove_stream, base)
        dropped = sum(one.held for one in going)
        self.bytes_dropped += dropped
        return dropped

    def _drop_head(self, base: str, end: int, at: float) -> None:
        with self._exclusive(base):
            self._forget_head(base, end, at)
            before = os.stat(base + ".log").st_blocks
            problem = self._in_thread(log_disk.punch_hole, base + ".log", 0, end)
            self.bytes_dropped += max(0, before - os.stat(base + ".log").st_blocks) * 512
        if problem:
            raise OSError(
                errno.ENOSPC,
                f"logs.keep_per_worker or logs.keep_in_all is used up, and no part can be deleted: {problem}",
            )

    @contextlib.contextmanager
    def _exclusive(self, base: str) -> Iterator[None]:
        """A context for the only writer of a stream, because the same bytes may arrive twice at the same time."""
        lock, wanted = self._writing.get(base) or (gevent.lock.BoundedSemaphore(), 0)
        self._writing[base] = (lock, wanted + 1)
        try:
            with lock:
                yield
        finally:
            lock, wanted = self._writing[base]
            self._writing[base] = (lock, wanted - 1)
            if wanted == 1:
                del self._writing[base]

    def _prepare(self, base: str) -> bool:
        """Prepare the stream's file for writing. True if it was created."""
        if os.path.exists(base + ".log"):
            return False
        directory = os.path.dirname(base)
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.close(os.open(base + ".log", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        return True

    def _write_gap(self, base: str, start: int, end: int, at: float) -> None:
        self._note_gap(base, start, end, at)
        os.truncate(base + ".log", end)
        self.bytes_lost += end - start

    @staticmethod
    def _note_gap(base: str, start: int, end: int, at: float) -> None:
        with contextlib.suppress(FileNotFoundError):
            if os.path.getsize(base + ".gaps") >= MAX_GAPS_BYTES:
                raise OSError(errno.EFBIG, "too many parts of this log are missing")
        disk.append_all(base + ".gaps", f"{start} {end} {at:.3f}\n".encode())

    def _notify_followers(
        self, worker_id: str, attempt: int, stream: str, data: memoryview, runs: list[tuple[int, float]]
    ) -> None:
        """`data` begins at the first run's offset."""
        if not self._hooks:
            return
        begin = runs[0][0]
        ends = [offset - begin for offset, _ in runs[1:]] + [len(data)]
        for (offset, at), end in zip(runs, ends, strict=True):
            piece = bytes(data[offset - begin : end])
            for hook in list(self._hooks) if piece else ():
                hook(worker_id, attempt, stream, offset, piece, at)

    def _drop_old_attempts(self, worker_id: str) -> None:
        numbers = sorted({attempt for attempt, _ in self._streams(worker_id)})
        if len(numbers) <= self._keep_attempts:
            return
        floor = numbers[-self._keep_attempts]
        directory = self._worker_directory(worker_id)
        self._set_floor(directory, floor)
        for attempt, stream in self._streams(worker_id):
            if attempt < floor:
                self._remove_stream(os.path.join(directory, f"{attempt}.{stream}"))

    def _remove_stream(self, base: str) -> None:
        self._index.doubt(base + ".idx")
        for ending in (".log", ".idx", ".gaps", absent.ENDING):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(base + ending)

    def retire(self, worker_id: str) -> None:
        """Retire the logs of a removed worker: a later worker of its name begins with empty logs. The files are kept as
        `….gone` until the next worker of that name is removed."""
        directory = self._worker_directory(worker_id)
        self._floors.pop(os.path.basename(directory), None)
        for attempt, stream in self._streams(worker_id):
            self._index.doubt(self._base(worker_id, attempt, stream) + ".idx")
        if os.path.isdir(directory):
            shutil.rmtree(directory + ".gone", ignore_errors=True)
            os.rename(directory, directory + ".gone")

    def _floor(self, worker_id: str) -> int:
        """The attempt below which all were deleted by `keep_attempts`."""
        name = directory_name(worker_id)
        floor = self._floors.get(name)
        if floor is None:
            try:
                with open(f"{self._directory}/{name}/floor", encoding="ascii") as file:
                    floor = max((int(line) for line in file if line.strip().isdigit()), default=0)
            except FileNotFoundError:
                floor = 0
            if len(self._floors) >= MAX_FLOORS:
                self._floors.clear()
            self._floors[name] = floor
        return floor
