"""The responses of a standby."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlencode

import pytest

from procguard.config import schema
from procguard.fleet.model.epochs import proof_key_of
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.manager.seat import Seat
from procguard.manager.standby import StandbyServer
from remote_agent.protocol import leadership

KEY = "k" * 64
URLS = ["http://10.0.0.6:5000", "http://10.0.0.5:5000"]


class StandbySeat(Seat):
    """A seat whose row and neighbours are given."""

    def __init__(self) -> None:
        super().__init__(DatabasePlace("postgresql://nobody@127.0.0.1:1/x"), "m2")
        self.known = list(URLS)
        self.warm.tables = {
            "fleet": {"fleet": {"fleet_id": "f-1", "fleet_key": KEY}},
            "agents": {"gpu01": {"agent_id": "gpu01", "key_generation": 2}, "gpu02": {"agent_id": "gpu02"}},
        }

    @property
    def leader(self) -> str:
        return "m1" if self.known else ""

    @property
    def term(self) -> int:
        return 28_944_001

    def manager_urls(self) -> list[str]:
        return self.known


@pytest.fixture
def standby() -> Iterator[StandbyServer]:
    server = StandbyServer(schema.load(None, ["web.host=127.0.0.1", "web.port=0"]), StandbySeat())
    yield server
    server.stop()
    server.listener.close()


def ask(server: StandbyServer, method: str, path: str, query: str = "") -> tuple[int, dict[str, str], dict[str, Any]]:
    said: list[Any] = []
    environ = {"REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": query, "procguard.request_id": "r1"}
    body = b"".join(server.answer(environ, lambda status, headers: said.extend((status, headers))))
    return int(said[0].split()[0]), dict(said[1]), json.loads(body)


def test_it_is_alive_and_not_ready(standby: StandbyServer) -> None:
    assert ask(standby, "GET", "/healthz")[0] == 200
    status, _, body = ask(standby, "GET", "/readyz")
    assert (status, body["error"]["code"]) == (503, "standby")
    assert "http://10.0.0.6:5000" in body["error"]["next"]


@pytest.mark.parametrize(
    "path", ["/", "/static/js/main.js", "/api/remote-workers", "/api/workers/w1/explain", "/metrics"]
)
def test_pages_and_reads_are_redirected_to_the_leader(standby: StandbyServer, path: str) -> None:
    status, headers, _ = ask(standby, "GET", path, "tail=5&q=%E8%AE%AD")
    assert (status, headers["Location"]) == (307, f"http://10.0.0.6:5000{path}?tail=5&q=%E8%AE%AD")


def test_a_redirect_carries_no_line_break_and_leads_nowhere_else(standby: StandbyServer) -> None:
    _, headers, _ = ask(standby, "GET", "//evil.example/x\r\nSet-Cookie: a=b")
    assert headers["Location"] == "http://10.0.0.6:5000/evil.example/x%0D%0ASet-Cookie:%20a=b"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/agents/gpu01/heartbeat"),
        ("GET", "/api/agents/gpu01/commands"),
        ("GET", "/api/workers/w1/command"),
        ("POST", "/api/workers/w1/logs"),
        ("POST", "/api/workers/w1/command"),
        ("POST", "/api/login"),
        ("DELETE", "/api/agents/gpu01"),
        ("GET", "/ws"),
        ("GET", "/api/ca"),
    ],
)
def test_what_agents_ask_and_what_changes_anything_is_answered_421_with_the_managers(
    standby: StandbyServer, method: str, path: str
) -> None:
    status, headers, body = ask(standby, method, path)
    assert status == 421
    assert "Location" not in headers
    assert (body["error"]["code"], body["managers"], body["term"]) == ("standby", URLS, 28_944_001)
    assert leadership.read_managers(body) == URLS


@pytest.mark.parametrize(("agent", "generation"), [("gpu01", 2), ("gpu02", 0)])
def test_an_agent_that_it_knows_gets_a_proof_of_the_list(standby: StandbyServer, agent: str, generation: int) -> None:
    asked = {"agent": agent, "nonce": "n0nce", "to": "http://10.0.0.5:5000"}
    status, _, body = ask(standby, "GET", "/api/hello", urlencode(asked))
    key = proof_key_of(KEY, agent, generation)
    assert status == 421
    assert leadership.proves_standby(body, key, agent, "n0nce", "http://10.0.0.5:5000")
    assert not leadership.proves_standby(body, key, agent, "another", "http://10.0.0.5:5000")


@pytest.mark.parametrize("query", ["", "agent=nobody&nonce=1", "agent=gpu01", "agent=gpu01&nonce="])
def test_nobody_else_gets_one(standby: StandbyServer, query: str) -> None:
    status, _, body = ask(standby, "GET", "/api/hello", query)
    assert status == 421
    assert "proof" not in body


def test_where_nobody_leads_reads_are_not_redirected(standby: StandbyServer) -> None:
    standby._seat.known = []  # type: ignore[attr-defined]
    status, headers, body = ask(standby, "GET", "/api/remote-workers")
    assert (status, body["managers"]) == (421, [])
    assert "Location" not in headers


def test_the_more_agents_there_are_the_longer_each_is_asked_to_wait(standby: StandbyServer) -> None:
    """10,000 agents that have lost their leader cause at most 5,000 hellos a second at the next leader."""
    few = ask(standby, "GET", "/api/hello")[2]
    standby._seat.warm.tables["agents"] = {f"h{number}": {} for number in range(10_000)}
    many = ask(standby, "GET", "/api/hello")[2]
    assert leadership.read_retry_s(few) == 0.5
    assert leadership.read_retry_s(many) == 3.0


def test_it_counts_the_agents_of_the_fleet_that_ask_it_each_once(
    standby: StandbyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("procguard.manager.standby.time.monotonic", lambda: now[0])
    for query in ("agent=gpu01&nonce=1", "agent=gpu01&nonce=2", "agent=nobody&nonce=1", ""):
        ask(standby, "GET", "/api/hello", query)
    assert standby.asked_by() == 1
    now[0] += 8
    ask(standby, "GET", "/api/hello", "agent=gpu02&nonce=1")
    assert standby.asked_by() == 2
    now[0] += 8
    assert standby.asked_by() == 1
