"""One open `follow` of a log: receives byte runs, returns complete lines, and the unfinished last line as it grows.

As text it behaves like a terminal: an unfinished line is shown at once and rewritten when it changes, as progress bars
are. As JSON, such a line is an object with `"partial": true`; a later one with the same (attempt, stream, offset)
replaces it. Bounded: a reader that is too slow loses bytes, which is reported.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Any

from procguard.admission.memory import ByteBudget
from procguard.agent_api import http_io
from procguard.agent_api.long_poll import LongPoll
from procguard.portal.logs.fetch import MOST_BYTES
from procguard.portal.logs.matching import Matching
from procguard.portal.logs.query import LogQuery
from procguard.portal.logs.reader import LogLine
from procguard.portal.logs.store import LogStore
from remote_agent.logs.grep import last_state

MAX_FOLLOWER_BYTES = 4 * 1024 * 1024
MAX_PARTIAL_LINE_BYTES = 64 * 1024
Key = tuple[int, str]  # attempt, stream


class Follower:
    def __init__(
        self,
        worker_id: str,
        query: LogQuery,
        sock: Any,
        shared: ByteBudget | None = None,
        matching: Matching | None = None,
        held: contextlib.ExitStack | None = None,
    ) -> None:
        """`shared`: the budget of pending bytes of all followers. `held`: released when the reader has gone."""
        self._matching = matching or Matching()
        self._held = held or contextlib.ExitStack()
        self.worker_id = worker_id
        self.poll = LongPoll(f"follow:{worker_id}", "", sock)
        self._query = query
        self._runs: deque[tuple[int, str, int, bytes, float]] = deque()
        self._held_bytes = 0
        self._shared = shared or ByteBudget(MAX_FOLLOWER_BYTES)
        self._dropped_bytes = 0
        self._shown_to: dict[Key, int] = {}  # bytes before this offset were shown, or are waiting
        self._store: LogStore | None = None
        self._partial: dict[Key, _Begun] = {}  # unfinished lines
        self._screen = _Screen()

    def take(self, attempt: int, stream: str, offset: int, data: bytes, at: float) -> None:
        query = self._query
        if query.attempt not in (None, attempt) or query.stream not in (None, stream):
            return
        if self._held_bytes + len(data) > MAX_FOLLOWER_BYTES or not self._shared.take(len(data)):
            self._dropped_bytes += len(data)
        else:
            self._runs.append((attempt, stream, offset, data, at))
            self._held_bytes += len(data)
        self.poll.wake()

    def _release(self, size: int) -> None:
        self._held_bytes -= size
        self._shared.give_back(size)

    def end(self) -> None:
        """The reader has gone."""
        self._runs.clear()
        self._release(self._held_bytes)
        self.poll.release()
        self._held.close()

    def begin(self, lines: list[LogLine], store: LogStore) -> bytes:
        """The first output. The newest attempt's last line may be unfinished."""
        self._store = store
        if self._query.resume is not None:
            self._shown_to.update(self._query.resume.offsets)
        newest = max((line.attempt for line in lines), default=0)
        whole: list[LogLine] = []
        begun: Key | None = None
        for line in lines:
            key = (line.attempt, line.stream)
            self._shown_to[key] = max(self._shown_to.get(key, 0), line.end)
            if line.partial and line.attempt == newest:
                start = max(line.offset, line.end - MAX_PARTIAL_LINE_BYTES)
                so_far = store.read(self.worker_id, line.attempt, line.stream, start, line.end)
                self._partial[key] = _Begun(line.offset, so_far, line.at)
                begun = key
            else:
                whole.append(line)
        # Finished lines were filtered when they were read. An earlier attempt's last line may be unfinished.
        unsure = self._kept([line for line in whole if line.partial])
        shown = [self._whole(_key(line), line) for line in whole if not line.partial or line in unsure]
        if begun is not None:
            shown.append(self._growing(begun))
        return b"".join(shown)

    def next_chunk(self) -> bytes:
        """Everything that is new; empty when there is nothing."""
        ended: list[LogLine] = []
        last: Key | None = None
        while self._runs:
            attempt, stream, offset, data, at = self._runs.popleft()
            self._release(len(data))
            last = (attempt, stream)
            known = self._shown_to.get(last, 0)
            if offset > known and self._store is not None and self._store.hosts_hold() and not self._dropped_bytes:
                ended.extend(self._missing(self._store, last, known, offset))
            self._shown_to[last] = max(known, offset + len(data))
            skip = max(0, known - offset)
            ended.extend(self._lines(last, offset + skip, data[skip:], at))
        parts = [self._whole(_key(line), line) for line in self._kept(ended)]
        if last in self._partial:
            parts.append(self._growing(last))
        if self._dropped_bytes:
            text = f"[procguard: {self._dropped_bytes:,} bytes not shown, this reader is too slow]"
            parts.append(self._whole((0, ""), LogLine(0, "out", 0, 0.0, text, marker=True)))
            self._dropped_bytes = 0
        return b"".join(parts)

    def _missing(self, store: LogStore, key: Key, start: int, end: int) -> Iterator[LogLine]:
        """The lines before the received bytes, which after a takeover may be on the worker's host only; a marker if
        they cannot be fetched. A line that continues in the received bytes is kept as their beginning."""
        store.fetch(self.worker_id, *key, MOST_BYTES, await_host=True)
        self._partial.pop(key, None)  # complete in the following bytes
        for line in store.beside(store.between, self.worker_id, *key, start, end):
            if line.end <= end:
                yield line
            else:
                begun = store.read(self.worker_id, *key, line.offset, end)
                self._partial[key] = _Begun(line.offset, begun, line.at)

    def _kept(self, lines: list[LogLine]) -> list[LogLine]:
        """The lines that match. Expressions never run on the event loop."""
        wanted = self._query.expression
        if wanted is None or not lines:
            return lines
        return self._matching.matching(wanted, lines, lambda: not self.poll.ending)

    def _lines(self, key: Key, offset: int, data: bytes, at: float) -> Iterator[LogLine]:
        begun = self._partial.pop(key, None)
        start, before = (begun.offset, begun.data) if begun else (offset, b"")
        *whole, rest = data.split(b"\n")
        for part in whole:
            offset += len(part) + 1
            yield _ended(key, start, before + part, at, offset)
            start, before = offset, b""
        if before + rest:
            self._partial[key] = _Begun(start, before + rest, at)
            if len(self._partial[key].data) > MAX_PARTIAL_LINE_BYTES:
                yield _ended(key, start, self._partial.pop(key).data, at, offset + len(rest))

    def _whole(self, key: Key, line: LogLine) -> bytes:
        if self._query.as_json:
            return http_io.dumps(line.as_json()) + b"\n"
        return self._screen.line(key, line.text).encode("utf-8", "replace")

    def _growing(self, key: Key) -> bytes:
        """The unfinished line so far. With an expression, lines are shown only when complete."""
        begun = self._partial[key]
        text = last_state(begun.data).decode("utf-8", "replace")
        if self._query.expression is not None:
            return b""
        if not self._query.as_json:
            return self._screen.growing(key, text).encode("utf-8", "replace")
        rewinds = begun.data.endswith(b"\r")
        return (
            http_io.dumps(LogLine(*key, begun.offset, begun.at, text, partial=True, rewinds=rewinds).as_json()) + b"\n"
        )


def _key(line: LogLine) -> Key:
    return line.attempt, line.stream


def _ended(key: Key, offset: int, line: bytes, at: float, end: int) -> LogLine:
    return LogLine(*key, offset, at, last_state(line).decode("utf-8", "replace"), end)


class _Begun:
    """An unfinished line. Text overwritten after a carriage return is discarded."""

    def __init__(self, offset: int, data: bytes, at: float) -> None:
        self.offset = offset
        self.at = at
        rewound = data.rfind(b"\r", 0, len(data.rstrip(b"\r")))
        self.data = data[rewound + 1 :]


class _Screen:
    """The content of the reader's last line, so that output can continue or overwrite it."""

    def __init__(self) -> None:
        self._key: Key | None = None
        self._text = ""

    def line(self, key: Key, text: str) -> str:
        said = self.growing(key, text) if key == self._key else ("\n" if self._key else "") + text
        self._key, self._text = None, ""
        return said + "\n"

    def growing(self, key: Key, text: str) -> str:
        if key != self._key:
            said = ("\n" if self._key else "") + text
        elif text.startswith(self._text):
            said = text[len(self._text) :]
        else:
            said = "\r" + text.ljust(len(self._text))
        self._key, self._text = key, text
        return said
