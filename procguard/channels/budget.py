"""How many bytes of request bodies may be in memory at once: after an outage a whole fleet sends its backlog.

First come, first served; who waits keeps its bytes in its own socket. Knows no HTTP. Used from the event loop only.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator

import gevent.event


class ByteBudget:
    def __init__(self, total_bytes: int) -> None:
        self.left_bytes = total_bytes
        self._waiting: deque[tuple[int, gevent.event.Event]] = deque()

    @contextlib.contextmanager
    def taken(self, size_bytes: int, timeout_s: float) -> Iterator[bool]:
        """Whether `size_bytes` could be had in time; they are given back at the end."""
        got = self._take(size_bytes, timeout_s)
        try:
            yield got
        finally:
            if got:
                self.left_bytes += size_bytes
                self._wake()

    def _take(self, size_bytes: int, timeout_s: float) -> bool:
        if not self._waiting and size_bytes <= self.left_bytes:
            self.left_bytes -= size_bytes
            return True
        turn = (size_bytes, gevent.event.Event())
        self._waiting.append(turn)
        try:
            turn[1].wait(timeout_s)
            if turn[1].is_set():  # also where it came together with the end of its time
                return True
        except BaseException:
            if turn[1].is_set():  # it was ours already when this request was ended
                self.left_bytes += size_bytes
            raise
        finally:
            if not turn[1].is_set():
                self._waiting.remove(turn)
            self._wake()
        return False

    def _wake(self) -> None:
        """Whose turn it is gets its bytes before it runs, so that nobody overtakes it."""
        while self._waiting and self._waiting[0][0] <= self.left_bytes:
            size_bytes, event = self._waiting.popleft()
            self.left_bytes -= size_bytes
            event.set()
