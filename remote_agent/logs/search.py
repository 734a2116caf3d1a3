"""Searches this host's logs for the manager: one search at a time, in a separate thread and process.

Owns the thread, which exists only during a search, its connection, and the process (grep.py) with its deadline. No
other part of the agent waits for it: neither the main loop nor the links nor log shipping.
"""

from __future__ import annotations

import json
import os
import queue
import select
import threading
import time
from collections import deque

from remote_agent.protocol.hints import Any, Callable, Optional
from remote_agent.protocol.messages import LogMatch, LogSearch, LogSearchResult, encode
from remote_agent.protocol.reasons import because
from remote_agent.transport.client import AgentCredentials, Connection
from remote_agent.transport.http import quote
from remote_agent.transport.outcomes import LinkDown

GREP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "grep.py")
MAX_WAITING = 4
MAX_REMEMBERED = 64
MAX_TIMEOUT_S = 60.0
MAX_LINES = 5000
MAX_ANSWER_CHARS = 512 * 1024  # limit of the lines of one answer
MAX_OUTPUT_BYTES = 8 * 1024 * 1024
GRACE_S = 2.0  # for the process to start, and to report its own timeout
IDLE_S = 20.0  # then thread and connection are closed
TRIES = 3

Directories = Callable[[str], Optional[str]]


class LogSearcher:
    """`take` is called by the main loop; everything else runs in a thread. `connect`: creates the connection for
    answers."""

    def __init__(self, credentials: AgentCredentials, python: str, connect: Callable[[], Connection]) -> None:
        self._credentials, self._python, self._connect = credentials, python, connect
        self._seen: deque[str] = deque(maxlen=MAX_REMEMBERED)
        self._jobs: queue.SimpleQueue[tuple[Optional[LogSearch], list[list[str]]]] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._open = 0  # taken and not answered; under the lock
        self._running = False  # there is a thread; under the lock
        self._ending = threading.Event()
        self._connection: Optional[Connection] = None

    def take(self, searches: list[LogSearch], directory_of: Directories) -> None:
        """`directory_of(worker_id)`: the directory of its attempts' logs, or None for an unknown worker."""
        for search in searches:
            if search.search_id in self._seen:
                continue  # received before
            self._seen.append(search.search_id)
            directories = [[one, place] for one in search.workers for place in [directory_of(one)] if place is not None]
            with self._lock:
                if self._open >= MAX_WAITING:
                    continue  # the manager reports that this host did not answer
                self._open += 1
                start, self._running = not self._running, True
            self._jobs.put((search, directories))
            if start:
                threading.Thread(target=self._run, name="procguard-search", daemon=True).start()

    def end(self) -> None:
        self._ending.set()
        self._jobs.put((None, []))
        connection = self._connection
        if connection is not None:
            connection.close()

    # -------------------------------------------------------------------------------------------- its thread

    def _run(self) -> None:
        while not self._ending.is_set():
            try:
                search, directories = self._jobs.get(timeout=IDLE_S)
            except queue.Empty:
                with self._lock:
                    if self._open:
                        continue
                    self._running = False
                break
            if search is None:
                break
            try:
                self._answer(run_search(self._python, search, directories, self._ending))
            except Exception as exc:  # a bug here must not end the thread with searches still open
                self._answer(LogSearchResult(search.search_id, "failed", f"{type(exc).__name__}: {exc}"))
            with self._lock:
                self._open -= 1
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def _answer(self, result: LogSearchResult) -> None:
        path = f"/api/agents/{quote(self._credentials.agent_id)}/searches"
        body = json.dumps(encode(result), separators=(",", ":")).encode()
        for try_number in range(TRIES):
            if self._connection is None:
                self._connection = self._connect()
            try:
                self._connection.request("POST", path, body)
                return  # accepted, or no longer awaited
            except LinkDown:
                if self._ending.wait(0.5 * (try_number + 1)):
                    return


# ------------------------------------------------------------------------------------------------- one search


def run_search(
    python: str, search: LogSearch, directories: list[list[str]], ending: threading.Event
) -> LogSearchResult:
    """Run the search in a separate process and collect its results until the deadline."""
    import subprocess

    from remote_agent.health import user_process  # rarely needed: imported late, to save memory

    began = time.monotonic()
    timeout_s = min(MAX_TIMEOUT_S, max(0.1, search.timeout_s))
    request = {
        **encode(search),
        "workers": directories,
        "timeout_s": timeout_s,
        "max_lines": min(MAX_LINES, search.max_lines),
    }
    process = user_process.start(python, GREP)
    reader = _OutputReader(search)
    try:
        deadline = began + timeout_s + GRACE_S
        _talk(process, json.dumps(request).encode(), reader, deadline, ending)
    finally:
        if process.poll() is None:
            process.kill()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()
        try:
            process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            pass  # blocked in the kernel on a hanging disk; init will reap it
    return reader.result(round(time.monotonic() - began, 3))


def _talk(process: Any, request: bytes, reader: _OutputReader, deadline: float, ending: threading.Event) -> None:
    """Write the request and read the output, not beyond the deadline."""
    writing, reading = process.stdin.fileno(), process.stdout.fileno()
    os.set_blocking(writing, False)
    left: Optional[memoryview] = memoryview(request)
    while not ending.is_set():
        wait_s = deadline - time.monotonic()
        if wait_s <= 0:
            return
        readable, writable, _ = select.select([reading], [writing] if left is not None else [], [], min(wait_s, 0.5))
        if writable and left is not None:
            try:
                left = left[os.write(writing, left) :]
            except BrokenPipeError:
                left = left[:0]
            if not left:
                left = None
                process.stdin.close()
        if readable:
            data = os.read(reading, 65536)
            if not data or not reader.take(data):
                return


class _OutputReader:
    """The process's output, line by line, as far as received."""

    def __init__(self, search: LogSearch) -> None:
        self._search = search
        self._line = b""
        self._bytes_read = 0
        self._lines: list[LogMatch] = []
        self._found = self._searched_bytes = 0
        self._done: Optional[bool] = None
        self._error = ""
        self._skipped = 0
        self._held: Optional[dict[str, dict[str, int]]] = None

    def take(self, data: bytes) -> bool:
        """False: enough."""
        self._bytes_read += len(data)
        *whole, self._line = (self._line + data).split(b"\n")
        for line in whole:
            said = json.loads(line)
            if isinstance(said, list):
                worker, attempt, stream, offset, at, text, begin, end = said
                self._lines.append(LogMatch(worker, attempt, stream, offset, text, begin, end, round(at, 3)))
            else:
                self._searched_bytes, self._found = (
                    said.get("bytes", self._searched_bytes),
                    said.get("found", self._found),
                )
                self._done = said.get("done", self._done)
                self._error = said.get("error", self._error)
                self._skipped = said.get("skipped", self._skipped)
                self._held = said.get("held", self._held)
        return self._bytes_read < MAX_OUTPUT_BYTES

    def result(self, elapsed_s: float) -> LogSearchResult:
        made = LogSearchResult(self._search.search_id, "done", self._error, elapsed_s=elapsed_s)
        if self._error:
            made.status = "failed"
        elif self._skipped:
            made.status, made.reason = "failed", because("search.too_long", n=self._skipped)
        elif self._done is not True:
            made.status, made.reason = "timeout", because("search.late")
        room = MAX_ANSWER_CHARS
        for line in sorted(self._lines, key=lambda one: -one.at)[: self._search.max_lines]:
            room -= len(line.text) + 100
            if room < 0:
                break
            made.lines.append(line)
        made.found, made.bytes, made.held = max(self._found, len(self._lines)), self._searched_bytes, self._held
        return made
