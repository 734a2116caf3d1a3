"""Searches log files for a text or regular expression, newest first, in a separate process.

Run as a script (`python -I -S grep.py`); imports none of our modules. A regular expression may take unbounded time: a
line gets at most LINE_CPU_S, after which it is skipped and counted. The agent kills the process at the deadline;
results that were printed by then are used. The manager has validated the expression and converted it to Python's `re`.
The process runs at low CPU and disk priority, uses little memory, and is the preferred victim of the OOM killer.

In: one JSON object (see `main`). Out: JSON lines: {"held": …} (see `held_of`), then each match as [worker, attempt,
stream, offset, at, text, begin, end], periodically {"bytes": n, "found": n}, and at the end {"bytes", "found",
"skipped", "done": true}; or {"error": "…"}.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import time
from bisect import bisect_right
from typing import Any, Callable, Iterator, Optional

FIRST_BLOCK_BYTES = 64 * 1024  # small, so that the newest part of every worker's logs is searched first
BLOCK_BYTES = 1024 * 1024
MAX_LINE_BYTES = 64 * 1024  # of a longer line only the beginning is searched
MAX_MATCHED_CHARS = 16 * 1024
LINE_CPU_S = 0.25  # a line is interrupted after one to two of these
SHOWN_CHARS = 1000
SHOWN_BEFORE = 200  # of SHOWN_CHARS, those before the match
MAX_SAID_BYTES = 4 * 1024 * 1024
PROGRESS_EVERY_S = 0.5
MAX_HELD = 4000  # files
MAX_MEMORY_BYTES = 512 * 1024 * 1024
POINT = struct.Struct("<Qd")  # a record of <n>.log.idx: the bytes before this offset were written by this time
COLOURS = re.compile(r"\x1b\[[0-9;:]*[A-Za-z]")

Found = Optional["tuple[int, int]"]


class File:
    """One log file, read backwards a block at a time."""

    def __init__(self, worker: str, attempt: int, stream: str, path: str) -> None:
        self.worker, self.attempt, self.stream, self.path = worker, attempt, stream, path
        self._ends: list[int] = []
        self._times: list[float] = []

    def pieces(self) -> Iterator[tuple[int, bytes]]:
        """(offset, whole lines) from the newest piece to the oldest; (-1, bytes) where a block held no whole line."""
        try:
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return  # cleaned up meanwhile
        try:
            status = os.fstat(descriptor)
            self._read_times(status.st_size, status.st_mtime)
            first = _first_data(descriptor, status.st_size)
            position, rest = status.st_size, b""
            wanted = FIRST_BLOCK_BYTES
            while position > first:
                size = min(wanted, position - first)
                wanted = min(2 * wanted, BLOCK_BYTES)
                block = os.pread(descriptor, size, position - size)
                if len(block) != size:
                    return  # truncated under us
                position -= size
                cut = block.find(b"\n")
                if cut < 0:
                    rest = (block + rest)[:MAX_LINE_BYTES]
                    yield -1, block
                else:
                    yield position + cut + 1, block[cut + 1 :] + rest
                    rest = block[: cut + 1]
            if rest:
                yield first, rest
        finally:
            os.close(descriptor)

    def _read_times(self, size: int, changed_at: float) -> None:
        try:
            with open(self.path + ".idx", "rb") as file:
                data = file.read(1024 * 1024)
        except OSError:
            data = b""
        for end, at in POINT.iter_unpack(data[: len(data) // POINT.size * POINT.size]):
            if end > (self._ends[-1] if self._ends else 0) and 0 < at < 1e11:
                self._ends.append(end)
                self._times.append(at)
        if size > (self._ends[-1] if self._ends else 0):
            self._ends.append(size)
            self._times.append(changed_at)

    def written(self, offset: int) -> tuple[float, float]:
        """(not before, not after): when the byte at `offset` was written."""
        low = bisect_right(self._ends, offset)
        after = self._times[low] if low < len(self._times) else time.time()
        return (self._times[low - 1] if low else 0.0), after


def _first_data(descriptor: int, size: int) -> int:
    """The offset of the file's first data; freed parts before it are a hole."""
    try:
        return min(size, os.lseek(descriptor, 0, os.SEEK_DATA))
    except (OSError, AttributeError):
        return 0


def last_state(line: bytes) -> bytes:
    """The part of a line that a terminal shows: the text after its last carriage return, not counting those at the
    end."""
    line = line.rstrip(b"\r")
    return line[line.rfind(b"\r") + 1 :]


def shown_form(line: bytes) -> str:
    """A line as a terminal would leave it: its last state, without colours."""
    text = last_state(line).decode("utf-8", "replace")
    return COLOURS.sub("", text) if "\x1b" in text else text


def cut_out(text: str, begin: int, end: int) -> tuple[str, int, int]:
    """An excerpt of at most SHOWN_CHARS of a line around the match, and the match's begin and end in it."""
    if len(text) <= SHOWN_CHARS:
        return text, begin, end
    start = min(max(0, begin - SHOWN_BEFORE), len(text) - SHOWN_CHARS)
    stop = start + SHOWN_CHARS
    before, behind = ("…" if start else ""), ("…" if stop < len(text) else "")
    shift = len(before) - start
    return before + text[start:stop] + behind, begin + shift, min(end, stop) + shift


class TooLong(Exception):
    """The expression takes too long on one line."""


class Watch:
    """Interrupts an expression that takes too long on one line. Measured in CPU time, so that a busy host has no
    effect.

    Python's `re` looks for signals while it matches; a handler that raises ends the match.
    """

    def __init__(self) -> None:
        self._line = self._seen = 0  # number of lines begun: now, and at the last tick
        self._on = False

    def start(self) -> None:
        import signal

        signal.signal(signal.SIGVTALRM, self._tick)
        signal.setitimer(signal.ITIMER_VIRTUAL, LINE_CPU_S, LINE_CPU_S)

    def search(self, search: Callable[[Any], Any], text: Any) -> Any:
        """Run `search` on one or several texts and return its result. Raises TooLong."""
        self._line += 1
        self._on = True
        try:
            return search(text)
        finally:
            self._on = False

    def _tick(self, *_: Any) -> None:
        if self._on and self._line == self._seen:
            raise TooLong
        self._seen = self._line


class GrepSearch:
    def __init__(self, request: dict[str, Any], say: Callable[[Any], None]) -> None:
        """Raises re.error (ValueError, RecursionError, OverflowError) for an invalid regular expression."""
        self._say = say
        self._since = request.get("since") or float("-inf")
        self._until = request.get("until") or float("inf")
        self._max_lines = int(request.get("max_lines", 500))
        self._deadline = time.monotonic() + float(request.get("timeout_s", 10.0))
        pattern, as_it_stands = str(request["pattern"]), not request.get("regex", True)
        self._needle = pattern.encode() if as_it_stands and not request.get("ignore_case") else b""
        flags = re.IGNORECASE if request.get("ignore_case") else 0
        self._search = re.compile(re.escape(pattern) if as_it_stands else pattern, flags).search
        self._text = pattern
        self.watch = Watch()
        self.bytes = self.found = self.skipped = 0
        self._lines_of: dict[str, int] = {}

    def run(self, files: list[File]) -> bool:
        """A block of each worker in turn, so that a long log does not starve the others. False: out of time."""
        of_worker: dict[str, Iterator[None]] = {}
        for worker in dict.fromkeys(file.worker for file in files):
            of_worker[worker] = self._worker([file for file in files if file.worker == worker])
        said_at = time.monotonic()
        while of_worker:
            for worker, steps in list(of_worker.items()):
                if next(steps, self) is self:
                    del of_worker[worker]
                now = time.monotonic()
                if now > self._deadline:
                    return False
                if now - said_at > PROGRESS_EVERY_S:
                    said_at = now
                    self._say({"bytes": self.bytes, "found": self.found})
        return True

    def _worker(self, files: list[File]) -> Iterator[None]:
        """Steps through one worker's files, the newest attempt first."""
        for file in files:
            for offset, piece in file.pieces():
                self.bytes += len(piece)
                if offset >= 0:
                    not_before, _ = file.written(offset)
                    _, not_after = file.written(offset + len(piece) - 1)
                    if not_after < self._since:
                        return  # all remaining bytes are older
                    if not_before <= self._until:
                        self._search_piece(file, offset, piece)
                if self._lines_of.get(file.worker, 0) >= self._max_lines:
                    return
                yield None

    def _search_piece(self, file: File, offset: int, piece: bytes) -> None:
        for start, line in self._candidates(piece):
            found, text = self._match(line)
            if self.skipped and time.monotonic() > self._deadline:
                return  # checked here too, because each line may take up to its limit
            if found is None:
                continue
            not_before, not_after = file.written(offset + start)
            if not_after < self._since or not_before > self._until:
                continue
            self.found += 1
            self._lines_of[file.worker] = self._lines_of.get(file.worker, 0) + 1
            shown, begin, end = cut_out(text, *found)
            self._say([file.worker, file.attempt, file.stream, offset + start, not_after, shown, begin, end])
            if self._lines_of[file.worker] >= self._max_lines:
                return

    def _match(self, line: bytes) -> tuple[Found, str]:
        text = shown_form(line[:MAX_LINE_BYTES])
        if self._needle:
            begin = text.find(self._text)
            return (None if begin < 0 else (begin, begin + len(self._text))), text
        try:
            match = self.watch.search(self._search, text[:MAX_MATCHED_CHARS])
        except TooLong:
            self.skipped += 1
            return None, text
        return (None if match is None else match.span()), text

    def _candidates(self, piece: bytes) -> Iterator[tuple[int, bytes]]:
        """(offset in the piece, line) of each line that may match, newest first."""
        end = len(piece) - (1 if piece.endswith(b"\n") else 0)
        plain = self._needle and b"\x1b" not in piece  # the text may contain colours
        while end >= 0:
            if plain:
                hit = piece.rfind(self._needle, 0, end)
                if hit < 0:
                    return
                stop = piece.find(b"\n", hit, end)
                end = stop if stop >= 0 else end
            start = piece.rfind(b"\n", 0, end) + 1
            yield start, piece[start:end]
            end = start - 1


def files_of(workers: list[list[str]], stream: str, since: float) -> list[File]:
    """`workers`: [[worker id, its directory of attempts]…]. The newest attempt of each first."""
    found = []
    for worker, directory in workers:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        of_worker = []
        for name in names:
            stem, _, ending = name.partition(".")
            kind = {"log": "out", "err": "err"}.get(ending)
            path = os.path.join(directory, name)
            if not stem.isdigit() or kind is None or stream not in ("", kind):
                continue
            try:
                if os.stat(path).st_mtime < since:
                    continue
            except OSError:
                continue
            of_worker.append(File(worker, int(stem), kind, path))
        found += sorted(of_worker, key=lambda one: (-one.attempt, one.stream))
    return found


def held_of(files: list[File]) -> dict[str, dict[str, int]]:
    """{worker: {"3.out": where its bytes begin on this host}}, of the newest MAX_HELD files."""
    held: dict[str, dict[str, int]] = {}
    for file in sorted(files, key=lambda one: -one.attempt)[:MAX_HELD]:
        try:
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue  # cleaned up meanwhile
        try:
            first = _first_data(descriptor, os.fstat(descriptor).st_size)
        finally:
            os.close(descriptor)
        held.setdefault(file.worker, {})[f"{file.attempt}.{file.stream}"] = first
    return held


def end_after(timeout_s: float) -> None:
    """Limit the lifetime of this process, whatever happens to the agent."""
    import signal

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(int(timeout_s) + 5)


def be_humble(cpu_s: Optional[int] = None, memory_bytes: int = MAX_MEMORY_BYTES) -> None:
    """Set this process to the lowest priority and limit its memory and CPU time. `cpu_s`: total processor seconds."""
    import resource

    os.nice(19)
    for limit, value in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s)):
        if value is None:
            continue
        try:
            resource.setrlimit(limit, (value, value))
        except (ValueError, OSError):
            pass  # a lower one is in force already
    try:
        with open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
            file.write("1000")
    except OSError:
        pass
    _idle_disk_class()


def _idle_disk_class() -> None:
    """Read from the disk only when no other process does, by ioprio_set(2), for which Python has no function."""
    number = {"x86_64": 251, "aarch64": 30}.get(os.uname().machine)
    try:
        import ctypes

        if number is not None:
            ctypes.CDLL(None).syscall(number, 1, 0, 3 << 13)
    except (ImportError, OSError, AttributeError):
        pass


class ResultWriter:
    """Writes JSON lines, at most MAX_SAID_BYTES of them."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._said = 0

    def __call__(self, what: Any) -> None:
        data = json.dumps(what).encode("ascii") + b"\n"
        if isinstance(what, list):
            self._said += len(data)
            if self._said > MAX_SAID_BYTES:
                return
        while data:
            data = data[os.write(self._descriptor, data) :]


def main() -> int:
    request = json.loads(sys.stdin.buffer.read())
    timeout_s = float(request.get("timeout_s", 10.0))
    end_after(timeout_s)
    be_humble(int(timeout_s) + 2)
    say = ResultWriter(1)
    try:
        search = GrepSearch(request, say)
    except (re.error, ValueError, RecursionError, OverflowError) as exc:
        say({"error": f"this host's Python {sys.version_info[0]}.{sys.version_info[1]} does not take it: {exc}"})
        return 0
    workers, stream = request["workers"], request.get("stream", "")
    say({"held": held_of(files_of(workers, stream, float("-inf")))})
    search.watch.start()
    done = search.run(files_of(workers, stream, request.get("since") or float("-inf")))
    say({"bytes": search.bytes, "found": search.found, "skipped": search.skipped, "done": done})
    return 0


if __name__ == "__main__":
    sys.exit(main())
