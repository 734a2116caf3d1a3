"""Streams opened with a token, a session or a secret end at once when it is revoked."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gevent
import pytest

from procguard.agent_api.interface import Principal
from procguard.portal.auth.live_uses import SWEEP_EVERY_S, LiveUses
from tests.raw_websocket import Frame, RawWebSocket
from tests.server_process import RunningServer
from tests.waiting import Stopwatch, wait_until

AT_ONCE_S = 1.0
BIG_LOG_BYTES = 24 * 1024 * 1024


class Location:
    def __init__(self, directory: Path) -> None:
        self.server = RunningServer(directory)
        self.secret = self.server.deploy("alpha", "worker1")
        self.rev = self.server.beat("alpha", self.secret)["assignments_rev"]
        piece = b"x" * 1023 + b"\n"
        for offset in range(0, BIG_LOG_BYTES, 4 * 1024 * 1024):
            path = f"/api/workers/worker1/logs?attempt=1&stream=out&offset={offset}"
            assert self.server.ask("POST", path, piece * 4096, secret=self.secret).status == 200

    def token(self, scope: str = "viewer", **more: Any) -> tuple[str, str]:
        """(id, text)"""
        made = self.server.ask("POST", "/api/tokens", {"scope": scope, "name": "t", **more})
        assert made.status == 201, made.body
        return made.json["token_id"], made.json["token"]

    def revoke(self, token_id: str) -> None:
        assert self.server.ask("DELETE", f"/api/tokens/{token_id}").status == 200

    def log_in(self, token: str) -> dict[str, str]:
        answer = self.server.ask("POST", "/api/login", {"token": token})
        assert answer.status == 200, answer.body
        cookie = answer.headers["Set-Cookie"].partition(";")[0]
        return {"Cookie": cookie, "X-ProcGuard-CSRF": answer.json["csrf"]}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Location]:
    made = Location(tmp_path_factory.mktemp("live"))
    yield made
    made.server.close()


class Stream:
    """A request with a response in progress. `begun` has read its first bytes."""

    def __init__(self, port: int, path: str, headers: dict[str, str], method: str = "GET") -> None:
        self.socket = socket.socket()
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 256 * 1024)  # what is large waits in the manager
        self.socket.settimeout(10)
        self.socket.connect(("127.0.0.1", port))
        lines = "".join(f"{name}: {value}\r\n" for name, value in {"Host": f"m:{port}", **headers}.items())
        self.socket.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode())

    def begun(self) -> bytes:
        data = self.socket.recv(4096)
        assert data.startswith(b"HTTP/1.1 200"), data
        return data

    def rest(self) -> int:
        """Bytes until the manager ends the connection."""
        size = 0
        with contextlib.suppress(ConnectionError):
            while data := self.socket.recv(65536):
                size += len(data)
        return size


STREAMS = {
    "a followed log": "/api/remote-workers/worker1/logs?follow=1&tail=1",
    "a followed log as JSON": "/api/remote-workers/worker1/logs?follow=1&format=json&tail=1",
    "a search that goes on": "/api/log-search?text=x&format=jsonl&timeout=30",
    "a download": "/api/remote-workers/worker1/logs?download=1&attempt=1&stream=out",
}


@pytest.mark.parametrize("what", STREAMS)
@pytest.mark.parametrize("by", ["token revoked", "token expired", "log-out"])
def test_an_answer_that_is_still_coming_ends_with_the_right_to_it(place: Location, what: str, by: str) -> None:
    token_id, token = place.token(**({"expires_in_s": 1} if by == "token expired" else {}))
    made = time.monotonic()
    browser = place.log_in(token) if by == "log-out" else {}
    stream = Stream(place.server.port, STREAMS[what], browser or {"Authorization": f"Bearer {token}"})
    with contextlib.closing(stream.socket):
        stream.begun()
        if by == "token revoked":
            place.revoke(token_id)
        elif by == "log-out":
            assert place.server.ask("POST", "/api/logout", {}, browser).status == 200
        else:
            # a reader that is quick enough would have had all of a download before it finished is noticed
            time.sleep(max(0.0, made + 1.0 + SWEEP_EVERY_S + 0.2 - time.monotonic()))
        watch = Stopwatch(place.server.process.pid)
        size = stream.rest()
        assert watch.seconds < AT_ONCE_S
        assert size < BIG_LOG_BYTES // 4  # what was on its way


@pytest.mark.parametrize("by", ["token revoked", "token expired", "session's token revoked", "log-out"])
def test_a_live_feed_ends_with_the_right_to_it(place: Location, by: str) -> None:
    token_id, token = place.token(**({"expires_in_s": 2} if by == "token expired" else {}))
    made = time.monotonic()
    browser = place.log_in(token) if "session" in by or by == "log-out" else {}
    feed = RawWebSocket(place.server.port, {"Host": "m:1", **(browser or {"Authorization": f"Bearer {token}"})})
    with contextlib.closing(feed):
        assert _frame(feed).json["t"] == "hello"
        if by == "log-out":
            assert place.server.ask("POST", "/api/logout", {}, browser).status == 200
        elif by != "token expired":
            place.revoke(token_id)
        else:
            time.sleep(max(0.0, made + 2.0 - time.monotonic()))
        watch = Stopwatch(place.server.process.pid)
        assert _frame(feed).close_code == 4401
        assert watch.seconds < AT_ONCE_S


def _frame(feed: RawWebSocket) -> Frame:
    frame = feed.frame()
    assert frame is not None
    return frame


@pytest.mark.parametrize("by", ["agent's token revoked", "agents.revoke", "another secret", "operator's token revoked"])
def test_a_held_request_ends_with_the_right_to_it(place: Location, by: str) -> None:
    server = place.server
    secret = server.deploy("beta", "worker2", secret="of beta")
    rev = server.beat("beta", secret)["assignments_rev"]
    path, shown, token_id = f"/api/agents/beta/commands?wait=30&rev={rev}", secret, ""
    if "token" in by:
        token_id, shown = place.token("operator" if "operator" in by else "agent:beta")
    if "operator" in by:
        path = "/api/workers/worker2/command?wait=30"
    stream = Stream(server.port, path, {"Authorization": f"Bearer {shown}"})
    with contextlib.closing(stream.socket):
        wait_until(lambda: b"procguard_held_requests 1" in server.ask("GET", "/metrics").body, 10, "it is held")
        if token_id:
            place.revoke(token_id)
        elif by == "agents.revoke":
            assert server.ask("POST", "/api/agents/beta/revoke").status == 200
        else:
            server.deploy("beta", "worker2", secret="of beta, the next")
        watch = Stopwatch(place.server.process.pid)
        assert stream.socket.recv(4096).startswith(b"HTTP/1.1 401")
        assert watch.seconds < AT_ONCE_S


def test_who_revokes_their_own_token_reads_the_answer(place: Location) -> None:
    token_id, token = place.token("operator")
    answer = place.server.ask("DELETE", f"/api/tokens/{token_id}", headers={"Host": "m:1"}, secret=token)
    assert (answer.status, answer.json["status"]) == (200, "revoked")


def test_what_others_opened_goes_on(place: Location) -> None:
    token_id, _ = place.token()
    _, other = place.token()
    stream = Stream(place.server.port, STREAMS["a followed log"], {"Authorization": f"Bearer {other}"})
    with contextlib.closing(stream.socket):
        stream.begun()
        place.revoke(token_id)
        length = place.server.ask("POST", "/api/workers/worker1/logs?attempt=2", b"", secret=place.secret).json["acked"]
        path = f"/api/workers/worker1/logs?attempt=2&offset={length}"
        place.server.ask("POST", path, b"goes on\n", secret=place.secret)
        seen = b""
        while b"goes on" not in seen:
            data = stream.socket.recv(65536)
            assert data, seen
            seen += data


def test_an_operators_operations_are_begun_by_whom_they_were_shown_to(place: Location) -> None:
    """Two tokens with one name are two callers."""
    _, first = place.token("operator")
    _, second = place.token("operator")
    asked = {"command": "stop", "selector": "worker1"}
    preview = place.server.ask("POST", "/api/operations/preview", asked, secret=first).json["token"]
    answer = place.server.ask("POST", "/api/operations", {"token": preview}, secret=second)
    assert (answer.status, answer.error_code) == (409, "not_your_preview")


# ------------------------------------------------------------------------------------------------- the fleet


class Uses:
    """A fleet whose callers are valid until `fallen` names their token or session."""

    def __init__(self) -> None:
        self.fallen: set[str] = set()
        self.ended: list[str] = []
        self.uses = LiveUses(lambda caller: not self.fallen & {caller.token_id, caller.session})

    def open(self, name: str, token_id: str, session: str = "") -> Callable[[], None]:
        caller = Principal("viewer", name, token_id=token_id, session=session)
        opened: list[Callable[[], None]] = []
        # by another greenlet, as requests do
        gevent.spawn(lambda: opened.append(self.uses.open(caller, lambda: self.ended.append(name)))).join()
        return opened[0]


def test_each_use_is_ended_once_and_forgotten() -> None:
    place = Uses()
    place.open("a", "t1")
    close = place.open("b", "t1", "s1")
    place.open("c", "t2", "s2")
    close()
    place.uses.end_token("t1")
    place.uses.end_token("t1")
    place.uses.end_session("s2")
    place.uses.end_token("t2")
    assert place.ended == ["a", "c"] and len(place.uses) == 0
    place.uses.stop()


def test_what_expires_is_found_by_the_sweep_and_nothing_is_kept_of_it() -> None:
    place = Uses()
    for number in range(500):
        place.open(f"u{number}", f"t{number % 100}")
    place.fallen = {"t7", "t8"}
    place.uses.sweep()
    assert len(place.ended) == 10 and len(place.uses) == 490
    place.uses.stop()


def test_one_that_fails_to_end_leaves_no_other_open() -> None:
    place = Uses()

    def fail() -> None:
        raise OSError("gone")

    gevent.spawn(place.uses.open, Principal("viewer", "x", token_id="t1"), fail).join()
    place.open("y", "t1")
    place.uses.end_token("t1")
    assert place.ended == ["y"]
    place.uses.stop()


def test_the_local_operator_and_strangers_are_no_uses() -> None:
    place = Uses()
    place.uses.open(Principal("operator", "me", via="local"), lambda: None)
    place.uses.open(Principal("anonymous", "?"), lambda: None)
    assert len(place.uses) == 0
