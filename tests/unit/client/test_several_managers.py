"""A client with several managers: it finds the leader, and sends its token to these managers only."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard.client import api, contexts
from procguard.client.client import Client, from_environment
from procguard.errors import ConfigError, ManagerUnreachable, UsageError
from procguard.portal.logs.query import parse_resume
from tests.fake_manager import FakeManager
from tests.server_process import RunningServer
from tests.waiting import Stopwatch, wait_until

DEAD = "http://127.0.0.1:9"
STANDBY = {"error": {"code": "standby", "message": "this manager does not lead the fleet", "next": "ask the leader"}}


@pytest.fixture
def managers() -> Iterator[tuple[FakeManager, FakeManager]]:
    made = FakeManager(), FakeManager()
    made[0].routes["GET /api/hosts"] = lambda _: (200, {"hosts": []})
    made[1].routes["GET /api/hosts"] = lambda _: (421, STANDBY)
    yield made
    for one in made:
        one.close()


@pytest.mark.parametrize("status", [421, 307])
def test_the_leader_is_found_among_the_clients_own_addresses(
    managers: tuple[FakeManager, FakeManager], status: int
) -> None:
    leader, standby = managers
    standby.routes["GET /api/hosts"] = lambda _: (status, STANDBY)
    client = Client([DEAD, standby.url, leader.url], "t0ken")
    watch = Stopwatch()
    assert client.hosts() == {"hosts": []} and watch.seconds < 2.0
    client.hosts()
    assert client.url == leader.url and len(standby.requests) == 1


@pytest.mark.parametrize("status", [301, 307, 308, 421])
def test_a_token_never_goes_to_an_address_that_a_manager_names(
    managers: tuple[FakeManager, FakeManager], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "TAKEOVER_S", 0.3)
    stranger, standby = managers
    named = {**STANDBY, "managers": [stranger.url]}
    standby.routes["GET /api/hosts"] = lambda _: (status, named)
    with pytest.raises(ManagerUnreachable, match="no manager leads"):
        Client([standby.url, DEAD], "t0ken").hosts()
    assert not stranger.requests


def test_a_takeover_is_waited_for(managers: tuple[FakeManager, FakeManager]) -> None:
    """Neither leads for a moment."""
    leader, standby = managers
    leader.routes["GET /api/hosts"] = lambda _: (421, STANDBY)

    def take_over() -> None:
        standby.routes["GET /api/hosts"] = lambda _: (200, {"hosts": [1]})

    timer = threading.Timer(0.8, take_over)
    timer.start()
    assert Client([leader.url, standby.url]).hosts() == {"hosts": [1]}
    timer.join()


def test_a_change_that_broke_off_is_not_made_again_elsewhere(managers: tuple[FakeManager, FakeManager]) -> None:
    """It is unknown whether the first manager carried it out."""
    first, second = managers
    second.routes["POST /api/workers/w1/command"] = lambda _: (202, {"command_id": "c-1"})

    def break_off(_: Any) -> tuple[int, Any]:
        first._server.drop_connections()
        return 200, {}

    first.routes["POST /api/workers/w1/command"] = break_off
    client = Client([first.url, second.url])
    with pytest.raises(ManagerUnreachable, match="it is unknown whether the request was carried out"):
        client.command("w1", "restart")
    assert not second.requests
    assert client.command("w1", "restart")["command_id"] == "c-1"


def test_a_fenced_leaders_refusal_leads_to_the_next_one(managers: tuple[FakeManager, FakeManager]) -> None:
    """503 fenced: nothing was done."""
    first, second = managers
    fenced = {"error": {"code": "fenced", "message": "another manager leads", "next": ""}}
    first.routes["POST /api/workers/w1/command"] = lambda _: (503, fenced)
    second.routes["POST /api/workers/w1/command"] = lambda _: (202, {"command_id": "c-1"})
    assert Client([first.url, second.url]).command("w1", "restart")["command_id"] == "c-1"


def test_a_context_names_several_managers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    two = contexts.ManagerContext("http://a:5000,http://b:5000")
    contexts.save(contexts.Contexts("two", {"two": two, "one": contexts.ManagerContext("http://c:5000")}))
    assert "- http://a:5000" in (tmp_path / "procguard" / "contexts.yaml").read_text()
    assert contexts.load().by_name["two"] == two
    assert from_environment({}).urls == ["http://a:5000", "http://b:5000"]
    assert from_environment({"PROCGUARD_MANAGER_URL": "http://x:1, http://y:1"}).urls == ["http://x:1", "http://y:1"]


@pytest.mark.parametrize("url", ["[]", "{}", "[1]", "7"])
def test_a_context_with_no_address_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "procguard").mkdir()
    (tmp_path / "procguard" / "contexts.yaml").write_text(f"current: x\ncontexts: {{x: {{url: {url}}}}}\n")
    with pytest.raises(ConfigError, match="expected"):
        contexts.load()


def test_too_many_addresses_are_refused() -> None:
    with pytest.raises(ManagerUnreachable, match="at most 16"):
        Client([f"http://h{number}:5000" for number in range(17)])


@pytest.mark.parametrize("text", ["3.out", "3.out.x", "3.log.5", ",", "3.out.5," * 20])
def test_a_place_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="resume="):
        parse_resume(text)


@pytest.mark.slow
def test_a_followed_log_goes_on_at_the_next_manager_without_a_gap_or_a_doubled_line(tmp_path: Path) -> None:
    """Two real managers with the same log. The first ends midway, and more is written meanwhile."""
    made = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        made.append(RunningServer(tmp_path / name))
    first, second = made
    secrets = [one.deploy("h1", "w1") for one in made]
    lengths = [0, 0]

    def print_lines(number: int, *lines: int) -> None:
        body = b"".join(b"line %d\n" % line for line in lines)
        path = f"/api/workers/w1/logs?attempt=1&stream=out&offset={lengths[number]}"
        assert made[number].ask("POST", path, body, secret=secrets[number]).status == 200
        lengths[number] += len(body)

    try:
        for number in (0, 1):
            print_lines(number, *range(100))
        client = Client([f"http://127.0.0.1:{one.port}" for one in made])
        seen: list[str] = []
        following = client.follow_log_lines("w1", tail=50)

        def follow() -> None:
            for line in itertools.islice(following, 130):
                seen.append(line["text"])

        thread = threading.Thread(target=follow)
        thread.start()
        wait_until(lambda: len(seen) == 50 and _followers(first) == 1, 20, "the follower, with the tail")
        print_lines(0, *range(100, 130))
        print_lines(1, *range(100, 160))
        first.close()
        wait_until(lambda: _followers(second) == 1, 20, "the follower at the second one")
        print_lines(1, *range(160, 180))
        thread.join(20)
        assert seen == [f"line {number}" for number in range(50, 180)]
    finally:
        for one in made:
            if one.process.poll() is None:
                one.close()


def _followers(server: RunningServer) -> int:
    text = server.ask("GET", "/metrics").body.decode()
    return int(float(text.split("\nprocguard_log_followers ")[1].split()[0]))
