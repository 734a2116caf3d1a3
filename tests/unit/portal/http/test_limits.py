"""No caller can monopolize the manager: connections, headers, bodies, buffers of slow readers."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import time
from collections.abc import Iterator

import pytest
from gevent import pywsgi

from procguard.admission.connections import ConnectionHandle, ConnectionLimiter
from procguard.admission.memory import Bodies, SendMemory
from procguard.config.limits import WebLimits
from procguard.errors import LimitExceeded
from procguard.portal.http import server as http_server
from remote_agent.protocol import messages
from tests.raw_websocket import CLOSE, TEXT, RawWebSocket
from tests.server_process import RunningServer
from tests.waiting import wait_until

FEW = [
    "web.limits.unproven_connections=12", "web.limits.unproven_per_address=8", "web.limits.unproven_timeout=2",
    "web.limits.headers_timeout=1.5", "web.limits.headers_size=4096", "web.limits.connections_per_agent=4",
    "web.limits.connections=40", "metrics.cache=0", "web.limits.websocket_memory=1048576",
    "web.limits.websocket_clients=6",
]  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"), *FEW)
    running.deploy("alpha", "worker1")
    yield running
    running.close()
    assert "Traceback" not in running.log()


@pytest.fixture
def calm(server: RunningServer) -> RunningServer:
    """The server, once it has closed the connections of the previous test."""

    def few() -> bool:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer = server.ask("GET", "/metrics")
            lines = [line for line in answer.body.decode().splitlines() if line.startswith("procguard_connections ")]
            return answer.status == 200 and 1 <= float(lines[0].split()[1]) <= 3  # this one is open
        return False

    assert wait_until(few, 10, "the connections of the test before to end", 0.05)
    return server


class Peer:
    """A connection that sends only the given bytes."""

    def __init__(self, port: int, data: bytes = b"") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)
        self.socket.sendall(data)

    def answer(self, timeout_s: float = 5.0) -> bytes:
        """Everything until the manager closes."""
        self.socket.settimeout(timeout_s)
        parts = []
        try:
            while part := self.socket.recv(65536):
                parts.append(part)
        except ConnectionResetError:
            pass
        return b"".join(parts)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.socket.close()


def secret_line(secret: str) -> str:
    return f"Authorization: Bearer {secret}\r\n"


def get(path: str, *lines: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{''.join(lines)}\r\n".encode()


# -------------------------------------------------------------------------------------------------- the book alone


def handles(
    book: ConnectionLimiter, address: str, count: int, cut: list[ConnectionHandle], now: float = 0.0
) -> list[ConnectionHandle]:
    made = []
    for _ in range(count):
        connection_handle = book.admit(address, lambda: None, now)
        assert connection_handle is not None
        connection_handle.cut = lambda connection_handle=connection_handle: cut.append(connection_handle)  # type: ignore[misc]
        made.append(connection_handle)
    return made


def test_of_too_many_strangers_the_longest_silent_one_goes() -> None:
    book, cut = ConnectionLimiter(WebLimits(unproven_connections=8, unproven_per_address=4)), []
    first = handles(book, "192.0.2.1", 4, cut)
    others = [
        connection_handle for number in range(2, 6) for connection_handle in handles(book, f"192.0.2.{number}", 1, cut)
    ]
    assert cut == []
    handles(book, "192.0.2.1", 1, cut, now=2.0)  # a fifth from one address
    assert cut == [first[0]]
    handles(book, "192.0.2.9", 1, cut, now=2.0)  # a ninth in all
    assert cut == [first[0], first[1]] and others[0] not in cut
    assert all(connection_handle.evicted for connection_handle in cut)


def test_a_thousand_known_agents_behind_one_address_are_no_crowd() -> None:
    book, cut = ConnectionLimiter(WebLimits()), []
    for number in range(1000):
        for connection_handle in handles(book, "192.0.2.1", 2, cut):
            connection_handle.prove(f"agent{number}", True)
    assert (len(book), book.unproven_count, cut) == (2000, 0, [])
    strangers = handles(book, "192.0.2.1", 600, cut)
    strangers += handles(book, "192.0.2.1", 1, cut, now=5.0)
    assert set(cut) <= set(strangers) and len(cut) == 601 - WebLimits().unproven_per_address


def test_nobody_is_sent_away_who_had_no_time_to_send_but_a_flood_has_an_end() -> None:
    """After a restart a thousand agents behind one NAT connect at the same moment."""
    book, cut = ConnectionLimiter(WebLimits(unproven_per_address=100, unproven_connections=1000)), []
    handles(book, "192.0.2.1", 400, cut, now=1.0)
    assert cut == []
    handles(book, "192.0.2.1", 10, cut, now=1.5)
    assert len(cut) == 10


def test_an_agent_that_opens_ever_more_loses_its_oldest_and_nobody_else_s() -> None:
    book, cut = ConnectionLimiter(WebLimits(connections_per_agent=4)), []
    other = handles(book, "192.0.2.1", 1, cut)[0]
    other.prove("b", True)
    own = handles(book, "192.0.2.1", 6, cut)
    for connection_handle in own:
        connection_handle.prove("a", True)
    assert cut == own[:2]
    for connection_handle in own:
        connection_handle.leave()
    other.leave()
    assert len(book) == 0


def test_where_all_slots_are_taken_by_known_callers_the_next_one_is_refused() -> None:
    book, cut = ConnectionLimiter(WebLimits(), most=3), []
    known = handles(book, "192.0.2.1", 3, cut)
    for connection_handle in known:
        connection_handle.prove("operator", False)
    assert book.admit("192.0.2.2", lambda: None, 9.0) is None and cut == []
    known[0].leave()
    assert book.admit("192.0.2.2", lambda: None, 9.0) is not None
    assert book.refused["connections"] == 1


# ------------------------------------------------------------------------------------------------------ connections


@pytest.mark.slow
def test_a_silent_stranger_gets_the_reason_while_known_callers_stay(calm: RunningServer) -> None:
    with Peer(calm.port, get("/api/session")) as known, Peer(calm.port) as oldest:
        known.socket.settimeout(5)
        assert b"200" in known.socket.recv(65536)
        time.sleep(1.05)  # it had its time to speak
        crowd = [Peer(calm.port) for _ in range(8)]
        assert b"503" in (answer := oldest.answer()).split(b"\r\n")[0] and b"too_many_connections" in answer
        assert b"Retry-After" in answer
        known.socket.sendall(get("/api/session"))
        assert b"200" in known.socket.recv(65536)
        for peer in crowd:
            peer.socket.close()


@pytest.mark.slow
def test_strangers_are_not_waited_for_long(calm: RunningServer) -> None:
    began = time.monotonic()
    with Peer(calm.port) as silent, Peer(calm.port, b"GET / HTTP/1.1\r\nHost: loc") as dribbling:
        assert b"408" in dribbling.answer().split(b"\r\n")[0]
        assert silent.answer() == b""
    assert time.monotonic() - began < 10


def test_an_evicted_request_is_not_carried_out_by_half(calm: RunningServer) -> None:
    """Its headers never ended: the received part is not a request."""
    half = b"POST /api/workers/worker1/command HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with Peer(calm.port, half) as oldest:
        crowd = [Peer(calm.port) for _ in range(40)]  # four times the limit: no caller has time left
        assert b"202" not in oldest.answer().split(b"\r\n")[0]  # the Date may hold it
        for peer in crowd:
            peer.socket.close()


def test_headers_beyond_their_size_are_refused_before_they_are_all_read(calm: RunningServer) -> None:
    for lines in ([f"X-Long: {'x' * 6000}\r\n"], [f"X-{number}: {'y' * 60}\r\n" for number in range(90)]):
        with Peer(calm.port, get("/healthz", *lines)) as peer:
            answer = peer.answer()
            assert b"431" in answer.split(b"\r\n")[0] and b"headers_too_large" in answer
    assert calm.ask("GET", "/healthz").status == 200


def test_a_body_without_end_is_refused_at_the_cap(calm: RunningServer) -> None:
    head = b"POST /api/workers/register HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
    with Peer(calm.port, head) as peer:
        chunk, sent = b"10000\r\n" + b"x" * 65536 + b"\r\n", 0
        with pytest.raises(OSError):
            while sent < 64 * 2**20:
                peer.socket.sendall(chunk)
                sent += len(chunk)
        assert sent < 32 * 2**20


@pytest.mark.slow
def test_a_slow_body_of_a_stranger_is_given_up(calm: RunningServer) -> None:
    head = b"POST /api/workers/register HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000\r\n\r\n{"
    with Peer(calm.port, head) as peer:
        answer = peer.answer()
        assert b"408" in answer.split(b"\r\n")[0] and b"too_slow" in answer


def test_an_agent_has_so_many_connections_and_the_oldest_goes(calm: RunningServer) -> None:
    secret = "secret-of-alpha"
    poll = get("/api/agents/alpha/commands?wait=20&rev=", secret_line(secret))
    beat = json.dumps(messages.encode(messages.AgentHeartbeat("alpha", pid=7, at=time.time()))).encode()
    head = f"POST /api/agents/alpha/heartbeat HTTP/1.1\r\nHost: x\r\n{secret_line(secret)}Content-Length: {len(beat)}"
    with Peer(calm.port, head.encode() + b"\r\n\r\n" + beat) as oldest:
        oldest.socket.settimeout(5)
        assert b"200" in oldest.socket.recv(65536)
        more = [Peer(calm.port, poll) for _ in range(4)]
        assert oldest.answer().count(b"HTTP/1.1 503") == 1
        for peer in more:
            peer.socket.close()


def test_when_nothing_is_free_the_refusal_comes_at_once_and_later_there_is_room(calm: RunningServer) -> None:
    known = []
    try:
        for _ in range(40):
            known.append(Peer(calm.port, get("/api/session")))
            known[-1].socket.settimeout(5)
            assert b"200" in known[-1].socket.recv(65536)
        crowd = [Peer(calm.port) for _ in range(3)]
        assert any(b"503" in peer.answer().split(b"\r\n")[0] for peer in crowd)
    finally:
        for peer in known:
            peer.socket.close()
    assert wait_until(lambda: calm.ask("GET", "/healthz").status == 200, 5)


# ------------------------------------------------------------------------------------------------------------ bodies


def test_one_caller_s_large_bodies_do_not_take_the_room_of_others() -> None:
    bodies = Bodies(known_bytes=1_000_000, strangers_bytes=100_000)
    with bodies.turn(240_000, "a"), bodies.turn(240_000, "b"), bodies.turn(60_000, "a"):
        with bodies.turn(240_000, "c"):
            pass
    with bodies.turn(90_000, ""), bodies.turn(900_000, "d"), bodies.turn(4_000, ""):
        pass
    assert bodies._by_caller == {}


def test_without_room_in_time_the_sender_gets_retry_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("procguard.admission.memory.WAIT_S", 0.05)
    bodies = Bodies(known_bytes=1_000_000, strangers_bytes=100_000)
    with bodies.turn(90_000, ""), pytest.raises(LimitExceeded, match="large bodies") as refused:
        with bodies.turn(20_000, ""):
            pass
    assert (refused.value.http_status, refused.value.code) == (429, "busy")
    with bodies.turn(90_000, ""):
        pass


# ------------------------------------------------------------------------------------------------------- slow readers


class SlowReader:
    def __init__(self, memory: SendMemory) -> None:
        self.memory, self.frames, self.gone = memory, [], False
        memory.join(self)

    @property
    def queued_bytes(self) -> int:
        return sum(map(len, self.frames))

    def take(self, frame: bytes) -> None:
        self.frames.append(frame)
        self.memory.take(frame)

    def overflow(self) -> None:
        dropped, self.frames, self.gone = self.frames, [], True
        for frame in dropped:
            self.memory.release(frame)


def test_what_many_wait_for_counts_once_and_the_one_with_the_most_goes() -> None:
    memory = SendMemory(10_000)
    readers = [SlowReader(memory) for _ in range(50)]
    shared = b"s" * 4_000
    for reader in readers:
        reader.take(shared)
    assert memory.bytes == 4_000 and not any(reader.gone for reader in readers)
    readers[7].take(b"a" * 3_000)
    readers[3].take(b"b" * 2_000)
    assert memory.bytes == 9_000
    readers[3].take(b"c" * 2_000)  # 11,000: number 3 has the most (8,000 with what is shared)
    assert [index for index, reader in enumerate(readers) if reader.gone] == [3]
    assert memory.bytes == 7_000
    for reader in readers:
        reader.overflow()
    assert memory.bytes == 0


@pytest.mark.slow
def test_portals_that_read_nothing_are_closed_and_the_others_see_everything(calm: RunningServer) -> None:
    with_room = RawWebSocket(calm.port, receive_buffer=4096)
    stalled = [RawWebSocket(calm.port, receive_buffer=4096) for _ in range(4)]
    try:
        for client in (with_room, *stalled):
            client.send(TEXT, b'{"t": "sub", "topic": "logs:worker1", "seq": 0}')
        while with_room.frame().json.get("topic") != "logs:worker1":
            pass
        stored, seen = 0, 0
        for _ in range(60):
            line = b"x" * 100_000 + b"\n"
            path = f"/api/workers/worker1/logs?attempt=1&stream=out&offset={stored}"
            stored = calm.ask("POST", path, line, secret="secret-of-alpha").json["acked"]
            while seen < stored:
                seen = with_room.frame().json["end"]
        assert seen == stored

        def open_portals() -> float:
            text = calm.ask("GET", "/metrics").body.decode()
            return float(next(one for one in text.splitlines() if one.startswith("procguard_websocket_clients "))[28:])

        assert wait_until(lambda: open_portals() == 1, 10)
    finally:
        for client in (with_room, *stalled):
            client.socket.close()


def test_more_portals_than_configured_are_turned_away(calm: RunningServer) -> None:
    clients = [RawWebSocket(calm.port) for _ in range(7)]
    try:
        frame = clients[-1].frame()
        assert frame.opcode == CLOSE and frame.close_code == 4429
    finally:
        for client in clients:
            client.socket.close()


def test_a_port_that_is_used_again_before_its_last_connection_has_ended_here_is_counted_once_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pywsgi.WSGIServer, "do_handle", lambda *_: None)
    monkeypatch.setattr(pywsgi.WSGIServer, "do_close", lambda *_: None)
    server = http_server.Server.__new__(http_server.Server)
    server.book, server._handles, server._handles_of = ConnectionLimiter(WebLimits()), {}, {}
    address = ("127.0.0.1", 4242)
    with socket.socket() as first, socket.socket() as second:
        server.do_handle(first, address)
        server.do_handle(second, address)
        newest = server.connection_handle_of(address)
        server.do_close(first, address)
        assert len(server.book) == 1 and server.connection_handle_of(address) is newest
        server.do_close(second, address)
        assert len(server.book) == 0 and not server._handles and not server._handles_of


def test_a_connection_that_ended_by_itself_is_shut_down_without_harm_to_who_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The admitted connection is independent of the closed one, and needs no additional descriptor."""
    monkeypatch.setattr(pywsgi.WSGIServer, "do_handle", lambda *_: None)
    server = http_server.Server.__new__(http_server.Server)
    server.book = ConnectionLimiter(WebLimits(unproven_connections=8, unproven_per_address=4))
    server._handles, server._handles_of = {}, {}
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(20)]  # none of them is connected
        with monkeypatch.context() as patched:
            patched.setattr(os, "dup", lambda _fd: pytest.fail("a descriptor too many"))
            for number, sock in enumerate(sockets):
                server.do_handle(sock, ("192.0.2.1", number))
        assert len(server._handles_of) == 20 and server.book.refused["unproven_per_address"] == 4
        assert all(sock.fileno() >= 0 for sock in sockets)
