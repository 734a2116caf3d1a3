"""An epoll loop with timers for thousands of connections in one thread, and a minimal HTTP/1.1 client.

Owns sockets and time; knows nothing about agents. The client supports only responses with a Content-Length, which all
responses of the manager have; any other response is an error.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import os
import select
import socket
import time
from collections.abc import Callable
from typing import Protocol

MAX_EVENTS_AT_ONCE = 1024
READ_BYTES = 64 * 1024
BIND_ADDRESS_NO_PORT = 24  # IP_BIND_ADDRESS_NO_PORT of Linux: the port is chosen by connect
SWEEP_EVERY_S = 0.5  # precision of a request's deadline


class Handler(Protocol):
    def on_io(self, events: int) -> None: ...


class Loop:
    """The event loop. `call_at` schedules a call; calls cannot be cancelled, so the callee checks whether it still
    applies."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._waiting: dict[Wire, float] = {}  # request in progress -> its deadline (monotonic)
        self.ending = False
        self.bytes_sent = self.bytes_received = 0
        self.worst_lag_s = 0.0  # delay of the latest timer: the part of the measured delays that this process causes

    def call_at(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._timers, (at, next(self._order), action))

    def watch(self, fd: int, handler: Handler, events: int) -> None:
        self._handlers[fd] = handler
        self._epoll.register(fd, events)

    def change(self, fd: int, events: int) -> None:
        self._epoll.modify(fd, events)

    def unwatch(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def deadline(self, wire: Wire, at: float | None) -> None:
        if at is None:
            self._waiting.pop(wire, None)
        else:
            self._waiting[wire] = at

    def run(self) -> None:
        """Run the loop until `ending` is set."""
        self.call_at(time.monotonic() + SWEEP_EVERY_S, self._sweep)
        while not self.ending:
            self._run_timers()
            wait_s = max(0.0, self._timers[0][0] - time.monotonic()) if self._timers else 1.0
            for fd, events in self._epoll.poll(min(wait_s, 1.0), MAX_EVENTS_AT_ONCE):
                handler = self._handlers.get(fd)
                if handler is not None:
                    handler.on_io(events)

    def close(self) -> None:
        for fd in list(self._handlers):
            os.close(fd)
        self._handlers.clear()
        self._epoll.close()

    def _run_timers(self) -> None:
        """Run the timers that are due now, but not those that they add, so that input is processed in between."""
        now = time.monotonic()
        due = []
        while self._timers and self._timers[0][0] <= now:
            due.append(heapq.heappop(self._timers))
        if due:
            self.worst_lag_s = max(self.worst_lag_s, now - due[0][0])
        for _, _, action in due:
            action()

    def _sweep(self) -> None:
        now = time.monotonic()
        for wire in [wire for wire, at in self._waiting.items() if at <= now]:
            wire.fail("no answer in time", timed_out=True)
        self.call_at(now + SWEEP_EVERY_S, self._sweep)


class Wire:
    """One connection with one request at a time. After each `send`, `answered(status, body)` or `lost(why, timed_out)`
    is called; `lost` also if an idle connection ends. The first `send` opens the connection and calls `opened`."""

    __slots__ = (
        "_address",
        "_answered",
        "_connecting",
        "_loop",
        "_lost",
        "_opened",
        "_out",
        "_read",
        "_sock",
        "_source",
        "_wants_write",
        "busy",
    )

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        answered: Callable[[int, bytes], None],
        lost: Callable[[str, bool], None],
        opened: Callable[[], None] = lambda: None,
        source: str = "",
    ) -> None:
        """`source`: the IPv4 source address; "" for the system's choice."""
        self._loop, self._address, self._source = loop, address, source
        self._answered, self._lost, self._opened = answered, lost, opened
        self._sock: socket.socket | None = None
        self._connecting = self._wants_write = False
        self._out = b""
        self._read = b""
        self.busy = False

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    def send(self, data: bytes, timeout_s: float) -> None:
        assert not self.busy, "one request at a time"
        self.busy = True
        self._loop.deadline(self, time.monotonic() + timeout_s)
        self._out += data
        if self._sock is None:
            self._open()
        elif not self._connecting:
            self._flush()

    def close(self) -> None:
        """Close the connection immediately, without a callback."""
        self.busy = False
        self._loop.deadline(self, None)
        self._out = self._read = b""
        sock, self._sock = self._sock, None
        if sock is not None:
            self._loop.unwatch(sock.fileno())
            sock.close()

    def fail(self, why: str, timed_out: bool = False) -> None:
        self.close()
        self._lost(why, timed_out)

    # -------------------------------------------------------------------------------------------------- inside

    def _open(self) -> None:
        family = socket.AF_INET6 if ":" in self._address[0] else socket.AF_INET
        self._sock = sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._source and family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, BIND_ADDRESS_NO_PORT, 1)
            sock.bind((self._source, 0))
        self._connecting, self._wants_write = True, False
        self._loop.watch(sock.fileno(), self, select.EPOLLOUT)
        problem = sock.connect_ex(self._address)
        if problem not in (0, errno.EINPROGRESS):
            self._fail_later(os.strerror(problem))

    def _fail_later(self, why: str) -> None:
        """Report a failure from the loop, like every other failure, and never during `send`."""
        sock = self._sock

        def notify() -> None:
            if self._sock is sock:
                self.fail(why)

        self._loop.call_at(0.0, notify)

    def on_io(self, events: int) -> None:
        assert self._sock is not None
        if self._connecting:
            problem = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if problem:
                self.fail(os.strerror(problem))
                return
            self._connecting = False
            self._opened()
            self._loop.change(self._sock.fileno(), select.EPOLLIN)
            self._flush()
            return
        if events & select.EPOLLOUT:
            self._flush()
        if self._sock is not None and events & ~select.EPOLLOUT:
            self._receive()

    def _flush(self) -> None:
        assert self._sock is not None
        try:
            sent = self._sock.send(self._out)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            self._fail_later(exc.strerror or str(exc))
            return
        self._out = self._out[sent:]
        self._loop.bytes_sent += sent
        if bool(self._out) != self._wants_write:
            self._wants_write = bool(self._out)
            self._loop.change(self._sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if self._out else 0))

    def _receive(self) -> None:
        assert self._sock is not None
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError as exc:
            self.fail(exc.strerror or str(exc))
            return
        if not data:
            self.fail("the connection was closed")
            return
        self._loop.bytes_received += len(data)
        data = self._read + data if self._read else data
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._read = data
            return
        head = data[:end].lower()
        mark = head.find(b"content-length:")
        if not self.busy or mark < 0 or not head.startswith(b"http/1.1 "):
            self.fail("the answer cannot be used")
            return
        whole = end + 4 + int(head[mark + 15 :].split(b"\r\n", 1)[0])
        if len(data) < whole:
            self._read = data
            return
        self._read = data[whole:]
        self.busy = False
        self._loop.deadline(self, None)
        if head.find(b"connection: close") >= 0:
            self.close()
        self._answered(int(head[9:12]), data[end + 4 : whole])
