"""Limits the bytes held in memory: request bodies that are being received, and data that waits for slow readers.

A sender that waits for room keeps its bytes in its own socket. Knows no HTTP.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import Protocol

import gevent.event

from procguard.errors import LimitExceeded

SMALL_BYTES = 64 * 1024  # no wait up to this size, so that live heartbeats and log lines do not wait behind backlogs
SMALL_STRANGER_BYTES = 4 * 1024
WAIT_S = 8.0
ONE_OF = 4  # a caller may use one part in this many of the known callers' share


class ByteBudget:
    """A number of bytes that requests share; first come, first served."""

    def __init__(self, total_bytes: int) -> None:
        self.left_bytes = total_bytes
        self._waiting: deque[tuple[int, gevent.event.Event]] = deque()

    @contextlib.contextmanager
    def room(self, size_bytes: int, timeout_s: float, crowd: str) -> Iterator[None]:
        """A context that holds `size_bytes`. Raises LimitExceeded (429) with the message `crowd` if they are not
        available within `timeout_s`."""
        with self.taken(size_bytes, timeout_s) as got:
            if not got:
                raise LimitExceeded.for_now(crowd, "send it again", 1)
            yield

    @contextlib.contextmanager
    def taken(self, size_bytes: int, timeout_s: float) -> Iterator[bool]:
        """A context that holds `size_bytes` if they become available within `timeout_s`; its value is whether they
        did."""
        got = self.take(size_bytes) or self._wait(size_bytes, timeout_s)
        try:
            yield got
        finally:
            if got:
                self.give_back(size_bytes)

    def take(self, size_bytes: int) -> bool:
        """Take `size_bytes` if they are available now and no other request waits; returns whether. The caller returns
        them with `give_back`."""
        if self._waiting or size_bytes > self.left_bytes:
            return False
        self.left_bytes -= size_bytes
        return True

    def give_back(self, size_bytes: int) -> None:
        self.left_bytes += size_bytes
        self._wake()

    def _wait(self, size_bytes: int, timeout_s: float) -> bool:
        turn = (size_bytes, gevent.event.Event())
        self._waiting.append(turn)
        try:
            turn[1].wait(timeout_s)
            if turn[1].is_set():  # also if it was set just as the timeout passed
                return True
        except BaseException:
            if turn[1].is_set():  # the bytes were already assigned when this request was killed
                self.left_bytes += size_bytes
            raise
        finally:
            if not turn[1].is_set():
                self._waiting.remove(turn)
            self._wake()
        return False

    def _wake(self) -> None:
        """Assign bytes to waiting requests in order, before they run, so that no other request overtakes them."""
        while self._waiting and self._waiting[0][0] <= self.left_bytes:
            size_bytes, event = self._waiting.popleft()
            self.left_bytes -= size_bytes
            event.set()


class Bodies:
    """Memory for large request bodies. Strangers have a small share of their own, and no known caller may use more than
    a quarter of the known callers' share."""

    CROWD = "too many large bodies at once"

    def __init__(self, known_bytes: int, strangers_bytes: int) -> None:
        self._known = ByteBudget(known_bytes)
        self._strangers = ByteBudget(strangers_bytes)
        self._one_bytes = known_bytes // ONE_OF
        self._by_caller: dict[str, tuple[ByteBudget, int]] = {}  # (its share, number of its requests that use it)

    @contextlib.contextmanager
    def turn(self, size_bytes: int, caller: str) -> Iterator[None]:
        """A context that holds memory for a body of `size_bytes`. `caller`: "" for a stranger. Waits up to WAIT_S, then
        raises LimitExceeded (429)."""
        if size_bytes <= (SMALL_BYTES if caller else SMALL_STRANGER_BYTES):
            yield
            return
        if not caller:
            with self._strangers.room(size_bytes, WAIT_S, self.CROWD):
                yield
            return
        with (
            self._own_share(caller) as own,
            own.room(min(size_bytes, self._one_bytes), WAIT_S, self.CROWD),
            self._known.room(size_bytes, WAIT_S, self.CROWD),
        ):
            yield

    @contextlib.contextmanager
    def _own_share(self, caller: str) -> Iterator[ByteBudget]:
        share, users = self._by_caller.get(caller) or (ByteBudget(self._one_bytes), 0)
        self._by_caller[caller] = (share, users + 1)
        try:
            yield share
        finally:
            share, users = self._by_caller[caller]
            self._by_caller[caller] = (share, users - 1)
            if users == 1:
                del self._by_caller[caller]


class FrameReader(Protocol):
    """A reader with a queue of frames."""

    @property
    def queued_bytes(self) -> int: ...

    def overflow(self) -> None:
        """Drop queued frames or close the reader; `queued_bytes` must be lower afterwards."""
        ...


class SendMemory:
    """Memory for the frames queued for all slow readers. A frame that many readers wait for is in memory once and
    counted once. There is no waiting for room: the reader with the most queued bytes overflows."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[int, tuple[bytes, int]] = {}  # id -> (frame, which keeps its id unique; number of readers)
        self._readers: set[FrameReader] = set()
        self.bytes = 0

    def join(self, reader: FrameReader) -> None:
        self._readers.add(reader)

    def leave(self, reader: FrameReader) -> None:
        self._readers.discard(reader)

    def take(self, frame: bytes) -> None:
        """One more reader waits for this frame. While the limit is exceeded, the reader with the most queued bytes
        overflows."""
        _, waiting = self._held.get(id(frame)) or (frame, 0)
        self._held[id(frame)] = (frame, waiting + 1)
        if waiting:
            return
        self.bytes += len(frame)
        while self.bytes > self._most_bytes:
            most = max(self._readers, key=lambda reader: reader.queued_bytes, default=None)
            if most is None or not most.queued_bytes:
                return  # the rest is being written now
            most.overflow()

    def release(self, frame: bytes) -> None:
        """One reader fewer waits for this frame. Frames that were never taken are ignored."""
        held = self._held.get(id(frame))
        if held is None:
            return
        if held[1] > 1:
            self._held[id(frame)] = (frame, held[1] - 1)
        else:
            del self._held[id(frame)]
            self.bytes -= len(frame)
