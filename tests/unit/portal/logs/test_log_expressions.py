"""`logs?regex=`: no expression blocks the manager, and no caller uses more than its share of threads."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.server_process import RunningServer
from tests.waiting import wait_until

LOGS = "/api/remote-workers/w1/logs"
FAR = {"X-Forwarded-For": "192.0.2.9"}
RUNS_AWAY = "a.*a.*a.*b"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    running.deploy("h1", "w1", "w2")
    yield running
    running.close()
    assert "Traceback" not in running.log()


def ship(server: RunningServer, data: bytes, attempt: int, worker: str = "w1") -> None:
    path, secret = f"/api/workers/{worker}/logs?attempt={attempt}&stream=out", "secret-of-h1"
    stored = server.ask("POST", f"{path}&offset=0", b"", secret=secret).json["acked"]
    assert server.ask("POST", f"{path}&offset={stored}", data, secret=secret).status == 200


def slowest_healthz_s(server: RunningServer, until: threading.Event) -> float:
    worst = 0.0
    while not until.is_set():
        began = time.perf_counter()
        assert server.ask("GET", "/healthz", timeout_s=60).status == 200
        worst = max(worst, time.perf_counter() - began)
    return worst


def meanwhile(server: RunningServer, path: str, count: int = 1) -> tuple[list[int], float]:
    """(statuses of `count` requests at once, the slowest /healthz while they were under way)."""
    statuses: list[int] = []
    done = threading.Event()

    def asking() -> None:
        statuses.append(server.ask("GET", path, timeout_s=120).status)
        if len(statuses) == count:
            done.set()

    for _ in range(count):
        threading.Thread(target=asking, daemon=True).start()
    worst = slowest_healthz_s(server, done)
    return statuses, worst


def test_an_expression_over_a_long_line_holds_nobody_up(server: RunningServer) -> None:
    """Measured before: 220 s for this line of 2,000 characters, and nothing else was answered meanwhile."""
    ship(server, b"a" * 2000 + b"\n", attempt=1)
    statuses, worst_s = meanwhile(server, f"{LOGS}?attempt=1&regex={quote(RUNS_AWAY)}")
    assert statuses == [200] and worst_s < 1.0, worst_s


def test_following_with_an_expression_holds_nobody_up(server: RunningServer) -> None:
    """New lines are matched one by one: that does not run on the event loop either."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("GET", f"{LOGS}?follow=1&tail=0&attempt=2&regex={quote(RUNS_AWAY)}")
    response = connection.getresponse()
    done = threading.Event()

    def growing() -> None:
        for _ in range(20):
            ship(server, b"a" * 15_000 + b"\n", attempt=2)
        ship(server, b"aaa" * 500 + b"b\n", attempt=2)
        done.set()

    threading.Thread(target=growing, daemon=True).start()
    worst_s = slowest_healthz_s(server, done)
    assert response.readline() == b"aaa" * 500 + b"b\n" and worst_s < 1.0
    connection.close()


@pytest.mark.slow
def test_the_worst_that_the_dialect_allows_holds_nobody_up_and_ends(server: RunningServer) -> None:
    """An automaton that exceeds its memory on adversarial lines: many at once, while heartbeats arrive."""
    ship(server, (b"ab" * 8000 + b"\n") * 3, attempt=3)
    hostile = quote("(?:a|b){900}c")
    statuses, worst_s = meanwhile(server, f"{LOGS}?attempt=3&regex={hostile}", count=6)
    assert set(statuses) == {200, 429} and worst_s < 1.0, (statuses, worst_s)


def test_one_caller_leaves_room_for_the_others(server: RunningServer) -> None:
    token = server.ask("POST", "/api/tokens", {"scope": "viewer", "name": "screen"}).json["token"]
    viewer = {**FAR, "Authorization": f"Bearer {token}"}
    follows = []
    try:
        for _ in range(17):
            connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
            connection.request(
                "GET",
                f"{LOGS}?follow=1&tail=0&attempt=9&regex=x",
                headers={"Host": f"localhost:{server.port}", **viewer},
            )
            follows.append((connection, connection.getresponse()))
        assert [answer.status for _, answer in follows] == [200] * 16 + [429]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
        connection.request("GET", f"{LOGS}?follow=1&tail=0&attempt=9&regex=x")
        assert connection.getresponse().status == 200, "the operator's own share is untouched"
        connection.close()
    finally:
        for connection, _ in follows:
            connection.close()

    def again() -> bool:
        return server.ask("GET", f"{LOGS}?attempt=9&regex=x", headers=viewer).status == 200

    wait_until(again, 10, "what was held is given back")


@pytest.mark.parametrize("path", [f"{LOGS}?", "/api/log-search?"])
@pytest.mark.parametrize(
    ("pattern", "said"),
    [("(?=a)b", "look-ahead (?=…) at character 1"), (r"(a)\1", "back-reference"), (r"\pL", r"\p"), ("(a", "missing )")],
)
def test_what_the_dialect_has_not_is_refused_with_what_to_write_instead(
    server: RunningServer, path: str, pattern: str, said: str
) -> None:
    answer = server.ask("GET", f"{path}regex={quote(pattern)}")
    error = answer.json["error"]
    assert (answer.status, error["code"]) == (400, "bad_expression") and said in error["message"] and error["next"]


def test_colours_do_not_hide_what_is_sought(server: RunningServer) -> None:
    """Hosts search a line without its colours (remote_agent/logs/grep.py); the manager finds the same."""
    ship(server, b"a \x1b[31mred\x1b[0m alert\nfine\n", attempt=7)
    assert server.ask("GET", f"{LOGS}?attempt=7&regex=a%20red%20alert").body.startswith(b"a \x1b[31mred")
