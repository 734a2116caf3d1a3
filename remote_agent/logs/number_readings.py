"""The numbers that workers print, as found by the number reader (number_reader.py).

Owns the reader's process, its table of logs and the thread that communicates with it; both exist only while there is a
worker with `metrics`, and the process may be killed at any time. The main loop calls `update` and `of`, which neither
match nor block.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time

from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import MAX_LOG_METRICS, LogMetric

READER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "number_reader.py")
SILENT_S = 60.0  # the process reports every 10 s, or later on a busy host
AGAIN_S = (1.0, 5.0, 30.0, 120.0)
MAX_LINE_BYTES = 8 * 1024 * 1024
NOTHING_S = 10.0  # the process ends after this time without a worker


class NumberReadings:
    def __init__(self, python: str, say: Callable[..., None]) -> None:
        self._python, self._say = python, say
        self._table: list[Any] = []  # replaced, never changed: the thread reads it
        self._changed = threading.Event()
        self._ending = False
        self._thread: Optional[threading.Thread] = None
        self._found: dict[str, tuple[int, dict[str, list[Any]]]] = {}  # each replaced as a whole by the thread

    def update(self, table: list[Any]) -> None:
        """Set the table of logs to read; called by the main loop."""
        alive = self._thread is not None and self._thread.is_alive()
        if table == self._table and (alive or not table):
            return
        self._table = table
        for worker in set(self._found) - {row[0] for row in table}:
            self._found.pop(worker, None)
        self._changed.set()
        if table and not alive:
            self._thread = threading.Thread(target=self._run, name="procguard-numbers", daemon=True)
            self._thread.start()

    def of(self, worker: str, attempt: int) -> list[LogMetric]:
        """The last values of this attempt."""
        found = self._found.get(worker)
        if found is None or found[0] != attempt:
            return []
        return [LogMetric(name, *values) for name, values in found[1].items()]

    def end(self) -> None:
        self._ending = True
        self._changed.set()

    # -------------------------------------------------------------------------------------------- its thread

    def _run(self) -> None:
        from remote_agent.health import user_process  # rarely needed: imported late, to save memory

        failures = 0
        while not self._ending and self._table:
            began = time.monotonic()
            try:
                if self._attend(user_process.start(self._python, READER)):
                    self._changed.wait()  # everything in the table has been read
                    continue
            except (OSError, ValueError) as exc:
                self._say("numbers are not read from logs", why=exc)
            failures = 0 if time.monotonic() - began > SILENT_S else failures + 1
            if not self._ending and self._table:
                self._changed.wait(AGAIN_S[min(failures, len(AGAIN_S)) - 1] if failures else 0.0)

    def _attend(self, process: Any) -> bool:
        """Send the table to the process and read its output until it ends, hangs, or there is nothing to read. Returns
        whether it ended by itself with everything read."""
        sent: Optional[list[Any]] = None
        unread, unsent = b"", b""
        received_at = wanted_at = time.monotonic()
        writing, reading = process.stdin.fileno(), process.stdout.fileno()
        os.set_blocking(writing, False)
        try:
            while not self._ending:
                self._changed.clear()
                now, table = time.monotonic(), self._table
                wanted_at = now if table else wanted_at
                if now - received_at > SILENT_S or now - wanted_at > NOTHING_S:
                    return False
                if table is not sent and not unsent:
                    sent, unsent = table, json.dumps(table).encode() + b"\n"
                readable, writable, _ = select.select([reading], [writing] if unsent else [], [], 1.0)
                if writable:
                    unsent = unsent[os.write(writing, unsent) :]
                if readable:
                    data = os.read(reading, 262144)
                    if not data or len(unread) > MAX_LINE_BYTES:
                        return not data and sent is self._table and process.wait(2.0) == 0
                    received_at = time.monotonic()
                    *lines, unread = (unread + data).split(b"\n")
                    for line in lines:
                        self._take(json.loads(line))
            return False
        finally:
            _end(process)

    def _take(self, said: dict[str, Any]) -> None:
        wanted = {row[0]: row[1] for row in self._table}
        for worker, (attempt, values) in said.items():
            if wanted.get(worker) != attempt:
                continue
            before = self._found.get(worker)
            known = before[1] if before is not None and before[0] == attempt else {}
            merged = {**known, **values}
            self._found[worker] = (attempt, dict(list(merged.items())[:MAX_LOG_METRICS]))


def _end(process: Any) -> None:
    import subprocess

    if process.poll() is None:
        process.kill()
    for pipe in (process.stdin, process.stdout):
        try:
            pipe.close()
        except OSError:
            pass
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        pass  # blocked in the kernel on a hanging disk; init will reap it
