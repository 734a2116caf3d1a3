"""Multiplexes connections over one byte stream: the traffic of a tunnel between the manager and a host.

Used at both ends (relay.py on the host, the manager's tunnels at the other), one thread each. A frame consists of the
connection's number, a kind and a length, followed by the bytes. Limits: once HIGH_BYTES are waiting to be written, at
most one frame per connection is read ahead; once MAX_WAITING_BYTES are waiting for the local ends of all
connections, the connection with the most is closed (a request and its response are far smaller); new connections are
limited to OPENS_PER_S. Several streams can share a `Store`. An end that receives nothing for SILENT_S closes: a
half-open connection looks like an idle one, so each end sends at least every PING_S.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
import time

from remote_agent.protocol.hints import Any, Callable, Dict, Iterator, Optional, Tuple

HEADER = struct.Struct(">IBH")
OPEN, DATA, CLOSE, PING = 1, 2, 3, 4
PIECE_BYTES = 16 * 1024
HIGH_BYTES = 256 * 1024
MAX_OUT_BYTES = 16 * 1024 * 1024  # never reached by one frame per connection beyond HIGH_BYTES
MAX_WAITING_BYTES = 24 * 1024 * 1024
MAX_CONNECTIONS = 256
OPENS_PER_S = 20.0  # after a burst of MAX_CONNECTIONS
PING_S, SILENT_S = 5.0, 30.0
RETRY_S = 0.02  # poll interval of a stream that cannot signal when it is writable
STEP_S = 1.0


class MuxEnded(Exception):
    """The stream has ended; the text gives the reason."""


def frame(number: int, kind: int, data: bytes = b"") -> bytes:
    return HEADER.pack(number, kind, len(data)) + data


class Frames:
    """Splits received bytes into frames."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> "Iterator[Tuple[int, int, bytes]]":
        """Add received bytes. Yields (connection, kind, data) of every complete frame."""
        self._unread += data
        begin = 0
        while len(self._unread) - begin >= HEADER.size:
            number, kind, length = HEADER.unpack_from(self._unread, begin)
            end = begin + HEADER.size + length
            if len(self._unread) < end:
                break
            yield number, kind, bytes(self._unread[begin + HEADER.size : end])
            begin = end
        del self._unread[:begin]


class Wire:
    """The byte stream. `read` and `write` never block."""

    def fileno(self) -> int:
        """The descriptor that is readable when there is data or the stream has ended."""
        raise NotImplementedError

    def write_fileno(self) -> int:
        """The descriptor that is writable when `write` would accept data; -1 if there is none."""
        return -1

    def read(self) -> bytes:
        """Read some bytes; b"" if there are none. Raises MuxEnded, OSError."""
        raise NotImplementedError

    def write(self, data: bytes) -> int:
        """Write data. Returns the number of bytes accepted, 0 if the stream is full. Raises MuxEnded, OSError."""
        raise NotImplementedError


class StreamBuffer:
    """The limit of buffered bytes in all streams of a process. Once it is reached, each stream may buffer only an equal
    share. Safe to use from several threads."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._streams = 0

    def join(self, streams: int) -> None:
        with self._lock:
            self._streams += streams

    def add(self, size: int) -> None:
        """Add to the number of buffered bytes; a negative `size` subtracts."""
        with self._lock:
            self._waiting_bytes += size

    def allows(self, stream_bytes: int) -> bool:
        """Whether one stream may buffer this much now."""
        with self._lock:
            full = self._waiting_bytes > self._total_bytes
            return not full or stream_bytes * self._streams <= self._total_bytes


class _End:
    """The local end of one connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.waiting = bytearray()  # received from the stream, not yet written to this end
        self.closing = False  # the other end has closed: close after the last byte


class Mux:
    """One end of the multiplexer. Exactly one is given: `accept`, a listening socket whose connections are carried over
    the stream; or `connect`, which creates the local end of a connection opened by the other end (a non-blocking
    socket, connected or connecting; may raise OSError)."""

    def __init__(
        self,
        wire: Wire,
        accept: "Optional[socket.socket]" = None,
        connect: "Optional[Callable[[], socket.socket]]" = None,
        clock: "Callable[[], float]" = time.monotonic,
        store: "Optional[StreamBuffer]" = None,
    ) -> None:
        self._wire = wire
        self._store = store
        self._waiting_bytes = 0  # of all local ends together
        self._opens, self._opens_at = float(MAX_CONNECTIONS), clock()
        self._accept = accept
        self._connect = connect
        self._clock = clock
        self._frames = Frames()
        self._ends: Dict[int, _End] = {}
        self._next = 0
        self._out = bytearray()  # not yet written to the stream
        self._selector = selectors.DefaultSelector()
        self._received_at = self._sent_at = clock()

    @property
    def connections(self) -> int:
        return len(self._ends)

    def run(self, goes_on: "Callable[[], bool]" = lambda: True, unread: bytes = b"") -> None:
        """Forward bytes until the stream ends. Raises MuxEnded, OSError; closes every local connection at the end.

        `goes_on` is called about once a second; False ends the stream. `unread`: bytes already read from the stream.
        """
        self._selector.register(self._wire, selectors.EVENT_READ)
        if self._store is not None:
            self._store.join(1)
        if self._accept is not None:
            self._accept.setblocking(False)
            self._selector.register(self._accept, selectors.EVENT_READ)
        try:
            self._take(unread)
            while goes_on():
                self._step()
        finally:
            for end in self._ends.values():
                end.sock.close()
            self._ends.clear()
            self._count(-self._waiting_bytes)
            if self._store is not None:
                self._store.join(-1)
            self._selector.close()

    # -------------------------------------------------------------------------------------------------- one round

    def _step(self) -> None:
        self._watch_writing()
        can_watch = self._wire.write_fileno() >= 0
        for key, ready in self._selector.select(RETRY_S if self._out and not can_watch else STEP_S):
            if key.fileobj is self._wire:
                self._take(self._wire.read())
            elif key.fileobj is self._accept:
                self._accept_one()
            elif key.data is not None:
                self._serve(key.data, ready)
        now = self._clock()
        if now - self._received_at > SILENT_S:
            raise MuxEnded(f"nothing was heard for {SILENT_S:.0f} s")
        if now - self._sent_at > PING_S:
            self._send(0, PING)
        self._flush()

    def _watch_writing(self) -> None:
        """Watch for writability only where bytes are waiting, and read only what could be passed on."""
        room = len(self._out) < HIGH_BYTES
        for number, end in self._ends.items():
            events = (selectors.EVENT_READ if room and not end.closing else 0) | (
                selectors.EVENT_WRITE if end.waiting or end.closing else 0
            )
            self._watch(end.sock, events, number)
        if self._wire.write_fileno() >= 0:
            self._watch(self._wire.write_fileno(), selectors.EVENT_WRITE if self._out else 0, None)

    def _watch(self, what: Any, events: int, data: Any) -> None:
        known = self._selector.get_map().get(what)
        if known is None and events:
            self._selector.register(what, events, data)
        elif known is not None and not events:
            self._selector.unregister(what)
        elif known is not None and known.events != events:
            self._selector.modify(what, events, data)

    def _take(self, data: bytes) -> None:
        if data:
            self._received_at = self._clock()
        for number, kind, payload in self._frames.feed(data):
            end = self._ends.get(number)
            if kind == OPEN and self._connect is not None:
                self._open(number)
            elif kind == DATA and end is not None:
                end.waiting += payload
                self._count(len(payload))
                self._make_room()
            elif kind == CLOSE and end is not None:
                end.closing = True
                if not end.waiting:
                    self._drop(number, notify=False)

    def _count(self, size: int) -> None:
        self._waiting_bytes += size
        if self._store is not None:
            self._store.add(size)

    def _make_room(self) -> None:
        while self._waiting_bytes > MAX_WAITING_BYTES or not (
            self._store is None or self._store.allows(self._waiting_bytes)
        ):
            most = max(self._ends, key=lambda number: len(self._ends[number].waiting))
            if not self._ends[most].waiting:
                return
            self._drop(most, notify=True)

    def _may_open(self) -> bool:
        now = self._clock()
        self._opens = min(float(MAX_CONNECTIONS), self._opens + (now - self._opens_at) * OPENS_PER_S)
        self._opens_at = now
        if self._opens < 1.0 or len(self._ends) >= MAX_CONNECTIONS:
            return False
        self._opens -= 1.0
        return True

    def _open(self, number: int) -> None:
        assert self._connect is not None
        if number in self._ends:
            self._drop(number, notify=False)  # the other end no longer has the earlier connection of this number
        try:
            if not self._may_open():
                raise OSError("too many connections")
            sock = self._connect()
        except OSError:
            self._send(number, CLOSE)
            return
        sock.setblocking(False)
        self._ends[number] = _End(sock)

    def _accept_one(self) -> None:
        assert self._accept is not None
        with contextlib.suppress(OSError):  # the peer has disconnected meanwhile
            sock, _ = self._accept.accept()
            if len(self._ends) >= MAX_CONNECTIONS:
                sock.close()
                return
            sock.setblocking(False)
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._next = self._next % 0xFFFFFFF0 + 1
            self._ends[self._next] = _End(sock)
            self._send(self._next, OPEN)

    def _serve(self, number: int, ready: int) -> None:
        end = self._ends.get(number)
        if end is None:
            return
        try:
            if ready & selectors.EVENT_WRITE:
                if end.waiting:
                    sent = end.sock.send(end.waiting[:PIECE_BYTES])
                    del end.waiting[:sent]
                    self._count(-sent)
                if end.closing and not end.waiting:
                    self._drop(number, notify=False)
                    return
            if ready & selectors.EVENT_READ:
                data = end.sock.recv(PIECE_BYTES)
                if not data:
                    self._drop(number, notify=not end.closing)
                    return
                self._send(number, DATA, data)
        except BlockingIOError:
            return
        except OSError:
            self._drop(number, notify=not end.closing)

    def _drop(self, number: int, notify: bool) -> None:
        end = self._ends.pop(number)
        self._count(-len(end.waiting))
        if end.sock.fileno() in self._selector.get_map():
            self._selector.unregister(end.sock)
        end.sock.close()
        if notify:
            self._send(number, CLOSE)

    def _send(self, number: int, kind: int, data: bytes = b"") -> None:
        if len(self._out) > MAX_OUT_BYTES:
            raise MuxEnded("the other end asks and does not read")
        self._out += frame(number, kind, data)
        self._sent_at = self._clock()

    def _flush(self) -> None:
        while self._out:
            taken = self._wire.write(bytes(self._out[:PIECE_BYTES]))
            if not taken:
                return
            del self._out[:taken]
