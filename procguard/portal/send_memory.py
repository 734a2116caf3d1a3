"""How much waits to be sent to slow readers, all of them together. A frame that many wait for is in memory once, and
counts once. Knows frames as bytes and clients by what they do; event loop only."""

from __future__ import annotations

from typing import Protocol


class Reader(Protocol):
    """Somebody for whom frames wait."""

    @property
    def queued_bytes(self) -> int: ...

    def overflow(self) -> None:
        """Give up what waits, and the reader: it must end with less than before."""
        ...


class SendMemory:
    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._held: dict[int, tuple[bytes, int]] = {}  # id -> frame (kept alive: ids stay unique), how many wait for it
        self._readers: set[Reader] = set()
        self.bytes = 0

    def join(self, reader: Reader) -> None:
        self._readers.add(reader)

    def leave(self, reader: Reader) -> None:
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
