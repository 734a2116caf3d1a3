"""Ships log bytes to the manager, starting at the last acknowledged offset: no byte is lost or sent twice.

Owns the exchange with the manager about log bytes; files on disk are owned by log_files. Only reads files, so that it
can never block a child. Two threads: one watches the files (with or without a manager), one sends.

The manager's offset is authoritative: the shipper requests it (an empty POST) after each start, and returns to it on a
409. Bytes that no longer exist here (punched, trimmed) are announced with gap=1 and the offset of the next byte.
"""

from __future__ import annotations

import os
import threading
import time

from remote_agent.logs import retention
from remote_agent.logs.watcher import KEEP_ATTEMPTS, KEEP_LOCAL_BYTES, LogFile, LogFiles, ShippedWorker, WorkerLogs
from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import MAX_LOG_POST_BYTES, LogRange
from remote_agent.transport.client import LOG_TIMEOUT_S, Connection
from remote_agent.transport.http import quote
from remote_agent.transport.outcomes import LinkDown, Reply, retry_delay_s

CHUNK_BYTES = 1024 * 1024
LARGE_CHUNK_BYTES = MAX_LOG_POST_BYTES  # used if at least this many bytes wait
MIN_CHUNK_BYTES = 64 * 1024
MAX_FILES = 50  # limit of the small files of one worker that are sent in one round
MAX_RUNS = 200  # times in one post, which take about 3 KB of its URL
REFUSED_AGAIN_S = 10.0
# concerns a single file, for example an offset that no file system accepts; other files are not delayed
STORAGE_FAILED = 507
MAX_GATHER_S = 10.0
MAX_RANGES = 64  # limit of the ranges that a new leader may request


class LogShipper(threading.Thread):
    """`update` with the table of workers whenever it changes; `deliver(kind, value)` gets ("drained", worker_id),
    ("log_trouble", text) and ("log_note", text). `watch` from the agent's first moment, `start` once there is a
    manager."""

    def __init__(
        self,
        connection: Connection,
        deliver: Callable[[str, Any], None],
        *,
        keep_local_bytes: int = KEEP_LOCAL_BYTES,
        keep_attempts: int = KEEP_ATTEMPTS,
        wall: Callable[[], float] = time.time,
    ) -> None:
        super().__init__(name="procguard-logs", daemon=True)
        self._connection = connection
        self._deliver = deliver
        self.files = LogFiles(deliver, keep_local_bytes=keep_local_bytes, keep_attempts=keep_attempts, wall=wall)
        self._wall = wall
        self._max_chunk_bytes = LARGE_CHUNK_BYTES
        self._waiting = threading.Event()  # there are bytes to send
        self._hurry = threading.Event()  # the link is up again, or the agent ends
        self._ending = threading.Event()
        self._failures = 0
        self._gather_s = 0.0
        self._ranges: list[LogRange] = []
        self._asked: list[str] = []  # ids of the newest requested ranges
        self._watcher: Optional[threading.Thread] = None

    # ------------------------------------------------------------------------------- called by the main loop

    def update(self, workers: list[ShippedWorker]) -> None:
        if self.files.update(workers):
            self._waiting.set()

    def keep(self, keep_bytes: Optional[int], keep_attempts: Optional[int]) -> None:
        self.files.keep(keep_bytes, keep_attempts)

    def gather(self, gather_s: Optional[float]) -> None:
        """Set how long output may be collected before it is sent, as configured by the manager; None: unchanged."""
        if gather_s is not None:
            self._gather_s = min(MAX_GATHER_S, max(0.0, gather_s))

    def watch(self) -> None:
        self._watcher = threading.Thread(target=self._watch, name="procguard-log-watch", daemon=True)
        self._watcher.start()

    def send(self, asked: list[LogRange]) -> None:
        """Queue ranges that a new leader requests; they are sent first. Duplicates and excess ones are ignored."""
        for one in asked:
            if one.range_id not in self._asked and len(self._ranges) < MAX_RANGES:
                self._asked = [*self._asked[-MAX_RANGES:], one.range_id]
                self._ranges.append(one)
                self._waiting.set()

    def link_is_up(self) -> None:
        """The manager answers: no need to wait for the next try."""
        self._hurry.set()

    def end(self) -> None:
        self._ending.set()
        self._hurry.set()
        self._waiting.set()
        self._connection.close()

    # --------------------------------------------------------------------------------------------- the threads

    def _watch(self) -> None:
        while not self._ending.is_set():
            try:
                if self.files.scan(time.monotonic()):
                    self._waiting.set()
            except Exception as exc:  # a bug here must not end the watch for all workers
                self._deliver("log_trouble", f"{type(exc).__name__}: {exc}")
                self._ending.wait(1.0)
            self._ending.wait(self.files.pause_s)

    def run(self) -> None:
        if self._watcher is None:
            self.watch()
        while not self._ending.is_set():
            try:
                moved = self.ship(time.monotonic())
                self._failures = 0
            except LinkDown as exc:
                self._failures += 1
                if self._failures == 3 and not self._ending.is_set():
                    self._deliver("log_trouble", str(exc))
                self._hurry.clear()
                self._hurry.wait(retry_delay_s(self._failures))
                continue
            except Exception as exc:  # a bad disk must not end log shipping for the other workers
                self._deliver("log_trouble", f"{type(exc).__name__}: {exc}")
                moved = False
                self._ending.wait(1.0)
            if not moved:
                self._waiting.wait(1.0)
            self._waiting.clear()
            if self._gather_s > 0 and not self.files.much_waits(MIN_CHUNK_BYTES):
                self._ending.wait(self._gather_s)

    def ship(self, now: float) -> bool:
        """One round: at most one chunk of each worker, or some small files, so that a loud one does not starve the
        others.

        Returns whether anything was sent. Raises LinkDown.
        """
        moved = False
        self._send_ranges()
        for worker in self.files.workers():
            if now < worker.blocked_until:
                continue
            try:
                moved = self._ship_worker(worker, now) or moved
            except OSError as exc:
                worker.blocked_until = now + 1.0
                self._deliver("log_trouble", f"{worker.shipped.worker_id}: cannot read its log: {exc.strerror or exc}")
        return moved

    def _send_ranges(self) -> None:
        """Send requested ranges; refused ones are dropped. Raises LinkDown."""
        if not self._ranges:
            return
        from remote_agent.logs import ranges  # once, after a takeover

        while self._ranges and not self._ending.is_set():
            asked = self._ranges.pop(0)
            worker = self.files.worker(asked.worker_id)
            for post in ranges.posts(worker, asked) if worker is not None else ():
                path = (
                    f"/api/workers/{quote(asked.worker_id)}/logs?attempt={post.attempt}&stream={post.stream}"
                    f"&offset={post.offset}&at={post.at:.3f}&fill={quote(asked.range_id)}"
                )
                path += f"&gap=1&end={post.gone_to}" if post.gone_to else ""
                path += "&last=1" if post.last else ""
                try:
                    taken = self._request(path, post.data).ok
                except LinkDown:
                    self._asked.remove(asked.range_id)  # if it is still needed, the manager requests it again
                    raise
                if not taken:
                    break

    def _ship_worker(self, worker: WorkerLogs, now: float) -> bool:
        with worker.lock:
            shipped, listed = worker.shipped, worker.listed
            waiting = [file for file in worker.in_order() if file.waiting]
        moved = False
        for file in waiting[:MAX_FILES]:
            small = file.size - (file.acked or 0) <= MIN_CHUNK_BYTES
            moved = self._ship_file(worker, file, now) or moved
            if now < worker.blocked_until or (moved and not small):
                break
        if moved:
            worker.drained_sent = False
            return True
        if shipped.report_drained and not worker.drained_sent and not waiting and listed:
            worker.drained_sent = True
            self._deliver("drained", shipped.worker_id)
        return False

    def _ship_file(self, worker: WorkerLogs, file: LogFile, now: float) -> bool:
        """Send one chunk. Returns whether something was sent."""
        if file.acked is None:
            return self._answer(worker, file, self._post(worker, file, 0, b"", [(0, self._wall())]), 0, now)
        with worker.lock:
            try:
                start, data, runs = self._read(file)
            except FileNotFoundError:
                file.complete = True
                return False
        gap = start > file.acked
        if not data and not gap:
            return False
        reply = self._post(worker, file, start, data, runs, gap)
        return self._answer(worker, file, reply, len(data), now)

    def _read(self, file: LogFile) -> tuple[int, bytes, list[tuple[int, float]]]:
        """(offset, bytes, their times): from the acknowledged offset, or beyond the hole that begins there."""
        assert file.acked is not None
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            size = min(file.size, os.fstat(descriptor).st_size)
            start = retention.next_data(descriptor, max(file.acked, min(file.gone, size)), size)
            waiting = max(0, size - start)
            chunk = CHUNK_BYTES if waiting < LARGE_CHUNK_BYTES else LARGE_CHUNK_BYTES
            runs, end = file.index.runs(start, start + min(waiting, chunk, self._max_chunk_bytes), MAX_RUNS)
            return start, os.pread(descriptor, end - start, start), runs or [(start, self._wall())]
        finally:
            os.close(descriptor)

    def _post(
        self,
        worker: WorkerLogs,
        file: LogFile,
        offset: int,
        data: bytes,
        runs: list[tuple[int, float]],
        gap: bool = False,
    ) -> Reply:
        at = round(runs[0][1] or self._wall(), 3)
        path = (
            f"/api/workers/{quote(worker.shipped.worker_id)}/logs?attempt={file.attempt}&stream={file.stream}"
            f"&offset={offset}&at={at:.3f}{'&gap=1' if gap else ''}"
        )
        if len(runs) > 1:
            path += "&times=" + ",".join(f"{start - offset}:{(when - at) * 1000:.0f}" for start, when in runs[1:])
        return self._request(path, data)

    def _request(self, path: str, data: bytes) -> Reply:
        kind = "application/octet-stream"
        return self._connection.request("POST", path, data, timeout_s=LOG_TIMEOUT_S, content_type=kind)

    def _answer(self, worker: WorkerLogs, file: LogFile, reply: Reply, length: int, now: float) -> bool:
        acked = reply.data.get("acked")
        if (reply.ok or reply.status == 409) and isinstance(acked, int) and acked >= 0:
            moved = acked != file.acked
            file.acked = acked
            kept = reply.data.get("kept")
            file.kept = min(acked, kept) if type(kept) is int and kept >= 0 else acked
            if moved or acked >= file.size:
                worker.taken_at = now
            if not moved and length:
                worker.blocked_until = now + 1.0  # a response without progress must not cause a busy loop
            return moved
        if reply.status == 413 and self._max_chunk_bytes > MIN_CHUNK_BYTES:
            self._max_chunk_bytes = max(MIN_CHUNK_BYTES, min(self._max_chunk_bytes, max(length, 1)) // 2)
            return True
        if (reply.status >= 500 and reply.status != STORAGE_FAILED) or reply.status == 429:
            raise LinkDown(f"logs of {worker.shipped.worker_id}: {reply.why}")
        worker.blocked_until = now + REFUSED_AGAIN_S
        self._deliver("log_trouble", f"{worker.shipped.worker_id}: the manager does not take its log: {reply.why}")
        return False
