"""Request bodies: of declared length, or chunked (RFC 9112, 7.1), read strictly and within limits.

Chunk extensions and trailers are skipped within small limits, and a body that consists mostly of framing is refused,
as in Go's net/http. Knows the framing; the reader decides when a body is too large.
"""

from __future__ import annotations

import re
from typing import Any, Protocol

import gevent

MAX_CHUNK_LINE_BYTES = 256  # limit of a chunk's size line, including extensions, which are ignored
MAX_EXCESS_BYTES = 16 * 1024  # limit of framing bytes, more than a sender of small chunks needs
FREE_BYTES_PER_CHUNK = 16
MAX_TRAILERS = 16
MAX_TRAILER_BYTES = 1024
MAX_DISCARD_BYTES = 64 * 1024  # an unread body up to this size is discarded to keep the connection
DISCARD_TIMEOUT_S = 2.0
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"

_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,16})(?:;[^\x00-\x08\x0a-\x1f\x7f]*)?\r\n")
_TRAILER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\x00-\x08\x0a-\x1f\x7f]*\r\n")


class BadBody(OSError):
    """The body violates its coding or is incomplete: the connection cannot be used afterwards."""


class ByteSource(Protocol):
    """The source of the bytes (buffer.SocketReader)."""

    def read(self, size: int) -> bytes: ...

    def readline(self, limit: int) -> bytes: ...

    def spend(self, work: int) -> None: ...


class Body:
    """A readable file object. `abandoned`: the rest is not read, so the connection must be closed."""

    __slots__ = ("_continue", "_excess", "_left", "_source", "abandoned", "chunked", "ended")

    def __init__(self, source: ByteSource, length: int | None, chunked: bool, asks_to_go_on: Any = None) -> None:
        """`asks_to_go_on`: the socket of a client that waits for 100 (Continue) before it sends the body."""
        self._source = source
        self._left = 0 if chunked else length or 0  # of the body, or of the chunk
        self._excess = 0
        self._continue = asks_to_go_on
        self.chunked = chunked
        self.ended = not chunked and not length
        self.abandoned = False

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, fewer only at the end; without a size, the rest. Raises BadBody."""
        if self.ended or not size:
            return b""
        if self._continue is not None:
            sock, self._continue = self._continue, None
            sock.sendall(GO_ON)
        try:
            return self._read_chunks(size) if self.chunked else self._read_piece(size)
        except BadBody:
            self.abandoned = self.ended = True
            raise

    def _read_piece(self, size: int) -> bytes:
        wanted = self._left if size < 0 else min(size, self._left)
        data = self._source.read(wanted)
        if len(data) < wanted:
            raise BadBody("the connection ended in the middle of the body")
        self._left -= wanted
        self.ended = not self._left and not self.chunked
        return data

    def _read_chunks(self, size: int) -> bytes:
        read = bytearray()
        while size < 0 or len(read) < size:
            if not self._left and not self._next_chunk():
                break
            read += self._read_piece(size - len(read) if size >= 0 else -1)
            if not self._left and self._source.read(2) != b"\r\n":
                raise BadBody("a chunk is longer than its size")
        return bytes(read)

    def _next_chunk(self) -> bool:
        """Read the next chunk's header. False: it was the last chunk."""
        self._source.spend(1)
        line = self._source.readline(MAX_CHUNK_LINE_BYTES)
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            raise BadBody("a chunk does not begin with its size")
        self._left = int(found[1], 16)
        if not self._left:
            self._skip_trailers()
            self.ended = True
            return False
        # Counted as in net/http: small chunks are fine, endless extensions are not.
        self._excess = max(0, self._excess + len(line) - FREE_BYTES_PER_CHUNK - 2 * self._left)
        if self._excess > MAX_EXCESS_BYTES:
            raise BadBody("more framing than data")
        return True

    def _skip_trailers(self) -> None:
        for _ in range(MAX_TRAILERS + 1):
            line = self._source.readline(MAX_TRAILER_BYTES)
            if line == b"\r\n":
                return
            if not _TRAILER.fullmatch(line):
                raise BadBody("a trailer is not NAME: VALUE, or too long")
        raise BadBody(f"more than {MAX_TRAILERS} trailers")

    def discard(self) -> None:
        """Discard the rest of a small body so that the connection can be reused; mark a larger one as `abandoned`."""
        if self.ended or self.abandoned:
            return
        if self.chunked or self._left > MAX_DISCARD_BYTES:
            self.abandoned = True
            return
        self._continue = None
        with gevent.Timeout(DISCARD_TIMEOUT_S, False):  # type: ignore[arg-type]
            try:
                self.read()
            except OSError:
                pass
        self.abandoned = not self.ended

    _discard = discard  # as pywsgi calls it
