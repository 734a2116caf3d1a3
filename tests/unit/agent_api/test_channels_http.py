"""Agents and launchers over real connections: first contact, heartbeats, held requests, log bytes, limits."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests.server_process import RunningServer
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"), "web.limits.headers_timeout=1")
    yield running
    running.close()
    assert "Traceback" not in running.log()


class Held:
    """A held request in a thread of its own; `answer` is None until it is answered."""

    def __init__(self, server: RunningServer, path: str, secret: str) -> None:
        self._server = server
        self.answer: Any = None
        self.answered_at = 0.0
        self._thread = threading.Thread(target=self._ask, args=(path, secret), daemon=True)
        self._thread.start()

    def _ask(self, path: str, secret: str) -> None:
        answer = self._server.ask("GET", path, secret=secret, timeout_s=30)
        self.answered_at = time.monotonic()
        self.answer = answer.json

    def wait(self, timeout_s: float = 5.0) -> Any:
        self._thread.join(timeout_s)
        assert self.answer is not None, f"not answered within {timeout_s} s"
        return self.answer


def held_count(server: RunningServer) -> int:
    text = server.ask("GET", "/metrics").body.decode()
    line = next(line for line in text.splitlines() if line.startswith("procguard_held_requests "))
    return int(float(line.split()[1]))


def hold(server: RunningServer, path: str, secret: str) -> Held:
    before = held_count(server)
    held = Held(server, path, secret)
    wait_until(lambda: held_count(server) > before, 5.0, f"{path} is held")
    return held


def raw(server: RunningServer, data: bytes, timeout_s: float = 8.0) -> bytes:
    """Send bytes, read until the server closes."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=timeout_s) as connection:
        connection.sendall(data)
        parts = []
        while part := connection.recv(65536):
            parts.append(part)
        return b"".join(parts)


# ------------------------------------------------------------------------------------------------- first contact


def test_hello_proves_the_fleets_key_to_an_agent_it_knows(server: RunningServer) -> None:
    answer = server.ask("POST", "/api/deployments", {"hosts": [{"host": "hello1", "ssh": {"hostname": "x"}}]}).json
    key = answer["hosts"]["hello1"]["proof_key"]
    reply = server.ask("GET", "/api/hello?agent=hello1&nonce=abc").json
    assert reply["proof"] == messages.manager_proof(key, answer["fleet_id"], "hello1", "abc")
    assert answer["manager_urls"][0].endswith(f":{server.port}")


def test_a_launcher_of_this_machine_registers_without_a_token(server: RunningServer) -> None:
    digest = messages.secret_sha256("launcher-secret")
    body = {"worker_id": "local1", "command": "sleep 9", "host": "here", "secret_sha256": digest}
    answer = server.ask("POST", "/api/workers/register", body)
    assert (answer.status, answer.json["status"], answer.json["agent_id"]) == (200, "registered", "launcher:local1")
    server.ask("POST", "/api/workers/local1/logs?attempt=1&offset=0", b"abc", secret="launcher-secret")
    again = server.ask("POST", "/api/workers/register", body, secret="launcher-secret")
    assert again.json["log_offsets"] == {"1.out": 3}


def test_a_launcher_from_elsewhere_is_pending_until_approved(server: RunningServer) -> None:
    digest = messages.secret_sha256("far-secret")
    body = {"worker_id": "far1", "command": "sleep 9", "host": "far", "secret_sha256": digest}
    far = {"X-Forwarded-For": "192.0.2.1"}
    answer = server.ask("POST", "/api/workers/register", body, far, secret="far-secret")
    assert (answer.status, answer.json["fingerprint"]) == (202, messages.fingerprint(digest))
    heartbeat = messages.encode(messages.AgentHeartbeat("launcher:far1"))
    assert server.ask("POST", "/api/agents/launcher:far1/heartbeat", heartbeat, secret="far-secret").status == 401
    wrong = {"fingerprint": "0000-0000-0000"}
    assert server.ask("POST", "/api/agents/launcher:far1/approve", wrong).status == 404
    right = {"fingerprint": messages.fingerprint(digest)}
    assert server.ask("POST", "/api/agents/launcher:far1/approve", right).status == 200
    answer = server.ask("POST", "/api/workers/register", body, far, secret="far-secret")
    assert answer.json["status"] == "registered"
    assert server.ask("POST", "/api/agents/launcher:far1/heartbeat", heartbeat, secret="far-secret").status == 200


def test_an_enrolment_token_skips_the_wait_and_a_wrong_one_is_refused(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "enroll", "name": "e"}).json["token"]
    body = {"worker_id": "far2", "command": "true", "host": "far", "secret_sha256": messages.secret_sha256("s2")}
    far = {"X-Forwarded-For": "192.0.2.1"}
    assert server.ask("POST", "/api/workers/register", body, far, secret="pg-wrong").status == 401
    assert server.ask("POST", "/api/workers/register", body, far, secret=token).json["status"] == "registered"


def test_an_id_held_elsewhere_is_refused_naming_the_holder(server: RunningServer) -> None:
    secret = server.deploy("holder", "held1")
    server.beat("holder", secret, messages.WorkerReport("held1", state="running", attempt=1, pid=5))
    body = {"worker_id": "held1", "command": "true", "host": "other", "secret_sha256": messages.secret_sha256("x")}
    answer = server.ask("POST", "/api/workers/register", body)
    assert answer.status == 409 and "holder" in answer.json["error"]["message"]


# ---------------------------------------------------------------------------------------------------- heartbeats


def test_a_heartbeat_is_checked_field_by_field(server: RunningServer) -> None:
    secret = server.deploy("hb1", "hbw1")
    path = "/api/agents/hb1/heartbeat"
    for body, named in (
        ({"agent_id": "hb1", "workers": [{"worker_id": "hbw1", "pid": "x"}]}, "workers.0.pid"),
        ({"agent_id": "hb1", "workers": [{"worker_id": "../etc"}]}, "../etc"),
        ({"agent_id": "hb1", "workers": [{"worker_id": "hbw1", "state": "flying"}]}, "workers.0.state"),
        ({"agent_id": "hb1", "workers": [{"worker_id": "hbw1", "reason": "x" * 5000}]}, "workers.reason"),
        ({"agent_id": "other"}, "other"),
        ({}, "agent_id"),
        ([], "a list"),
    ):
        answer = server.ask("POST", path, body, secret=secret)
        assert answer.status == 400 and named in answer.json["error"]["message"], answer.body
    for text in (
        b"{",
        b"",
        b'{"agent_id": "hb1", "at": NaN}',
        b'{"agent_id": "hb1", "at": 1e999}',
        b"\xff",
        b"[" * 9999,
    ):
        assert server.ask("POST", path, text, secret=secret).status == 400, text[:40]
    assert server.ask("POST", path, {"agent_id": "hb1", "from_the_future": 1}, secret=secret).status == 200


def test_a_heartbeat_beyond_bottles_own_limit_is_taken(server: RunningServer) -> None:
    secret = server.deploy("big1", *[f"big-{n}" for n in range(300)])
    reports = [messages.WorkerReport(f"big-{n}", reason="x" * 1000) for n in range(300)]
    assert len(server.beat("big1", secret, *reports)["assignments"]) == 300


def test_an_agents_secret_does_not_open_anothers_routes(server: RunningServer) -> None:
    mine, _ = server.deploy("own1", "ownw1"), server.deploy("own2", "ownw2")
    assert server.ask("GET", "/api/agents/own2/commands", secret=mine).status == 403
    assert server.ask("POST", "/api/workers/ownw2/logs?attempt=1&offset=0", b"x", secret=mine).status == 403
    assert server.ask("POST", "/api/workers/ownw1/command", {"command": "stop"}, secret=mine).status == 403
    assert server.ask("GET", "/api/agents/own1/commands", secret="nonsense").status == 401


# ------------------------------------------------------------------------------------------------- held requests


def test_a_command_answers_the_held_request_at_once(server: RunningServer) -> None:
    secret = server.deploy("poll1", "pollw1")
    reply = server.beat("poll1", secret, messages.WorkerReport("pollw1", state="running", attempt=2, pid=9))
    held = hold(server, f"/api/agents/poll1/commands?wait=20&rev={reply['assignments_rev']}&seq=0", secret)
    began = time.monotonic()
    assert server.ask("POST", "/api/workers/pollw1/command", {"command": "restart"}).status == 202
    answer = held.wait()
    assert [(one["command"], one["attempt"]) for one in answer["commands"]] == [("restart", 2)]
    assert held.answered_at - began < 0.5


def test_the_newest_held_request_supersedes_the_older(server: RunningServer) -> None:
    secret = server.deploy("poll2", "pollw2")
    rev = server.beat("poll2", secret)["assignments_rev"]
    path = f"/api/agents/poll2/commands?wait=20&rev={rev}&seq=0"
    older = hold(server, path, secret)
    newer = Held(server, path, secret)
    answer = older.wait()
    assert answer["commands"] == [] and answer["assignments"] is None and answer["assignments_rev"] == rev
    assert newer.answer is None
    server.ask("POST", "/api/workers/pollw2/command", {"command": "stop"})
    assert newer.wait()["assignments"][0]["desired"] == "stopped"


def test_a_killed_agents_connection_is_noticed_at_once(server: RunningServer) -> None:
    secret = server.deploy("poll3", "pollw3")
    rev = server.beat("poll3", secret)["assignments_rev"]
    before = held_count(server)
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        request = (
            f"GET /api/agents/poll3/commands?wait=25&rev={rev} HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {secret}\r\n\r\n"
        )
        connection.sendall(request.encode())
        wait_until(lambda: held_count(server) > before, 5.0, "the request is held")
    wait_until(lambda: held_count(server) == before, 2.0, "the closed connection was noticed", every_s=0.005)


def test_a_held_request_ends_empty_after_its_wait(server: RunningServer) -> None:
    secret = server.deploy("poll4", "pollw4")
    rev = server.beat("poll4", secret)["assignments_rev"]
    began = time.monotonic()
    answer = server.ask("GET", f"/api/agents/poll4/commands?wait=0.3&rev={rev}", secret=secret)
    assert answer.json["commands"] == [] and 0.25 < time.monotonic() - began < 3.0


def test_the_plain_form_works_for_one_worker(server: RunningServer) -> None:
    body = {"worker_id": "plain1", "command": "true", "host": "p", "secret_sha256": messages.secret_sha256("plain")}
    server.ask("POST", "/api/workers/register", body)
    path = "/api/workers/plain1"
    beat = {"state": "running", "pid": 42, "attempt": 1}
    reply = server.ask("POST", f"{path}/heartbeat", beat, secret="plain")
    assert (reply.status, reply.json["desired"]) == (200, "running")
    held = hold(server, f"{path}/command?wait=20", "plain")
    assert server.ask("POST", f"{path}/command", {"command": "restart"}).status == 202
    assert [one["command"] for one in held.wait()["commands"]] == ["restart"]
    assert server.ask("GET", "/api/remote-workers/plain1").json["pid"] == 42


@pytest.mark.slow
def test_ending_the_manager_answers_held_requests(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        secret = server.deploy("end1", "endw1")
        rev = server.beat("end1", secret)["assignments_rev"]
        held = hold(server, f"/api/agents/end1/commands?wait=25&rev={rev}", secret)
        began = time.monotonic()
    finally:
        server.close()
    assert held.wait()["commands"] == []
    assert time.monotonic() - began < 5.0


# ------------------------------------------------------------------------------------------------------ log bytes


def test_log_bytes_are_acknowledged_by_length(server: RunningServer) -> None:
    secret = server.deploy("log1", "logw1")
    path = "/api/workers/logw1/logs?attempt=1&stream=out"
    assert server.ask("POST", f"{path}&offset=0&at=5.0", b"one\n", secret=secret).json == {"acked": 4}
    assert server.ask("POST", f"{path}&offset=0", b"", secret=secret).json == {"acked": 4}
    beyond = server.ask("POST", f"{path}&offset=10", b"x", secret=secret)
    assert (beyond.status, beyond.json["acked"], beyond.error_code) == (409, 4, "log_gap")
    assert server.ask("POST", f"{path}&offset=10&gap=1", b"two\n", secret=secret).json == {"acked": 14}
    assert server.ask("POST", f"{path}&offset=4", b"", secret=secret).json == {"acked": 14}
    assert server.ask("POST", "/api/workers/logw1/logs?stream=up", b"x", secret=secret).status == 400
    assert server.ask("POST", "/api/workers/logw1/logs?offset=-1", b"x", secret=secret).status == 400


def test_a_backlog_reports_when_its_bytes_were_written(server: RunningServer) -> None:
    secret = server.deploy("log3", "logw3")
    path = "/api/workers/logw3/logs?attempt=1&offset=0&at=1000"
    reported = server.ask("POST", f"{path}&times=4:60000,8:3600500,99:1", b"one\ntwo\nthree\n", secret=secret)
    assert reported.json == {"acked": 14}
    lines = server.ask("GET", "/api/remote-workers/logw3/logs?format=json&since=1050").json["lines"]
    assert [(line["text"], line["at"]) for line in lines] == [("two", 1060.0), ("three", 4600.5)]
    for wrong in ("4", "4:x", "8:1,4:2", "0:1", "4:1,,8:2", "-4:1"):
        answer = server.ask("POST", f"{path}&times={wrong}", b"one\ntwo\nthree\n", secret=secret)
        assert (answer.status, "times" in answer.json["error"]["message"]) == (400, True), wrong


def test_4_megabytes_of_log_are_taken_and_more_is_refused_unread(server: RunningServer) -> None:
    secret = server.deploy("log2", "logw2")
    path = "/api/workers/logw2/logs?attempt=1&offset=0"
    assert server.ask("POST", path, b"x" * messages.MAX_LOG_POST_BYTES, secret=secret).status == 200
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {secret}\r\nContent-Length: {10**11}\r\n\r\n"
    )
    answer = raw(server, head.encode() + b"x" * 1000)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"body_too_large" in answer


def test_an_endless_chunked_body_is_cut_at_the_cap(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(
            b"POST /api/workers/w1/command HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sent = 0
        try:
            for _ in range(2000):
                connection.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
        except OSError:
            pass
        assert sent < 60_000_000


# --------------------------------------------------------------------------------------------- slow and broken peers


def test_headers_that_dribble_are_cut_off(server: RunningServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=8) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: loc")
        began = time.monotonic()
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408 ") and b'"code":"too_slow"' in answer
    assert 0.5 < time.monotonic() - began < 5.0


@pytest.mark.slow
def test_who_says_nothing_for_long_is_hung_up_on_but_who_waits_for_us_is_not(tmp_path: Path) -> None:
    server = RunningServer(tmp_path, "web.limits.idle_timeout=0.6", "web.limits.unproven_timeout=0.6")
    try:
        secret = server.deploy("patient", "p1")
        rev = server.beat("patient", secret)["assignments_rev"]
        held = Held(server, f"/api/agents/patient/commands?wait=3&rev={rev}", secret)
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", server.port), timeout=8) as connection:
            assert connection.recv(100) == b""
        assert 0.5 < time.monotonic() - began < 3.0
        held.wait()
        assert held.answered_at - began > 2.5
    finally:
        server.close()


def test_the_short_way_of_a_heartbeat_answers_as_the_long_one(server: RunningServer) -> None:
    """An escaped character sends the same request through the application's routes."""
    secret = server.deploy("both", "both1")
    beat = messages.encode(messages.AgentHeartbeat("both", at=time.time(), pid=5))
    for body, headers in ((beat, {}), (beat, {"Authorization": "Bearer wrong"}), ({"agent_id": 7}, {}), (b"{", {})):
        short, long = (
            server.ask("POST", f"/api/agents/{path}/heartbeat", body, {"Authorization": f"Bearer {secret}", **headers})
            for path in ("both", "bot%68")
        )
        assert short.status == long.status
        heads = [{name: value for name, value in one.headers.items()} for one in (short, long)]
        for head in heads:
            assert len(head.pop("X-Request-Id")) == 16
            head.pop("Date"), head.pop("Content-Length")
        assert heads[0] == heads[1]
        if short.status != 200:
            answers = [one.json["error"] for one in (short, long)]
            assert answers[0].pop("request_id") != answers[1].pop("request_id")
            assert answers[0] == {**answers[1], "next": answers[0]["next"]}
        else:
            assert short.json == long.json


def test_requests_that_follow_each_other_in_one_packet_are_all_answered(server: RunningServer) -> None:
    ask = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    post = b"POST /api/agents/nobody/heartbeat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}"
    last = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    answer = raw(server, ask + post + ask + last)
    assert answer.count(b"HTTP/1.1 200 ") == 3 and answer.count(b'"code"') == 1


def test_answers_on_one_connection_come_without_delay(server: RunningServer) -> None:
    """Without TCP_NODELAY each keep-alive answer waits 40 ms."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=5)
    took = []
    for _ in range(10):
        began = time.monotonic()
        connection.request("GET", "/healthz")
        connection.getresponse().read()
        took.append(time.monotonic() - began)
    connection.close()
    assert sorted(took)[5] < 0.03


@pytest.mark.slow
def test_strangers_that_register_too_often_must_wait(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        body = {"worker_id": "w", "command": "true", "secret_sha256": "0" * 64}
        statuses = [
            server.ask("POST", "/api/workers/register", body, {"X-Forwarded-For": "1.2.3.4"}).status for _ in range(160)
        ]
        assert statuses[0] == 202 and 429 in statuses
        assert server.ask("POST", "/api/workers/register", {**body, "worker_id": "mine"}).status == 200
    finally:
        server.close()
