"""Serves ranges of logs that a new leader requests because it never received them: the existing bytes, and the lost
ranges.

Owns the content sent for one LogRange; the shipper posts it. Only reads files.
"""

from __future__ import annotations

import os
import time

from remote_agent.logs import retention
from remote_agent.logs.watcher import LogFile, WorkerLogs
from remote_agent.protocol.hints import Iterator
from remote_agent.protocol.messages import LogRange
from remote_agent.protocol.records import record

MAX_LENGTH = 4 * 1024 * 1024
PIECE_BYTES = 1024 * 1024


@record
class RangePost:
    """One post to the log route. No `data` and no `gone_to`: `offset` bytes of this file were acknowledged."""

    attempt: int
    stream: str
    offset: int
    at: float
    data: bytes = b""
    gone_to: int = 0
    last: bool = False


def posts(worker: WorkerLogs, asked: LogRange) -> Iterator[RangePost]:
    """The requests to post; the last one is marked."""
    waiting = None
    for post in _listed(worker) if asked.attempt == 0 else _parts(worker, asked):
        if waiting is not None:
            yield waiting
        waiting = post
    if waiting is None:
        waiting = RangePost(max(1, asked.attempt), asked.stream or "out", 0, time.time())
    waiting.last = True
    yield waiting


def _listed(worker: WorkerLogs) -> Iterator[RangePost]:
    with worker.lock:
        files = worker.in_order()
    for file in files:
        acked = file.size if file.complete else min(file.acked or 0, file.size)
        if acked > 0:
            yield RangePost(file.attempt, file.stream, acked, _written_at(file))


def _parts(worker: WorkerLogs, asked: LogRange) -> Iterator[RangePost]:
    """The existing parts of the range, and its holes."""
    with worker.lock:
        file = worker.files.get(f"{asked.attempt}.{asked.stream}")
    at, position = time.time(), max(0, asked.offset)
    end = position + min(max(0, asked.length), MAX_LENGTH)
    if file is not None:
        at = _written_at(file)
        while position < end:
            start, data = _read(worker, file, position, end)
            if start > position:
                yield RangePost(asked.attempt, asked.stream, position, at, gone_to=start)
            if not data:
                position = start
                break
            yield RangePost(asked.attempt, asked.stream, start, at, data)
            position = start + len(data)
    if position < end:
        yield RangePost(asked.attempt, asked.stream, position, at, gone_to=end)


def _read(worker: WorkerLogs, file: LogFile, position: int, end: int) -> "tuple[int, bytes]":
    """Returns (start of data, data), or (end, b"") if there is none before the end."""
    with worker.lock:  # excludes hole punching
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return end, b""
        try:
            size = min(end, os.fstat(descriptor).st_size)
            start = retention.next_data(descriptor, max(position, min(file.gone, size)), size)
            if start >= size:
                return end, b""
            return start, os.pread(descriptor, min(PIECE_BYTES, size - start), start)
        finally:
            os.close(descriptor)


def _written_at(file: LogFile) -> float:
    try:
        return os.stat(file.path).st_mtime
    except OSError:
        return time.time()
