"""Cordons and moves over HTTP and at the command line: accepted and refused requests, and their messages."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timezone
from typing import Any

import pytest

from procguard.console import grid, tables
from procguard.fleet.shapes.hosts import HOST
from remote_agent.protocol import messages
from tests import fake_manager
from tests.server_process import RunningServer
from tests.unit.cli.test_cli import run

FAR = {"X-Forwarded-For": "192.0.2.7"}  # enough to be no longer a local operator


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    secret = running.deploy("alpha", "worker1")
    running.beat("alpha", secret, messages.WorkerReport("worker1", state="running", attempt=3, pid=7))
    running.beat("beta", running.deploy("beta"))
    yield running
    running.close()
    assert "Traceback" not in running.log()


def host(server: RunningServer, name: str) -> dict[str, Any]:
    return next(one for one in server.ask("GET", "/api/hosts").json["hosts"] if one["host"] == name)


def test_a_cordon_without_a_reason_of_its_own_has_every_declared_field(server: RunningServer) -> None:
    assert server.ask("POST", "/api/hosts/beta/cordon", b"{}").status == 200
    cordon = host(server, "beta")["cordoned"]
    assert server.ask("POST", "/api/hosts/beta/uncordon").status == 200
    assert (cordon["reason_code"], cordon["reason_params"]) == ("host.cordoned", {})


def test_a_host_is_cordoned_with_its_reason_and_uncordoned(server: RunningServer) -> None:
    answer = server.ask("POST", "/api/hosts/beta/cordon", b'{"reason": "fan is loud"}')
    assert (answer.status, answer.json["status"]) == (200, "cordoned")
    assert host(server, "beta")["cordoned"]["reason"] == "fan is loud"
    assert server.ask("POST", "/api/hosts/beta/uncordon").status == 200
    assert host(server, "beta")["cordoned"] is None


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/hosts/nowhere/cordon", b"{}", 404),
        ("/api/hosts/alpha/cordon", b'{"reason": 7}', 400),
        ("/api/hosts/alpha/cordon", b"[]", 400),
        ("/api/hosts/alpha/cordon", b'{"reason": "' + b"x" * 600 + b'"}', 400),
        ("/api/workers/nobody/move", b'{"host": "beta"}', 404),
        ("/api/workers/worker1/move", b"{}", 400),
        ("/api/workers/worker1/move", b'{"host": "nowhere"}', 404),
        ("/api/workers/worker1/move", b'{"host": "alpha"}', 409),
    ],
)
def test_what_cannot_be_is_refused_with_the_next_step(
    server: RunningServer, path: str, body: bytes, status: int
) -> None:
    answer = server.ask("POST", path, body)
    assert answer.status == status
    assert answer.json["error"]["next"]


@pytest.mark.parametrize("path", ["/api/hosts/alpha/cordon", "/api/hosts/alpha/uncordon", "/api/workers/worker1/move"])
def test_they_are_the_operators_alone(server: RunningServer, path: str) -> None:
    assert server.ask("POST", path, b'{"host": "beta"}', headers=FAR).status == 401
    assert server.ask("GET", path).status == 405


def test_a_move_is_accepted_and_shown(server: RunningServer) -> None:
    answer = server.ask("POST", "/api/workers/worker1/move", b'{"host": "beta"}')
    assert (answer.status, answer.json["status"]) == (202, "moving")
    view = server.ask("GET", "/api/remote-workers/worker1").json
    assert (view["moving_to"], view["desired"]) == ("beta", "stopped")


def test_the_tasks_say_what_they_did_and_what_was_refused() -> None:
    asked: list[Any] = []
    with fake_manager.running() as manager:
        manager.routes["POST /api/hosts/a/cordon"] = lambda body: (asked.append(body), (200, {}))[1]
        manager.routes["POST /api/hosts/a/uncordon"] = lambda body: (200, {})
        manager.routes["POST /api/workers/w/move"] = lambda body: (
            409,
            {"error": {"message": "w is on a already", "next": "nothing to do"}},
        )
        done = run(manager.url, "cordon", "a", "--reason", "fan is loud")
        assert (done.returncode, asked) == (0, [{"reason": "fan is loud"}])
        assert "cordoned" in done.stdout
        assert run(manager.url, "uncordon", "a").returncode == 0
        refused = run(manager.url, "move", "w", "a")
        assert refused.returncode != 0
        assert "on a already" in refused.stderr
        assert "Traceback" not in refused.stderr


def test_hosts_show_what_they_may_be_used_for() -> None:
    view = {"host": "a", "agent": "a", "agent_state": "connected", "spare": 2, "failures": 1}
    columns = tables.hosts(datetime.now(timezone.utc), HOST)
    [_, line] = grid.render(columns, [{**view, "cordoned": {"reason": "fan"}}], None)
    assert "spare for 2, cordoned (fan), 1 failure" in line
