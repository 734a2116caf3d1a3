"""Operations on log files on the manager's disk: append, write at an offset, read in blocks, sync. Knows no log
store."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import gevent.threadpool

DISK_THREADS = 4
T = TypeVar("T")


class DiskThreads:
    """Runs blocking disk operations in its own threads, so that a slow disk of the logs does not delay commits of the
    state."""

    def __init__(self, threads: int = DISK_THREADS) -> None:
        self._pool = gevent.threadpool.ThreadPool(threads)

    def __call__(self, work: Callable[..., T], *arguments: Any) -> T:
        result: T = self._pool.apply(work, arguments)
        return result


def sync_files(paths: Iterable[str]) -> None:
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def blocks(path: str, start: int, end: int) -> Iterator[bytes]:
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        file.seek(start)
        while start < end and (block := file.read(min(256 * 1024, end - start))):
            start += len(block)
            yield block


def write_at(path: str, offset: int, data: bytes) -> None:
    """Write durably and keep the file's mtime, because its age counts from when the worker wrote it. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        before = os.fstat(descriptor)
        written = 0
        while written < len(data):
            written += os.pwrite(descriptor, memoryview(data)[written:], offset + written)
        os.utime(descriptor, ns=(before.st_atime_ns, before.st_mtime_ns))
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_all(path: str, data: bytes | memoryview) -> int:
    """Append data. Returns the number of bytes written: all, or fewer if the disk is full. Raises OSError if none was
    written."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    written = 0
    try:
        while written < len(data):
            written += os.write(descriptor, memoryview(data)[written:])
    except OSError:
        if not written:
            raise
    finally:
        os.close(descriptor)
    return written
