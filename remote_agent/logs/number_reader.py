"""Reads numbers from workers' new output, in a separate process that runs while there is output to read.

Run as a script (`python -I -S number_reader.py`) by number_readings.py; imports only grep.py. Every POLL_S it reads the
new bytes of each log, newest lines first, until each expression has matched once: older lines are irrelevant. A
carriage return ends a line, so that progress bars count.

Limits, whatever a job prints: MAX_NEW_BYTES and MAX_LINES per log and poll (earlier output is skipped), MAX_LINE_CHARS
per line, grep.py's LINE_CPU_S per expression and poll (after STRIKES overruns it is disabled for the attempt), and
CPU_SHARE of one core in total, beyond which polls become rarer. Little memory, low priority, the preferred victim of
the OOM killer. Exits with 0 at the end of its standard input, or once every worker has ended and is read completely.

In: JSON lines, each the complete table: [[worker, attempt, its directory, {name: [expression, needle]}, is over]…].
Out: JSON lines {worker: [attempt, {name: [value, at, total or null, eta_s or null, trouble]}]…} of the changes; an
empty one at least every ALIVE_S.
"""

from __future__ import annotations

import json
import math
import os
import re
import select
import sys
import time
from collections import deque
from typing import Any, Iterable, Iterator, Optional

if __name__ == "__main__":  # -I leaves the script's directory out of the path
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from remote_agent.logs.grep import COLOURS, TooLong, Watch, be_humble

POLL_S = 1.0
ALIVE_S = 10.0
MAX_NEW_BYTES = 1024 * 1024
FIRST_BYTES = 256 * 1024  # of existing output, at the first poll of a log
MAX_LINES = 20_000
MAX_LINE_CHARS = 4096
MAX_NUMBER_CHARS = 40
STRIKES = 3
CPU_SHARE = 0.04
MAX_MEMORY_BYTES = 256 * 1024 * 1024
MAX_TABLE_BYTES = 16 * 1024 * 1024
QUIET_LOOKS = 3  # polls without new output after which an ended attempt is no longer read
RATE_POINTS, RATE_EVERY_S = 16, 20.0  # the rate is that of the last minutes
LINE_END = re.compile(rb"[\r\n]")


class PrintedNumber:
    """One number of one attempt."""

    def __init__(self, expression: str, needle: str = "") -> None:
        """`needle`: a text that every match contains."""
        self._needle = needle
        self.value: Optional[float] = None
        self.at = 0.0
        self.total: Optional[float] = None
        self.eta_s: Optional[float] = None
        self.trouble = ""
        self._strikes = 0
        self._points: deque[tuple[float, float]] = deque(maxlen=RATE_POINTS)  # (time, value), since the value last fell
        try:
            self._search = re.compile(expression).search
        except (re.error, ValueError, RecursionError, OverflowError):
            self.trouble = "too_long"  # checked by the manager, but another Python version may refuse it

    def examine(self, text: Text, wall: float, watch: Watch) -> bool:
        """Whether something has changed."""
        if self.trouble:
            return False
        lines = text.holding(self._needle) if self._needle else text.lines()
        try:
            found = watch.search(self._newest, lines)
        except TooLong:
            self._strikes += 1
            if self._strikes >= STRIKES:
                self.trouble = "too_long"
            return bool(self.trouble)
        self._strikes = 0
        if found is None:
            return False
        number, total = found
        if (number, total) == (self.value, self.total):
            return False
        self._take(number, total, wall)
        return True

    def _newest(self, lines: Iterable[str]) -> Optional[tuple[float, Optional[float]]]:
        """The number in the first of these lines that has one, and the total beside it."""
        search = self._search
        for line in lines:
            match = search(line)
            if match is not None:
                number = as_number(match.group(1))
                if number is not None:
                    return number, as_number(match.group(2)) if match.re.groups > 1 else None
        return None

    def _take(self, number: float, total: Optional[float], wall: float) -> None:
        points = self._points
        if self.value is None or number < self.value or total != self.total or (points and wall < points[-1][0]):
            points.clear()  # another epoch
        self.value, self.total, self.at = number, total, round(wall, 1)
        if total is None:
            return
        if not points or wall - points[-1][0] >= RATE_EVERY_S or len(points) == 1:
            points.append((wall, number))
        begun, first = points[0]
        rate = (number - first) / (wall - begun) if wall - begun >= 0.5 else 0.0
        left_s = (total - number) / rate if rate > 0 else math.inf
        self.eta_s = round(max(0.0, left_s), 1) if left_s < 1e9 else None

    def shown(self) -> list[Any]:
        return [self.value, self.at, self.total, self.eta_s, self.trouble]


def as_number(text: Optional[str]) -> Optional[float]:
    """The number, or None if it is not finite. "0.5." is accepted, because [0-9.]+ also matches the full stop of a
    sentence."""
    if not text or len(text) > MAX_NUMBER_CHARS or "_" in text:
        return None
    try:
        value = float(text.rstrip(".,"))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


class Log:
    """One log file, read from where the last poll ended. An unfinished line is read once it is unchanged for one poll,
    because half a number is wrong."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.quiet = 0  # polls without new output
        self.written_at = math.inf  # time of the new output; that of the first poll may be old
        self._offset = self._whole_to = -1
        self._rest_seen = -1  # the file size at which the unfinished line was read
        self._size = -1

    def new(self) -> Optional[Text]:
        try:
            status = os.stat(self.path)
        except OSError:
            self.quiet += 1
            return None
        size = status.st_size
        unchanged, self._size = size == self._size, size
        self.written_at = status.st_mtime if self._offset < 0 else math.inf
        if self._offset < 0:
            self._offset = max(0, size - FIRST_BYTES)
        if size < self._offset:
            self._offset = 0  # truncated by hand
        self.quiet = self.quiet + 1 if unchanged else 0
        if size == self._offset or (unchanged and self._rest_seen == size):
            return None
        begin = max(self._offset, size - MAX_NEW_BYTES)
        try:
            with open(self.path, "rb", 0) as file:
                file.seek(begin)
                data = file.read(size - begin)
        except OSError:
            return None
        if begin > max(0, self._whole_to):  # within a line, after skipped output
            cut = LINE_END.search(data)
            data, begin = (data[cut.end() :], begin + cut.end()) if cut else (data, begin)
        whole = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if unchanged:
            self._rest_seen = size
        elif len(data) - whole > MAX_LINE_CHARS:
            whole = len(data)
        taken = data if unchanged else data[:whole]
        self._offset = self._whole_to = begin + whole
        return Text(taken) if taken else None


class Text:
    """The new output of a log, without colours. Yields lines newest first, at most MAX_LINES, each up to
    MAX_LINE_CHARS."""

    def __init__(self, data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        if "\x1b" in text:
            text = COLOURS.sub("", text)
        self._text = text.replace("\r", "\n") if "\r" in text else text
        self._lines: Optional[list[str]] = None

    def lines(self) -> list[str]:
        if self._lines is None:
            lines = self._text.split("\n")
            del lines[:-MAX_LINES]
            lines.reverse()
            if max(map(len, lines)) > MAX_LINE_CHARS:
                lines = [line[:MAX_LINE_CHARS] for line in lines]
            self._lines = lines
        return self._lines

    def holding(self, needle: str) -> Iterator[str]:
        """The lines that contain the needle."""
        text = self._text
        end = len(text)
        for _ in range(MAX_LINES):
            hit = text.rfind(needle, 0, end)
            if hit < 0:
                return
            stop = text.find("\n", hit)
            end = text.rfind("\n", 0, hit) + 1
            yield text[end : min(stop if stop >= 0 else len(text), end + MAX_LINE_CHARS)]


class Watched:
    """One attempt of a worker."""

    def __init__(self, attempt: int, directory: str, expressions: dict[str, list[str]]) -> None:
        self.key = (attempt, directory, expressions)
        self.over = False
        self.attempt = attempt
        self.metrics = {name: PrintedNumber(*words) for name, words in expressions.items()}
        self._logs = [Log(os.path.join(directory, f"{attempt}.{ending}")) for ending in ("log", "err")]

    @property
    def done(self) -> bool:
        return self.over and all(one.quiet >= QUIET_LOOKS for one in self._logs)

    def examine(self, wall: float, watch: Watch) -> Optional[list[Any]]:
        """[attempt, {name: […]}] of the changes."""
        if self.done:
            return None
        changed = {}
        for log in self._logs:
            text = log.new()
            if text is not None:
                at = min(wall, log.written_at)
                changed.update({name: one for name, one in self.metrics.items() if one.examine(text, at, watch)})
        return [self.attempt, {name: one.shown() for name, one in changed.items()}] if changed else None


class NumberReader:
    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._workers: dict[str, Watched] = {}

    def take(self, table: Iterable[list[Any]]) -> None:
        """Apply a table; known attempts continue."""
        workers = {}
        for worker, attempt, directory, expressions, over in table:
            known = self._workers.get(worker)
            if known is None or known.key != (attempt, directory, expressions):
                known = Watched(attempt, directory, expressions)
            known.over = over
            workers[worker] = known
        self._workers = workers

    @property
    def done(self) -> bool:
        """Whether no watched attempt will produce further output."""
        return bool(self._workers) and all(one.done for one in self._workers.values())

    def examine(self, wall: float) -> dict[str, Any]:
        found = {}
        for name, worker in self._workers.items():
            changed = worker.examine(wall, self._watch)
            if changed is not None:
                found[name] = changed
        return found


def main() -> int:
    be_humble(memory_bytes=MAX_MEMORY_BYTES)
    watch = Watch()
    reader = NumberReader(watch)
    watch.start()
    os.set_blocking(0, False)
    unread, said_at = b"", time.monotonic()
    pause_s = 0.0
    while True:
        if select.select([0], [], [], pause_s)[0]:
            data = os.read(0, 1024 * 1024)
            if not data or len(unread) > MAX_TABLE_BYTES:
                return 0
            *lines, unread = (unread + data).split(b"\n")
            if lines:
                reader.take(json.loads(lines[-1]))
            pause_s = 0.05  # and further pending input
            continue
        used_s = time.process_time()
        changed = reader.examine(time.time())
        pause_s = max(POLL_S, (time.process_time() - used_s) / CPU_SHARE)
        if changed or time.monotonic() - said_at > ALIVE_S:
            said_at = time.monotonic()
            _say(json.dumps(changed).encode("ascii") + b"\n")
        if reader.done:
            return 0


def _say(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]


if __name__ == "__main__":
    sys.exit(main())
