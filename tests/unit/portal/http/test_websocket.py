"""Every bug of gevent-websocket 0.10.1 that the repaired module must not have, against the running manager."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from remote_agent.protocol import messages
from tests.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, RawWebSocket, encode
from tests.server_process import RunningManager, RunningServer
from tests.waiting import Stopwatch, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The manager with its usual configuration."""
    running = RunningManager(tmp_path_factory.mktemp("manager"))
    running.deploy("h1", "w1")
    yield running
    running.close()
    assert "Traceback" not in running.log()
    assert "Traceback" not in (running.directory / "manager.log").read_text(errors="replace")


@pytest.fixture(scope="module")
def pinging(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    """The same with short intervals: pings twice a second, reaps after 1.5 s."""
    running = RunningServer(tmp_path_factory.mktemp("server"), "test.ping_s=0.5", "test.reap_s=1.5")
    running.deploy("h1", "w1")
    yield running
    running.close()
    assert "Traceback" not in running.log()


def connect(server: RunningServer, **options: object) -> RawWebSocket:
    client = RawWebSocket(server.port, **options)  # type: ignore[arg-type]
    assert client.accepted
    assert client.message()["t"] == "hello"
    return client


def clients(server: RunningServer) -> int:
    text = server.ask("GET", "/metrics").body.decode()
    line = next(line for line in text.splitlines() if line.startswith("procguard_websocket_clients "))
    return int(float(line.split()[1]))


def ship(server: RunningServer, worker: str, data: bytes, offset: int) -> int:
    answer = server.ask("POST", f"/api/workers/{worker}/logs?attempt=1&offset={offset}", data, secret="secret-of-h1")
    assert answer.status == 200, answer.body
    return int(answer.json["acked"])


# ------------------------------------------------------------------------------------------------------ handshake


@pytest.mark.parametrize(
    "headers, status, code",
    [
        ({"Origin": "http://evil.example"}, 403, "foreign_origin"),
        ({"Origin": "null"}, 403, "foreign_origin"),
        ({"Sec-Fetch-Site": "cross-site"}, 403, "foreign_origin"),
        ({"Sec-WebSocket-Key": "short"}, 400, "bad_handshake"),
        ({"Sec-WebSocket-Key": "!!!not base64!!!"}, 400, "bad_handshake"),
        ({"Sec-WebSocket-Key": ""}, 400, "bad_handshake"),
        ({"Sec-WebSocket-Version": "8"}, 426, "bad_websocket_version"),
        ({"Connection": "close"}, 400, "bad_handshake"),
    ],
)
def test_bad_handshakes_are_refused_before_the_101(
    server: RunningServer, headers: dict[str, str], status: int, code: str
) -> None:
    with RawWebSocket(server.port, headers) as client:
        assert client.status == status
        assert f'"code":"{code}"'.encode() in client.body()


def test_the_portals_own_page_is_let_in(server: RunningServer) -> None:
    headers = {"Origin": f"http://localhost:{server.port}", "Sec-Fetch-Site": "same-origin"}
    with RawWebSocket(server.port, headers=headers) as client:
        assert client.accepted
        assert client.message()["t"] == "hello"


def test_who_is_no_operator_gets_close_code_4401(server: RunningServer) -> None:
    for headers in ({"X-Forwarded-For": "1.2.3.4"}, {"Host": "evil.example"}, {"Authorization": "Bearer wrong"}):
        with RawWebSocket(server.port, headers) as client:
            assert client.accepted
            assert client.close_code() == 4401


@pytest.mark.slow
def test_a_revoked_token_ends_its_connection(pinging: RunningServer) -> None:
    token = pinging.ask("POST", "/api/tokens", {"name": "ws"}).json
    with connect(pinging, headers={"Authorization": f"Bearer {token['token']}"}) as client:
        pinging.ask("DELETE", f"/api/tokens/{token['token_id']}")
        assert client.close_code() == 4401


# --------------------------------------------------------------------------------------------------- frames


def test_pongs_never_land_inside_a_data_frame(server: RunningServer) -> None:
    """A flood of pings while large messages are written: every frame still parses."""
    with connect(server) as client:
        client.say({"t": "sub", "topic": "logs:w1"})
        client.until("snap")
        stop = threading.Event()

        def flood() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.001):
                    client.socket.sendall(encode(PING, b"x" * 100) * 20)

        pinger = threading.Thread(target=flood, daemon=True)
        pinger.start()
        try:
            offset = ship(server, "w1", b"", 0)
            for _ in range(5):
                offset = ship(server, "w1", b"y" * 500_000 + b"\n", offset)
            received = 0
            pongs = 0
            while received < 5 * 500_001:
                frame = client.frame()
                assert frame is not None
                assert frame.opcode in (TEXT, PONG, PING)
                pongs += frame.opcode == PONG
                if frame.opcode == TEXT and frame.json["t"] == "log":
                    received += len(frame.json["text"])
            assert pongs > 0
        finally:
            stop.set()
            # The flood may be waiting for the server to read: let it out.
            client.socket.shutdown(socket.SHUT_RDWR)
            pinger.join(5)


def test_many_senders_at_once_tear_no_frame_and_lose_none(server: RunningServer) -> None:
    """A log, changes of the fleet, responses to invalid input and pongs on the same connection: each frame is
    complete, and each topic's numbers follow one another."""
    with connect(server) as client:
        for topic in ("workers", "events", "logs:w1"):
            client.say({"t": "sub", "topic": topic})
        seqs = {}
        for _ in range(3):
            snap = client.until("snap")
            seqs[snap["topic"]] = snap["seq"]
        offset = ship(server, "w1", b"", 0)

        def change() -> None:
            for n in range(20):
                verb = ("stop", "start")[n % 2]
                assert server.ask("POST", "/api/workers/w1/command", {"command": verb}).status == 202

        def write() -> None:
            at = offset
            for _ in range(20):
                at = ship(server, "w1", b"s" * 60_000 + b"\n", at)

        def ping() -> None:
            for _ in range(200):
                client.send(PING, b"p" * 100)
                client.send(TEXT, b"nonsense")

        senders = [threading.Thread(target=work, daemon=True) for work in (change, write, ping)]
        for sender in senders:
            sender.start()
        received = pongs = errors = 0
        while received < 20 * 60_001 or errors < 200:
            frame = client.frame()
            assert frame is not None and frame.opcode in (TEXT, PONG, PING)
            pongs += frame.opcode == PONG
            if frame.opcode != TEXT:
                continue
            message = frame.json
            if message["t"] == "error":
                errors += 1
                continue
            assert message["prev"] == seqs[message["topic"]]
            seqs[message["topic"]] = message["seq"]
            received += len(message.get("text", ""))
        assert pongs > 0
        for sender in senders:
            sender.join(10)


@pytest.mark.slow
def test_two_hundred_clients_at_once_learn_of_a_change_and_are_forgotten_when_they_go(server: RunningServer) -> None:
    before = clients(server)
    with contextlib.ExitStack() as stack:
        many = [stack.enter_context(RawWebSocket(server.port, timeout_s=90.0)) for _ in range(200)]
        for client in many:
            assert client.accepted
            client.say({"t": "sub", "topic": "workers"})
        for client in many:
            client.until("snap")
        assert clients(server) == before + 200
        server.ask("POST", "/api/workers/w1/command", {"command": "stop"}, timeout_s=60)
        server.ask("POST", "/api/workers/w1/command", {"command": "start"}, timeout_s=60)
        first = [client.until("delta") for client in many]
        assert {(delta["seq"], delta["set"][0]["worker_id"]) for delta in first} == {(first[0]["seq"], "w1")}
    wait_until(lambda: clients(server) == before, 60, "all of them are forgotten")


def test_a_megabyte_of_text_holds_nobody_up(server: RunningServer) -> None:
    """Unmasking byte by byte in Python took 257 ms of the event loop."""
    with connect(server) as client:
        client.send(TEXT, b'{"t":"' + b"x" * 1_000_000 + b'"}')
        watch = Stopwatch(server.process.pid)
        assert client.until("error")
        assert watch.seconds < 0.2


def test_nonsense_is_answered_and_the_connection_lives_on(server: RunningServer) -> None:
    with connect(server) as client:
        for payload in (b"{", b"[]", b'{"t":"sub"}', b'{"t":"sub","topic":"nope"}', b'{"t":"sub","topic":"logs:../x"}'):
            client.send(TEXT, payload)
            assert client.until("error")["message"]
        client.send(BINARY, b"\x00\x01")
        assert client.until("error")
        client.say({"t": "sub", "topic": "hosts", "seq": "x"})
        assert client.until("snap")


# ------------------------------------------------------------------------------------------- slow and silent peers


@pytest.fixture
def patient(tmp_path: Path) -> Iterator[RunningServer]:
    """A server with the usual times: it reaps nobody within a test."""
    running = RunningServer(tmp_path)
    running.deploy("h1", "w1")
    yield running
    running.close()


@pytest.mark.slow
def test_a_stalled_reader_delays_nobody_and_is_closed_with_4408(patient: RunningServer) -> None:
    server = patient
    stalled = connect(server, receive_buffer=4096)
    with stalled, connect(server) as quick:
        for client in (stalled, quick):
            client.say({"t": "sub", "topic": "logs:w1"})
        quick.until("snap")
        offset, slowest = ship(server, "w1", b"", 0), 0.0
        for _ in range(12):
            began = time.monotonic()
            offset = ship(server, "w1", b"z" * 1_000_000 + b"\n", offset)
            received = 0
            while received < 1_000_001:
                received += len(quick.until("log")["text"])
            slowest = max(slowest, time.monotonic() - began)
        assert slowest < 1.0
        assert stalled.close_code() == 4408


def test_a_silent_peer_is_pinged_and_reaped(pinging: RunningServer) -> None:
    before = clients(pinging)
    with connect(pinging) as client:
        assert clients(pinging) == before + 1
        frame = client.frame()
        assert frame is not None and frame.opcode == PING
        wait_until(lambda: clients(pinging) == before, 5.0, "the silent client is gone")
        assert client.close_code() == 1006


@pytest.mark.slow
def test_a_peer_that_answers_pings_stays(pinging: RunningServer) -> None:
    with connect(pinging) as client:
        ends = time.monotonic() + 2.5
        client.socket.settimeout(2.0)
        while time.monotonic() < ends:
            frame = client.frame()
            assert frame is not None and frame.opcode == PING
            client.send(PONG, frame.payload)


def test_a_peer_that_vanishes_in_the_middle_of_a_frame_is_forgotten(server: RunningServer) -> None:
    before = clients(server)
    client = connect(server)
    client.socket.sendall(encode(TEXT, b"x" * 1000)[:500])
    client.close()
    wait_until(lambda: clients(server) == before, 5.0, "the client is gone")


@pytest.mark.slow
def test_ending_the_manager_says_goodbye(tmp_path_factory: pytest.TempPathFactory) -> None:
    server = RunningServer(tmp_path_factory.mktemp("ending"))
    try:
        with connect(server) as client:
            server.process.terminate()
            assert client.close_code() == 1001
            client.send(CLOSE, struct.pack("!H", 1001))
    finally:
        server.close()
    assert server.process.returncode == 0, "it had to be killed"


# ------------------------------------------------------------------------------------------------- the live topics


def test_a_change_reaches_the_page_at_once_with_rising_sequence_numbers(server: RunningServer) -> None:
    with connect(server) as client:
        client.say({"t": "sub", "topic": "workers", "seq": 0})
        snap = client.until("snap")
        assert [item["worker_id"] for item in snap["items"]] == ["w1"]
        watch = Stopwatch(server.process.pid)
        server.ask("POST", "/api/workers/w1/command", {"command": "stop"})
        delta = client.until("delta")
        assert watch.seconds < 0.5
        assert (delta["prev"], delta["seq"]) == (snap["seq"], snap["seq"] + 1)
        assert delta["set"][0]["desired"] == "stopped"
    with connect(server) as again:
        again.say({"t": "sub", "topic": "workers", "seq": snap["seq"]})
        assert again.message() == delta, "what was missed is sent again instead of a snapshot"
        again.say({"t": "sub", "topic": "workers", "seq": 10_000})
        assert again.until("snap")["seq"] >= delta["seq"]


def test_events_and_hosts_arrive_live(server: RunningServer) -> None:
    with connect(server) as client:
        client.say({"t": "sub", "topic": "events"})
        client.say({"t": "sub", "topic": "hosts"})
        assert {client.until("snap")["topic"], client.until("snap")["topic"]} == {"events", "hosts"}
        server.deploy("h9", "w9")
        kinds: list[str] = []
        hosts: list[str] = []
        while "deploy" not in kinds or "h9" not in hosts:
            delta = client.until("delta")
            kinds += [event["kind"] for event in delta.get("add", [])]
            hosts += [host["host"] for host in delta.get("set", []) if delta["topic"] == "hosts"]


def test_a_log_is_followed_without_cutting_characters(server: RunningServer) -> None:
    server.beat("h1", "secret-of-h1", messages.WorkerReport("w1", state="running", attempt=7))
    path = "/api/workers/w1/logs?attempt=7"
    text = "进度 50 %\n".encode()
    with connect(server) as client:
        client.say({"t": "sub", "topic": "logs:w1"})
        client.until("snap")
        server.ask("POST", f"{path}&offset=0", text[:4], secret="secret-of-h1")
        server.ask("POST", f"{path}&offset=4", text[4:], secret="secret-of-h1")
        pieces = [client.until("log"), client.until("log")]
    assert "".join(piece["text"] for piece in pieces) == "进度 50 %\n"
    assert [(piece["offset"], piece["end"]) for piece in pieces] == [(0, 3), (3, len(text))]


def test_a_log_is_sent_by_credit_and_who_fell_behind_restarts(server: RunningServer) -> None:
    """A page that does not render is sent no more than its credit; missed data is in the store."""
    with connect(server) as client:
        client.say({"t": "sub", "topic": "logs:w1"})
        client.until("snap")
        client.say({"t": "credit", "topic": "logs:w1", "n": 100_000})
        client.say({"t": "credit", "topic": "logs:w1", "n": -1})
        client.until("error")  # and so the first credit is there
        offset = ship(server, "w1", b"", 0)
        for _ in range(5):
            offset = ship(server, "w1", b"c" * 80_000 + b"\n", offset)
        assert [len(client.until("log")["text"]) for _ in range(2)] == [80_001, 80_001], "the second began within it"
        client.say({"t": "sub", "topic": "hosts"})
        assert client.message()["t"] == "snap", "nothing more of the log"
        client.say({"t": "credit", "topic": "logs:w1", "n": 100_000})
        assert client.until("behind")["topic"] == "logs:w1"
        client.say({"t": "sub", "topic": "logs:w1"})
        assert client.until("snap")["topic"] == "logs:w1"
        offset = ship(server, "w1", b"afterwards\n", offset)
        assert client.until("log")["text"] == "afterwards\n"
