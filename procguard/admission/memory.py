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

SMALL_BYTES = 64 * 1024  # what a live heartbeat or log line has: it never waits behind backlogs
SMALL_STRANGER_BYTES = 4 * 1024
WAIT_S = 8.0
ONE_OF = 4  # a caller's part of the known callers' share


class ByteBudget:
    """Bytes that may be taken by all together; first come, first served."""

    def __init__(self, total_bytes: int) -> None:
        self.left_bytes = total_bytes
        self._waiting: deque[tuple[int, gevent.event.Event]] = deque()

    @contextlib.contextmanager
    def room(self, size_bytes: int, timeout_s: float, crowd: str) -> Iterator[None]:
        """`size_bytes`, given back at the end. Raises LimitExceeded (429) where they can't be had in time; `crowd` says
        who has them."""
        with self.taken(size_bytes, timeout_s) as got:
            if not got:
                raise LimitExceeded.for_now(crowd, "send it again", 1)
            yield

    @contextlib.contextmanager
    def taken(self, size_bytes: int, timeout_s: float) -> Iterator[bool]:
        """Whether `size_bytes` could be had in time; they are given back at the end."""
        got = self.take(size_bytes) or self._wait(size_bytes, timeout_s)
        try:
            yield got
        finally:
            if got:
                self.give_back(size_bytes)

    def take(self, size_bytes: int) -> bool:
        """Whether they can be had now, without overtaking anybody. `give_back` them."""
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


class Bodies:
    """Larger bodies of requests: strangers have a small share of their own, and no known caller takes more than a
    quarter of what the known ones have."""

    CROWD = "too many large bodies at once"

    def __init__(self, known_bytes: int, strangers_bytes: int) -> None:
        self._known = ByteBudget(known_bytes)
        self._strangers = ByteBudget(strangers_bytes)
        self._one_bytes = known_bytes // ONE_OF
        self._by_caller: dict[str, tuple[ByteBudget, int]] = {}  # its share, how many of its requests use it

    @contextlib.contextmanager
    def turn(self, size_bytes: int, caller: str) -> Iterator[None]:
        """Room for a body of that size; `caller` "" for a stranger. Raises LimitExceeded (429)."""
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
    """Somebody for whom frames wait."""

    @property
    def queued_bytes(self) -> int: ...

    def overflow(self) -> None:
        """Give up what waits, and the reader: it must end with less than before."""
        ...


class SendMemory:
    """Frames that wait for slow readers, all of them together. One that many wait for is in memory once, and counts
    once. Nobody waits for room here: the reader with the most has to go."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[int, tuple[bytes, int]] = {}  # id -> frame (kept alive: ids stay unique), how many wait for it
        self._readers: set[FrameReader] = set()
        self.bytes = 0

    def join(self, reader: FrameReader) -> None:
        self._readers.add(reader)

    def leave(self, reader: FrameReader) -> None:
        self._readers.discard(reader)

    def take(self, frame: bytes) -> None:
        """One more waits for this frame. Where that is too much, the reader with the most has to go."""
        _, waiting = self._held.get(id(frame)) or (frame, 0)
        self._held[id(frame)] = (frame, waiting + 1)
        if waiting:
            return
        self.bytes += len(frame)
        while self.bytes > self._most_bytes:
            most = max(self._readers, key=lambda reader: reader.queued_bytes, default=None)
            if most is None or not most.queued_bytes:
                return  # what is left is being written right now
            most.overflow()

    def release(self, frame: bytes) -> None:
        """One less waits for it; nothing for a frame that was never taken."""
        held = self._held.get(id(frame))
        if held is None:
            return
        if held[1] > 1:
            self._held[id(frame)] = (frame, held[1] - 1)
        else:
            del self._held[id(frame)]
            self.bytes -= len(frame)
