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
MAX_OUT_BYTES = 16 * 1024 * 1024  # one piece of each connection, beyond HIGH_BYTES, are far fewer
MAX_WAITING_BYTES = 24 * 1024 * 1024
MAX_CONNECTIONS = 256
OPENS_PER_S = 20.0  # beyond MAX_CONNECTIONS at once
PING_S, SILENT_S = 5.0, 30.0
RETRY_S = 0.02  # a stream that does not say when it can be written again is asked this often
STEP_S = 1.0


class MuxEnded(Exception):
    """The stream is over; the text says why."""


def frame(number: int, kind: int, data: bytes = b"") -> bytes:
    return HEADER.pack(number, kind, len(data)) + data


class Frames:
    """Cuts what arrives into frames."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> "Iterator[Tuple[int, int, bytes]]":
        """(connection, kind, data) of every frame that is complete now."""
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
    """The byte stream. Both calls never wait."""

    def fileno(self) -> int:
        """Readable when there is something to read, or the stream has ended."""
        raise NotImplementedError

    def write_fileno(self) -> int:
        """A descriptor that is writable when `write` would accept data; -1 if there is none."""
        return -1

    def read(self) -> bytes:
        """Some bytes; b"" if nothing is there after all. Raises MuxEnded, OSError."""
        raise NotImplementedError

    def write(self, data: bytes) -> int:
        """How many bytes were taken, 0 if it is full. Raises MuxEnded, OSError."""
        raise NotImplementedError


class StreamBuffer:
    """A limit on the bytes that wait in all streams of a process together. When it is reached, a stream may keep no
    more than an equal share. Thread-safe."""

    def __init__(self, total_bytes: int) -> None:
        self._total_bytes = total_bytes
        self._lock = threading.Lock()
        self._waiting_bytes = 0
        self._streams = 0

    def join(self, streams: int) -> None:
        with self._lock:
            self._streams += streams

    def add(self, size: int) -> None:
        """This much more is buffered; negative: less."""
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
        self.waiting = bytearray()  # for it, from the stream
        self.closing = False  # the other end has closed: this one ends with the last byte


class Mux:
    """`accept`: a listening socket whose connections go over the stream; `connect`: makes the local end of a connection
    that begins at the other end (a non-blocking socket, connected or on its way; may raise OSError). One of both."""

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
        self._waiting_bytes = 0  # for all local ends
        self._opens, self._opens_at = float(MAX_CONNECTIONS), clock()
        self._accept = accept
        self._connect = connect
        self._clock = clock
        self._frames = Frames()
        self._ends: Dict[int, _End] = {}
        self._next = 0
        self._out = bytearray()  # for the stream
        self._selector = selectors.DefaultSelector()
        self._received_at = self._sent_at = clock()

    @property
    def connections(self) -> int:
        return len(self._ends)

    def run(self, goes_on: "Callable[[], bool]" = lambda: True, unread: bytes = b"") -> None:
        """Carry until the stream ends. Raises MuxEnded, OSError; closes every local connection on its way out.

        `goes_on` is asked about once a second; `unread`: what was read of the stream already.
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

    # -------------------------------------------------------------------------------------------------- one turn

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
        """Watch a socket for writing only while data waits for it, and for reading only while the output has room."""
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
            self._drop(number, notify=False)  # the other end has forgotten the earlier one
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
        with contextlib.suppress(OSError):  # it has left again
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
