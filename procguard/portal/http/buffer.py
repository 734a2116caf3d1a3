"""Reads a connection's data from its socket. An idle connection holds no buffer.

A file object for readers of bodies and WebSocket frames; `head` returns the head of a request. A BufferedReader would
hold 8 KB for each of tens of thousands of mostly idle connections, and need several calls instead of one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gevent.socket import socket

from procguard.admission.turns import work_of

AT_ONCE_BYTES = 16 * 1024
LARGE_BYTES = 256 * 1024  # a body of this size counts as large


def _nothing(_work: int) -> None:
    """The default `spend`: the work is not accounted."""


class SocketReader:
    """`closed`: no more data will arrive, as for a closed file. `spend(work)` accounts for bytes read and for the work
    done with them; it may block to let other connections run (admission/turns.py)."""

    __slots__ = ("_here", "_sock", "closed", "spend")

    def __init__(self, sock: Any, spend: Callable[[int], None] = _nothing) -> None:
        self._sock = sock
        self.spend = spend
        self._here = b""  # received, but not yet read by the caller
        self.closed = False

    @property
    def ready_bytes(self) -> int:
        return len(self._here)

    def wait(self) -> bool:
        """Wait for data; False if the peer has closed the connection."""
        if self._here:
            return True
        sock = self._sock
        kind: Any = type(sock)
        if kind is socket:  # usually no data is available yet, and a recv without data costs an exception
            sock._wait(sock._read_event)  # TLS may have buffered more data than was read, so it is queried directly
        return self._more(AT_ONCE_BYTES)

    def begins_with(self, data: bytes) -> bool:
        """Whether the received data begins with this prefix."""
        return self._here.startswith(data)

    def head(self) -> bytes:
        """The data up to and including the first empty line; empty if it has not arrived completely."""
        end = self._here.find(b"\r\n\r\n") + 4
        if end < 4:
            return b""
        head, self._here = self._here[:end], self._here[end:]
        return head

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or fewer if the peer has closed the connection; without a size, everything until then."""
        if 0 <= size <= len(self._here):
            data, self._here = self._here[:size], self._here[size:]
            return data
        read, self._here = bytearray(self._here), b""  # not a list: a peer may send it byte by byte
        while size < 0 or size - len(read) > AT_ONCE_BYTES:
            data = self._receive(min(size - len(read), LARGE_BYTES) if size >= 0 else LARGE_BYTES)
            if not data:
                return bytes(read)
            read += data
        left = size - len(read)
        while left > len(self._here) and self._more(AT_ONCE_BYTES):  # together with the data that follows, in one call
            pass
        read += self._here[:left]
        self._here = self._here[left:]
        return bytes(read)

    def readline(self, limit: int = -1) -> bytes:
        """Read up to and including the next line feed, at most `limit` bytes; less if the peer has closed the
        connection."""
        searched = 0
        while True:
            end = self._here.find(b"\n", searched) + 1
            if 0 <= limit <= (end or len(self._here)):
                return self.read(limit)
            if end:
                return self.read(end)
            searched = len(self._here)
            if not self._more(AT_ONCE_BYTES):
                return self.read(searched)

    def close(self) -> None:
        self.closed = True
        self._here = b""

    def _more(self, size: int) -> bool:
        data = self._receive(size)
        self._here = self._here + data if self._here else data
        return bool(data)

    def _receive(self, size: int) -> bytes:
        data: bytes = self._sock.recv(size)
        if data:
            self.spend(work_of(len(data)))
        else:
            self.closed = True
        return data
