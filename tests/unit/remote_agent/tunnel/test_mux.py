"""Many connections over one stream: data and ends of connections arrive at the other end."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from remote_agent.tunnel import mux
from remote_agent.tunnel.mux import CLOSE, DATA, OPEN, PING, Frames, Mux, MuxEnded, Wire, frame
from tests.waiting import wait_until


class SocketWire(Wire):
    """A stream over a socket pair. `has_fileno`: whether it supports polling for writability."""

    def __init__(self, sock: socket.socket, has_fileno: bool = True) -> None:
        self.sock = sock
        self.has_fileno = has_fileno
        sock.setblocking(False)

    def fileno(self) -> int:
        return self.sock.fileno()

    def write_fileno(self) -> int:
        return self.duplicate if self.has_fileno else -1

    @property
    def duplicate(self) -> int:
        if not hasattr(self, "_duplicate"):
            self._duplicate = os.dup(self.sock.fileno())
        return self._duplicate

    def read(self) -> bytes:
        try:
            data = self.sock.recv(4096)
        except BlockingIOError:
            return b""
        if not data:
            raise MuxEnded("the peer closed")
        return data

    def write(self, data: bytes) -> int:
        try:
            return self.sock.send(data)
        except BlockingIOError:
            return 0


class Ends:
    """Both ends of a tunnel in threads, and a server behind it that runs `serve` for each connection."""

    def __init__(self, serve: Any, has_fileno: bool = True) -> None:
        self.server = socket.create_server(("127.0.0.1", 0))
        self.door = socket.create_server(("127.0.0.1", 0))
        self.serve = serve
        here, there = socket.socketpair()
        self.wires = [SocketWire(here), SocketWire(there, has_fileno)]
        self.host = Mux(self.wires[0], accept=self.door)
        self.manager = Mux(self.wires[1], connect=self._dial)
        self.why: list[str] = []
        for one in (self.host, self.manager):
            threading.Thread(target=self._run, args=(one,), daemon=True).start()
        threading.Thread(target=self._serve, daemon=True).start()

    def connect(self) -> socket.socket:
        return socket.create_connection(self.door.getsockname(), timeout=20)

    def cut(self) -> None:
        for wire in self.wires:
            with contextlib.suppress(OSError):
                wire.sock.shutdown(socket.SHUT_RDWR)

    def _dial(self) -> socket.socket:
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(self.server.getsockname())
        return sock

    def _run(self, one: Mux) -> None:
        try:
            one.run()
        except (MuxEnded, OSError) as exc:
            self.why.append(str(exc))

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.server.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(sock,), daemon=True).start()


def echo(sock: socket.socket) -> None:
    with sock, contextlib.suppress(OSError):
        while data := sock.recv(65536):
            sock.sendall(data)


def read_exactly(sock: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = sock.recv(65536)
        assert piece, f"ended after {len(data)} of {size} bytes"
        data += piece
    return data


@pytest.fixture
def ends() -> Iterator[Ends]:
    made = Ends(echo)
    yield made
    made.cut()
    made.server.close()
    made.door.close()


def test_frames_are_cut_out_of_any_pieces() -> None:
    whole = frame(1, OPEN) + frame(1, DATA, b"hello") + frame(7, DATA, b"") + frame(1, CLOSE) + frame(0, PING)
    for size in (1, 2, 7, 9, len(whole)):
        frames = Frames()
        found = [one for at in range(0, len(whole), size) for one in frames.feed(whole[at : at + size])]
        assert found == [(1, OPEN, b""), (1, DATA, b"hello"), (7, DATA, b""), (1, CLOSE, b""), (0, PING, b"")]


@pytest.mark.parametrize("has_fileno", [True, False])
def test_large_bodies_of_several_connections_arrive_whole(has_fileno: bool) -> None:
    """More than all buffers hold, from both sides at once, also if the stream cannot be polled for writability."""
    ends = Ends(echo, has_fileno)
    bodies = [os.urandom(3_000_000) for _ in range(3)]
    got: dict[int, bytes] = {}

    def talk(number: int) -> None:
        with ends.connect() as sock:
            sending = threading.Thread(target=sock.sendall, args=(bodies[number],), daemon=True)
            sending.start()
            got[number] = read_exactly(sock, len(bodies[number]))

    threads = [threading.Thread(target=talk, args=(number,)) for number in range(3)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(30)
    assert [got.get(number) == bodies[number] for number in range(3)] == [True] * 3
    wait_until(lambda: ends.host.connections == 0, 10, "no connection left")
    ends.cut()


def test_a_connection_that_ends_here_ends_there(ends: Ends) -> None:
    first, second = ends.connect(), ends.connect()
    for sock in (first, second):
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"
    first.close()
    wait_until(lambda: ends.manager.connections == 1, 10, "one connection left")
    second.sendall(b"y")
    assert second.recv(1) == b"y"


def test_the_last_bytes_before_a_close_arrive() -> None:
    """As an HTTP response with `Connection: close`."""
    body = os.urandom(1_000_000)

    def answer_and_go(sock: socket.socket) -> None:
        with sock:
            sock.recv(100)
            sock.sendall(body)

    ends = Ends(answer_and_go)
    with ends.connect() as sock:
        sock.sendall(b"GET")
        assert read_exactly(sock, len(body)) == body and sock.recv(1) == b""
    ends.cut()


def test_a_server_that_is_away_closes_the_connection() -> None:
    ends = Ends(echo)
    ends.server.close()
    with ends.connect() as sock:
        assert sock.recv(1) == b""
    ends.cut()


def test_the_end_of_the_stream_closes_every_connection(ends: Ends) -> None:
    sock = ends.connect()
    sock.sendall(b"x")
    assert sock.recv(1) == b"x"
    ends.cut()
    with contextlib.suppress(ConnectionResetError):
        assert sock.recv(1) == b""
    wait_until(lambda: len(ends.why) == 2, 10, "both ends over")


def test_a_peer_that_says_nothing_any_more_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "STEP_S", 0.001)
    now = [0.0]
    here, there = socket.socketpair()
    one = Mux(SocketWire(here), connect=socket.socket, clock=lambda: now[0])

    def passes() -> bool:
        now[0] += 4.0
        return True

    there.setblocking(True)
    with pytest.raises(MuxEnded, match="nothing was heard"):
        one.run(passes, unread=frame(0, PING))
    said = list(Frames().feed(there.recv(65536)))
    assert said and all(kind == PING for _, kind, _ in said)
    assert now[0] > mux.SILENT_S


def test_a_local_end_that_takes_nothing_is_cut_at_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "MAX_WAITING_BYTES", 100_000)
    here, there = socket.socketpair()
    local, stuck = socket.socketpair()
    one = Mux(SocketWire(here), connect=lambda: local)

    def run() -> None:
        with contextlib.suppress(MuxEnded, OSError):
            one.run()

    threading.Thread(target=run, daemon=True).start()
    there.settimeout(10)
    there.sendall(frame(5, OPEN))
    wait_until(lambda: one.connections == 1, 10, "it is open")
    frames, seen = Frames(), []
    for _ in range(200):
        there.sendall(frame(5, DATA, b"x" * 16_000))
        if one.connections == 0:
            break
    while (5, CLOSE, b"") not in seen:
        seen += list(frames.feed(there.recv(65536)))
    assert one.connections == 0
    there.close()
    stuck.close()


def test_a_host_has_one_bound_for_all_its_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    """256 connections of 24 MiB each were 6 GB of the manager's memory."""
    monkeypatch.setattr(mux, "MAX_WAITING_BYTES", 100_000)
    made = receiving()
    for number in range(1, 21):
        made.feed(number, b"x" * 20_000)
    assert made.waiting() <= 100_000 and len(made.mux._ends) == 5
    made.end()
    assert made.mux._waiting_bytes == 0


def test_where_all_hosts_together_keep_too_much_those_above_an_equal_share_give() -> None:
    store = mux.StreamBuffer(100_000)
    modest, greedy = receiving(store), receiving(store)
    modest.feed(1, b"x" * 30_000)
    for number in range(1, 11):
        greedy.feed(number, b"x" * 20_000)
    assert greedy.waiting() <= 60_000 and modest.waiting() == 30_000
    greedy.end()
    modest.feed(2, b"x" * 60_000)
    assert modest.waiting() == 90_000
    modest.end()
    assert store._waiting_bytes == store._streams == 0


def test_connections_begin_no_faster_than_they_may() -> None:
    now = [0.0]
    made = receiving(clock=lambda: now[0])
    for number in range(1, 2_001):
        made.mux._take(frame(number, OPEN) + frame(number, CLOSE))
    assert made.dialled == mux.MAX_CONNECTIONS
    now[0] += 1.0
    for number in range(3_001, 3_101):
        made.mux._take(frame(number, OPEN) + frame(number, CLOSE))
    assert made.dialled == mux.MAX_CONNECTIONS + mux.OPENS_PER_S
    made.end()


def test_who_asks_and_never_reads_the_refusals_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mux, "MAX_OUT_BYTES", 1 << 20)  # as many refusals as may be are seconds of work
    made = receiving(clock=lambda: 0.0)
    with pytest.raises(MuxEnded, match="does not read"):
        for _ in range(100):
            made.mux._take(frame(1, OPEN) * 5_000)
    assert len(made.mux._out) <= mux.MAX_OUT_BYTES + 100
    made.end()


class Receiving:
    """A stream's end whose local connections accept no data, without a thread."""

    def __init__(self, store: mux.StreamBuffer | None, clock: Any) -> None:
        self.dialled = 0
        self.far: list[socket.socket] = []
        here, self.there = socket.socketpair()
        options = {} if clock is None else {"clock": clock}
        self.wire = SocketWire(here)
        self.mux = Mux(self.wire, connect=self._dial, store=store, **options)
        if store is not None:
            store.join(1)
        self._store = store

    def _dial(self) -> socket.socket:
        self.dialled += 1
        near, far = socket.socketpair()
        self.far.append(far)
        return near

    def feed(self, number: int, data: bytes) -> None:
        self.mux._take(frame(number, OPEN) + frame(number, DATA, data))

    def waiting(self) -> int:
        return sum(len(end.waiting) for end in self.mux._ends.values())

    def end(self) -> None:
        for number in list(self.mux._ends):
            self.mux._drop(number, notify=False)
        if self._store is not None:
            self._store.join(-1)
        for one in (*self.far, self.there, self.wire.sock):
            one.close()


def receiving(store: mux.StreamBuffer | None = None, clock: Any = None) -> Receiving:
    return Receiving(store, clock)
