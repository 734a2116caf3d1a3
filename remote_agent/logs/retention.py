"""Decides which parts of a worker's logs stay on the host's disk (pure), and performs the file operations.

Space is freed by punching holes: the file keeps its size, so that an offset always refers to the same byte. On file
systems without holes, a finished log is replaced by a sparse copy of its end. Knows neither threads nor the manager.
"""

from __future__ import annotations

import errno
import os

from remote_agent.protocol.hints import Any
from remote_agent.protocol.records import field, record
from remote_agent.system import paths

BURST_BYTES = 64 * 1024 * 1024  # allowed beyond keep_local while the manager is receiving it
STEP_BYTES = 1024 * 1024  # holes end at multiples of this, so that there are few, each of whole blocks
_FALLOC_PUNCH = 0x03  # FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
_SYNC_RANGE = 0x07  # SYNC_FILE_RANGE_WAIT_BEFORE | WRITE | WAIT_AFTER
SEEK_DATA = getattr(os, "SEEK_DATA", 3)  # the kernel's number; PyPy has no name for it
_PUNCH_BYTES = 4 * STEP_BYTES  # per call, because a writer waits for each to end
PIECES = 1024  # number of pieces with data per call


@record(frozen=True)
class FileState:
    """`complete`: final, and the manager has all of it. `current`: of the current or last attempt. `wanted_from`: the
    offset from which the manager is receiving bytes; `size` if it is unreachable or has them."""

    attempt: int
    stream: str
    size: int
    complete: bool
    current: bool
    wanted_from: int

    @property
    def key(self) -> str:
        return f"{self.attempt}.{self.stream}"


def decide(files: list[FileState], keep_bytes: int, keep_attempts: int) -> tuple[dict[str, int], list[int]]:
    """Returns ({file: offset before which bytes are deleted}, attempts to delete completely).

    Each file keeps its last `keep_bytes`, and so do all finished attempts of the worker together, the newest first;
    a burst that the manager is receiving may use a little more. If the manager lacks bytes of a finished attempt, a
    file without data (a hole) is kept, which records its size. Each file is examined a fixed number of times, because a
    crash loop of weeks leaves ten thousand attempts.
    """
    of_attempt: dict[int, list[FileState]] = {}
    for one in files:
        of_attempt.setdefault(one.attempt, []).append(one)
    cuts = {one.key: _cut(one, keep_bytes) // STEP_BYTES * STEP_BYTES for one in files}
    removed = []
    left_bytes = keep_bytes + STEP_BYTES
    finished = sorted({one.attempt for one in files if not one.current}, reverse=True)
    kept = len({one.attempt for one in files if one.current})
    for attempt in finished:
        mine = of_attempt[attempt]
        left_bytes -= sum(one.size - cuts[one.key] for one in mine)
        complete = all(one.complete for one in mine)
        if complete and (kept >= keep_attempts or left_bytes < 0):
            removed.append(attempt)
            continue
        kept += 1
        if left_bytes < 0:
            cuts.update({one.key: max(cuts[one.key], _cut(one, 0)) for one in mine})
    for attempt in removed:
        for one in of_attempt[attempt]:
            del cuts[one.key]
    return {key: end for key, end in cuts.items() if end}, removed


def _cut(file: FileState, keep_bytes: int) -> int:
    wanted = max(file.wanted_from, file.size - keep_bytes - BURST_BYTES)
    return max(0, min(file.size - keep_bytes, wanted))


def punch_hole(path: str, offset: int, length: int) -> str:
    """Free the blocks of these bytes; the file keeps its size. Returns "" or the error. Never delays a writer for
    long: dirty pages are written before, and holes are punched in parts."""
    end = offset + length
    while offset < end:
        problem, offset = punch_some(path, offset, end)
        if problem:
            return problem
    return ""


def punch_some(path: str, offset: int, end: int) -> tuple[str, int]:
    """As `punch_hole`, for at most PIECES pieces with data. Returns (error, offset reached). A job has its log's
    descriptor and can make the file terabytes long with holes or scattered single bytes."""
    import ctypes

    try:
        libc = ctypes.CDLL(None, use_errno=True)
        fallocate, sync_range = libc.fallocate64, libc.sync_file_range
    except (OSError, AttributeError):
        return "no fallocate", offset
    fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    sync_range.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for _ in range(PIECES):
            start = _data_from(descriptor, offset, end)
            size = min(_PUNCH_BYTES, end - start)
            sync_range(descriptor, start, size, _SYNC_RANGE)
            # From the current offset, not from the data: reserved but unwritten blocks count as a hole.
            if fallocate(descriptor, _FALLOC_PUNCH, offset, start + size - offset) != 0:
                return os.strerror(ctypes.get_errno()), offset
            offset = start + size
            if offset >= end:
                break
    finally:
        os.close(descriptor)
    return "", offset


def _data_from(descriptor: int, start: int, end: int) -> int:
    """The offset of the first data at or after `start`; `end` if there is none before it."""
    try:
        return min(end, os.lseek(descriptor, start, SEEK_DATA))
    except OSError as exc:
        return end if exc.errno == errno.ENXIO else start


def trim(path: str, end: int) -> None:
    """Replace a log without a writer by a sparse copy without the bytes before `end`. Raises OSError."""
    copy = path + ".trim"
    source = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(source).st_size
        target = os.open(copy, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, paths.PRIVATE_FILE)
        try:
            position = end
            while position < size:
                data = os.pread(source, STEP_BYTES, position)
                if not data:
                    break
                position += os.pwrite(target, data, position)
            os.ftruncate(target, size)
            os.fsync(target)
        finally:
            os.close(target)
        os.replace(copy, path)
    except OSError:
        unlink(copy)
        raise
    finally:
        os.close(source)


def next_data(descriptor: int, offset: int, size: int) -> int:
    """The first offset >= `offset` with bytes in it. A log written with O_APPEND has no holes except punched ones."""
    try:
        found = min(size, os.lseek(descriptor, offset, SEEK_DATA))
    except OSError as exc:
        found = size if exc.errno == errno.ENXIO else offset
    if found > offset and os.pread(descriptor, 4096, offset).strip(b"\0"):
        return offset  # bytes exist, whatever the file system reports
    return found


@record
class Marks:
    """Information about finished files ("3.out") for the next agent: `complete` {file: size}: received by the manager;
    `gone` {file: offset}: trimmed."""

    complete: dict[str, int] = field(default_factory=dict)
    gone: dict[str, int] = field(default_factory=dict)


def _marks_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "shipped.json")


def _trims_file(worker_directory: str) -> str:
    return os.path.join(worker_directory, "trimmed.json")


def read_marks(worker_directory: str) -> Marks:
    """Read the marks; if they are missing or damaged, the manager is queried again."""
    return Marks(_read_numbers(_marks_file(worker_directory)), _read_numbers(_trims_file(worker_directory)))


def _read_numbers(path: str) -> dict[str, int]:
    try:
        value: Any = paths.read_json(path)
    except (OSError, ValueError):
        return {}
    return {key: number for key, number in value.items() if isinstance(number, int)} if isinstance(value, dict) else {}


def write_marks(worker_directory: str, marks: Marks) -> None:
    try:
        paths.write_json(_marks_file(worker_directory), marks.complete)
        if marks.gone:
            paths.write_json(_trims_file(worker_directory), marks.gone)
    except OSError:
        pass  # the manager is queried again after the next start


def unlink(path: str) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass
