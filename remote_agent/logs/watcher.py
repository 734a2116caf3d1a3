"""Watches the log files of this host's workers: their length, the times of their bytes, and what must be deleted.

Owns the table of log files, their time indexes and the limits on disk (`logs.keep_local`, `logs.keep_attempts`), which
apply with or without a manager, and the space reserved in the logs of running workers: a child writes directly to the
file, and on a full disk its writes would fail. Only stats files and allocates or frees blocks, so that it can never
block a child. Knows no HTTP. Runs in its own thread, so that a hanging manager does not stop it.
"""

from __future__ import annotations

import errno
import os
import threading
import time

from remote_agent.logs import retention
from remote_agent.logs.retention import FileState
from remote_agent.logs.time_index import TimeIndex
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.records import field, record
from remote_agent.system import disk_space, paths

KEEP_LOCAL_BYTES = 256 * 1024 * 1024
KEEP_ATTEMPTS = 10
MIN_KEEP_BYTES = 1024 * 1024
POLL_INTERVAL_S = 0.1
QUIET_S = 2.0  # a finished attempt's file unchanged for this long is complete
# without an acknowledgement for this time the manager counts as unreachable, and waiting bytes may be dropped
AWAY_S = 3.0
AGAIN_S = 5.0  # after a disk refused something
QUIET_POLL_INTERVAL_S = 0.2  # poll interval of silent logs: new output is seen within 0.3 s; settled workers: 1 s
BOUNDS_EVERY_S = 2.0
# A crash loop of weeks leaves thousands of files; the sender waits for the lock that each check holds.
ENDED_POLL_INTERVAL_S = 5.0
FILES_A_SECOND = 2000  # lets the limits of a printing worker be checked more often the fewer files it has
MAX_REMOVED = 200  # attempts removed per scan
ROOM_POLL_INTERVAL_S = 1.0
# Space reserved in the log of a running worker: its output of AHEAD_S, within these limits.
AHEAD_S = 2.0
MIN_AHEAD_BYTES = 1024 * 1024
MAX_AHEAD_BYTES = 32 * 1024 * 1024
LEAST_AHEAD_BYTES = 64 * 1024
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
BLOCK_BYTES = 4096
KEEP_TAIL_BYTES = 256 * 1024  # always kept of a running log, even if the disk is full


@record(frozen=True)
class ShippedWorker:
    """The main loop's information about a worker. `newest`: the highest attempt; `settled`: no process of it is
    running; `report_drained`: send a message once all its bytes are acknowledged."""

    worker_id: str
    directory: str
    newest: int = 0
    report_drained: bool = False
    settled: bool = False


@record
class LogFile:
    """One log file. `acked` None: the manager has not been queried yet. Bytes below `gone` have been deleted."""

    attempt: int
    stream: str
    path: str
    index: TimeIndex
    acked: Optional[int] = None
    kept: int = 0  # offset up to which the manager has all bytes; a new leader has only those since its takeover
    size: int = 0
    gone: int = 0
    changed_at: float = -1.0  # monotonic time of the last change of size or acknowledgement
    complete: bool = False  # no more bytes come, and the manager has them all
    reserved: int = 0  # up to this offset the file's blocks are its own, also beyond its end
    grew_bytes_per_s: float = 0.0
    next_check_at: float = 0.0  # monotonic time of the next check of an ended attempt with unacknowledged bytes

    @property
    def key(self) -> str:
        return f"{self.attempt}.{self.stream}"

    @property
    def waiting(self) -> bool:
        return not self.complete and (self.acked is None or self.acked < self.size)


@record
class WorkerLogs:
    """One worker's files. `lock` protects changes, and reads of bytes that could be punched out."""

    shipped: ShippedWorker
    lock: threading.Lock = field(default_factory=threading.Lock)
    files: dict[str, LogFile] = field(default_factory=dict)
    listed: bool = False
    listed_mtime_ns: int = -1
    next_check_at: float = 0.0  # monotonic
    bounds_at: float = 0.0  # monotonic
    taken_at: float = -1.0  # monotonic: when the manager last took bytes
    blocked_until: float = 0.0  # monotonic: the manager refused this worker's bytes
    marks_changed: bool = False
    drained_sent: bool = False
    trouble: str = ""  # the last reported problem
    quiet: bool = False  # no output for QUIET_S and nothing unacknowledged

    def in_order(self) -> list[LogFile]:
        return sorted(self.files.values(), key=lambda one: (one.attempt, one.stream))


class LogFiles:
    """`update` with the table of workers whenever it changes, `scan` every `pause_s`. `say(kind, text)` gets
    ("log_trouble", …) and ("log_note", …)."""

    def __init__(
        self,
        say: Callable[[str, Any], None],
        *,
        keep_local_bytes: int = KEEP_LOCAL_BYTES,
        keep_attempts: int = KEEP_ATTEMPTS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._say = say
        self._wall = wall
        self._keep_bytes = keep_local_bytes
        self._keep_attempts = keep_attempts
        self._shipped: tuple[ShippedWorker, ...] = ()
        self._workers: dict[str, WorkerLogs] = {}
        self._can_punch = True
        self._can_reserve = True
        self._low = False  # the disk is nearly full
        self._room_at = 0.0  # monotonic time of the next check of the disk
        self.pause_s = POLL_INTERVAL_S  # interval until the next `scan`; longer while all logs are silent

    # ------------------------------------------------------------------------------- called by the main loop

    def update(self, workers: list[ShippedWorker]) -> bool:
        """True if the table changed."""
        shipped = tuple(workers)
        changed = shipped != self._shipped
        self._shipped = shipped
        return changed

    def keep(self, keep_bytes: Optional[int], keep_attempts: Optional[int]) -> None:
        """Set logs.keep_local and logs.keep_attempts as configured by the manager; None: unchanged."""
        if keep_bytes is not None:
            self._keep_bytes = max(MIN_KEEP_BYTES, keep_bytes)
        if keep_attempts is not None:
            self._keep_attempts = max(1, keep_attempts)

    # ------------------------------------------------------------------------------------------- watching

    def workers(self) -> list[WorkerLogs]:
        return list(self._workers.values())

    def worker(self, worker_id: str) -> Optional[WorkerLogs]:
        return self._workers.get(worker_id)

    def much_waits(self, much_bytes: int) -> bool:
        """Whether a file has at least this many bytes that wait for the manager."""
        for worker in self.workers():
            with worker.lock:
                if any(one.waiting and one.size - (one.acked or 0) >= much_bytes for one in worker.files.values()):
                    return True
        return False

    def scan(self, now: float) -> bool:
        """Check every file that may have changed. Returns whether bytes wait for the manager."""
        shipped = {one.worker_id: one for one in self._shipped}
        for worker_id in [one for one in self._workers if one not in shipped]:
            del self._workers[worker_id]
        waiting = False
        if now >= self._room_at:
            self._room_at = now + ROOM_POLL_INTERVAL_S
            self._low = _is_low(self._shipped)
        for worker_id, one in shipped.items():
            worker = self._workers.setdefault(worker_id, WorkerLogs(one))
            try:
                with worker.lock:
                    if worker.shipped is not one:
                        worker.shipped, worker.next_check_at, worker.drained_sent = one, 0.0, False
                    if now >= worker.next_check_at and not self._as_before(worker, now):
                        self._scan_worker(worker, now)
                    waiting = waiting or any(file.waiting for file in worker.files.values())
            except OSError as exc:
                worker.next_check_at = now + AGAIN_S
                trouble = f"{worker_id}: its log files: {exc.strerror or exc}"
                if trouble != worker.trouble:
                    worker.trouble = trouble
                    self._say("log_trouble", trouble)
        lively = any(not one.quiet for one in self._workers.values())
        self.pause_s = POLL_INTERVAL_S if lively else QUIET_POLL_INTERVAL_S
        return waiting

    @staticmethod
    def _as_before(worker: WorkerLogs, now: float) -> bool:
        """The cheap check of a silent worker, which is the usual case: only sizes and the directory's mtime."""
        if not worker.quiet or now >= worker.bounds_at:
            return False
        try:
            if os.stat(paths.attempts_dir(worker.shipped.directory)).st_mtime_ns != worker.listed_mtime_ns:
                return False
            for file in worker.files.values():
                if not file.complete and os.stat(file.path).st_size != file.size:
                    return False
        except FileNotFoundError:
            return False
        worker.next_check_at = now + QUIET_POLL_INTERVAL_S - 0.01
        return True

    def _scan_worker(self, worker: WorkerLogs, now: float) -> None:
        self._list(worker)
        if worker.taken_at < 0:
            worker.taken_at = now  # a new agent: give the manager time to answer
        grown = False
        for file in list(worker.files.values()):
            if file.complete:
                continue
            if now < file.next_check_at:
                self._finish(worker, file, now)
            else:
                grown = self._measure(worker, file, now) or grown
                self._keep_room(worker, file, now)
                self._finish(worker, file, now)
                if self._ended(worker, file, now):
                    file.next_check_at = now + ENDED_POLL_INTERVAL_S
        many_s = min(BOUNDS_EVERY_S, len(worker.files) / FILES_A_SECOND)
        if now >= worker.bounds_at or (grown and now >= worker.bounds_at - BOUNDS_EVERY_S + many_s):
            worker.bounds_at = now + BOUNDS_EVERY_S
            self._keep_bounds(worker, now)
        if worker.marks_changed:
            self._write_marks(worker)
        open_files = [one for one in worker.files.values() if not one.complete]
        worker.quiet = not grown and all(now - one.changed_at > QUIET_S and not one.waiting for one in open_files)
        if not grown and all(now - one.changed_at > QUIET_S for one in open_files):
            worker.next_check_at = now + (1.0 if worker.shipped.settled else QUIET_POLL_INTERVAL_S - 0.01)

    def _list(self, worker: WorkerLogs) -> None:
        """List new files, only if the directory has changed."""
        directory = paths.attempts_dir(worker.shipped.directory)
        worker.listed = True
        try:
            mtime_ns = os.stat(directory).st_mtime_ns
        except FileNotFoundError:
            return
        if mtime_ns == worker.listed_mtime_ns:
            return
        first = worker.listed_mtime_ns == -1
        marks = retention.read_marks(worker.shipped.directory) if first else retention.Marks()
        for name in os.listdir(directory):
            stem, _, suffix = name.partition(".")
            if not stem.isdigit() or suffix not in ("log", "err"):
                continue
            stream, path = "out" if suffix == "log" else "err", os.path.join(directory, name)
            if f"{int(stem)}.{stream}" not in worker.files:
                self._found(worker, LogFile(int(stem), stream, path, TimeIndex(path)), marks)
        # A file created within the same clock tick after this listing does not change the mtime, which is trusted only
        # once it is older.
        if time.time_ns() - mtime_ns > 50_000_000:
            worker.listed_mtime_ns = mtime_ns
        elif first:
            worker.listed_mtime_ns = -2

    def _found(self, worker: WorkerLogs, file: LogFile, marks: retention.Marks) -> None:
        found = os.stat(file.path)
        file.size = found.st_size
        file.gone = marks.gone.get(file.key, 0)
        file.complete = marks.complete.get(file.key) == file.size
        file.reserved = file.size + _set_aside(file.path, found)  # reserved by a previous agent
        if not file.complete:
            file.index.saw_first(file.size, min(found.st_mtime, self._wall()))
        elif file.reserved > file.size:
            self._give_room_back(file)
        worker.files[file.key] = file

    def _measure(self, worker: WorkerLogs, file: LogFile, now: float) -> bool:
        """True if it has grown."""
        try:
            size = os.stat(file.path).st_size
        except FileNotFoundError:  # the file was deleted by a user
            file.complete = True
            return False
        grown = size != file.size
        if grown:
            if not file.waiting:
                worker.taken_at = now  # the waiting time begins now
            if file.changed_at >= 0:
                file.grew_bytes_per_s = (size - file.size) / max(now - file.changed_at, POLL_INTERVAL_S / 2)
            file.size = size
            file.changed_at = now
            file.index.saw(size, self._wall())
        if file.acked is not None:
            file.index.forget_before(file.acked)
        if file.waiting or not worker.shipped.report_drained:  # otherwise its directory may be being removed
            try:
                file.index.write(self._wall(), waiting=file.waiting)
            except OSError:
                pass  # a full disk: the times stay in memory, and the bounds below give room
        return grown

    @staticmethod
    def _ended(worker: WorkerLogs, file: LogFile, now: float) -> bool:
        """Whether this attempt gets no more bytes."""
        over = file.attempt < worker.shipped.newest or worker.shipped.settled
        return over and (file.complete or (0 <= file.changed_at <= now - QUIET_S))

    def _finish(self, worker: WorkerLogs, file: LogFile, now: float) -> None:
        """Finish files of older attempts, which get no more bytes: once the manager has them, they are no longer
        checked."""
        if file.changed_at < 0:
            file.changed_at = now
        if file.waiting or file.complete or file.attempt >= worker.shipped.newest:
            return
        if self._ended(worker, file, now):
            file.complete = True
            file.index.remove()
            worker.marks_changed = True

    @staticmethod
    def _write_marks(worker: WorkerLogs) -> None:
        """Write the marks of all files, once per scan."""
        worker.marks_changed = False
        files = worker.files.values()
        retention.write_marks(
            worker.shipped.directory,
            retention.Marks(
                {one.key: one.size for one in files if one.complete}, {one.key: one.gone for one in files if one.gone}
            ),
        )

    # -------------------------------------------------------------------------------------- the disk's bounds

    def _keep_bounds(self, worker: WorkerLogs, now: float) -> None:
        newest, away = worker.shipped.newest, now - worker.taken_at > AWAY_S
        keep_bytes, keep_attempts = self._keep_bytes, self._keep_attempts
        if self._low:  # on a nearly full disk, drop bytes that the manager has and keep those that it lacks
            keep_bytes, keep_attempts, away = 0, 1, False
        states = [
            FileState(
                one.attempt,
                one.stream,
                one.size,
                one.complete,
                one.attempt >= newest,
                one.size if away else min(one.acked or 0, one.kept) if self._low else (one.acked or 0),
            )
            for one in worker.files.values()
        ]
        cuts, removed = retention.decide(states, keep_bytes, keep_attempts)
        self._remove(worker, set(removed[:MAX_REMOVED]))
        if len(removed) > MAX_REMOVED:
            worker.bounds_at = now
        for key, end in cuts.items():
            file = worker.files[key]
            if end > file.gone:
                self._cut(worker, file, end, now)

    @staticmethod
    def _remove(worker: WorkerLogs, attempts: set[int]) -> None:
        if not attempts:
            return
        for file in [one for one in worker.files.values() if one.attempt in attempts]:
            retention.unlink(file.path)
            file.index.remove()
            del worker.files[file.key]
        for attempt in attempts:
            retention.unlink(paths.exit_file(worker.shipped.directory, attempt))
        worker.marks_changed = True

    def _cut(self, worker: WorkerLogs, file: LogFile, end: int, now: float) -> None:
        """Free the bytes before `end`, shipped or not."""
        if self._can_punch:
            problem, file.gone = retention.punch_some(file.path, file.gone, end)  # the rest at the next scan
            if not problem:
                return
            self._can_punch = False
            self._say(
                "log_note",
                f"logs.keep_local holds only once an attempt has ended: the file system of {file.path} cannot give "
                f"back parts of a file ({problem}); procguard_home may lie on ext4, xfs, btrfs or tmpfs instead",
            )
        if self._ended(worker, file, now):
            retention.trim(file.path, end)
            file.gone = end
            worker.marks_changed = True  # the file system may not report holes

    # ---------------------------------------------------------------------------------------------- reserved space

    def _keep_room(self, worker: WorkerLogs, file: LogFile, now: float) -> None:
        """Reserve space in the log of a running attempt ahead of its output; release it in an ended one."""
        if file.complete:
            return  # the file was deleted by a user
        if self._ended(worker, file, now):
            if file.reserved > file.size:
                self._give_room_back(file)
            return
        if not self._can_reserve or worker.shipped.settled or file.attempt < worker.shipped.newest:
            return
        most = min(MAX_AHEAD_BYTES, self._keep_bytes // 8)
        ahead = int(max(MIN_AHEAD_BYTES, min(most, file.grew_bytes_per_s * AHEAD_S)))
        if file.reserved - file.size > ahead // 2:
            return
        descriptor = os.open(file.path, os.O_WRONLY | os.O_CLOEXEC)
        try:
            problem = _reserve(descriptor, file, file.size + ahead)
            if problem in NO_SPACE and self._can_punch:
                self._make_room(worker, file, descriptor, file.size + ahead)
        finally:
            os.close(descriptor)
        if problem and problem not in NO_SPACE:
            self._can_reserve = False
            self._say(
                "log_note",
                f"on a full disk a job that prints will fail: the file system of {file.path} cannot set room aside "
                f"({os.strerror(problem)}); procguard_home may lie on ext4, xfs, btrfs or tmpfs instead",
            )

    def _make_room(self, worker: WorkerLogs, file: LogFile, descriptor: int, upto: int) -> None:
        """Free older bytes of this worker, because the disk is full and its running log needs blocks: first those that
        the manager has and, if the reserve is nearly used up, also those that it lacks. The job has priority; lost
        bytes are marked."""
        files, needed = worker.in_order(), upto - max(file.size, file.reserved)
        giving = [(min(one.acked or 0, one.kept, one.size), one) for one in files]
        giving += [(min(one.acked or 0, one.size), one) for one in files if one.kept < (one.acked or 0)]
        if file.reserved - file.size < max(MIN_AHEAD_BYTES // 4, file.grew_bytes_per_s * AHEAD_S / 4):
            giving += [(min(one.size, max(one.gone, one.acked or 0) + needed), one) for one in files if one is not file]
            most = file.size - KEEP_TAIL_BYTES
            giving.append((min(most, max(file.gone, file.acked or 0) + needed), file))
            giving.append((most, file))
        for offset, one in giving:
            end = offset // BLOCK_BYTES * BLOCK_BYTES
            if end <= one.gone:
                continue
            if retention.punch_hole(one.path, one.gone, end - one.gone):
                return
            one.gone = end
            if _reserve(descriptor, file, upto) == 0:
                return
        while upto - file.reserved > LEAST_AHEAD_BYTES:  # as much as the disk has
            upto = file.reserved + (upto - file.reserved) // 2
            if _reserve(descriptor, file, upto) == 0:
                return

    @staticmethod
    def _give_room_back(file: LogFile) -> None:
        file.reserved = file.size
        try:
            disk_space.give_back_beyond_end(file.path)
        except OSError:
            pass  # read-only, or removed


def _set_aside(path: str, found: os.stat_result) -> int:
    """The allocated bytes beyond the end of the file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            begin = retention.next_data(descriptor, 0, found.st_size)
        finally:
            os.close(descriptor)
    except OSError:
        return 0
    data = -(-found.st_size // BLOCK_BYTES) * BLOCK_BYTES - begin
    return max(0, found.st_blocks * 512 - max(data, 0) - BLOCK_BYTES)


def _reserve(descriptor: int, file: LogFile, upto: int) -> int:
    """Returns 0, or the error's number."""
    begin = max(file.size, file.reserved)
    problem = disk_space.allocate(descriptor, begin, upto - begin) if upto > begin else 0
    if not problem:
        file.reserved = max(upto, begin)
    return problem


def _is_low(workers: tuple[ShippedWorker, ...]) -> bool:
    try:
        return bool(workers) and disk_space.is_low(os.path.dirname(workers[0].directory))
    except OSError:
        return False
