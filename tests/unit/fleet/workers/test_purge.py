"""The purge of lost workers: a preview first, then removal with its token; workers that may still run are refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.errors import Conflict
from procguard.fleet.workers.purge import Purge
from tests.server_process import RunningServer
from tests.unit.fleet_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    """h1 is connected; h2, connected once, is unreachable; h3 never connected. a-* are on h1, undeclared-1 no
    longer."""
    made = World(tmp_path)
    spec = {"command": "sleep 9"}
    made.deploy({"h1": {"a-1": spec, "undeclared-1": spec}, "h2": {"b-1": spec, "b-2": spec}, "h3": {"c-1": spec}})
    made.beat("h2", made.report("b-1"), made.report("b-2"))
    made.beat("h1", made.report("a-1"), made.report("undeclared-1", "exited"))
    made.deploy({"h1": {"a-1": spec}})
    for host in ("h2", "h3"):
        made.fleet.agents.mark(host, "unreachable", "silent", made.now)
    return made


def purge(world: World) -> Purge:
    return Purge(world.fleet, lambda: None, world.now)


def test_gone_is_what_is_undeclared_and_ended_or_was_silent_long_enough(world: World) -> None:
    one = purge(world)
    assert one.preview(3600.0, "olga", world.now)["workers"] == ["undeclared-1"]
    world.pass_time(3599.0)
    assert one.preview(3600.0, "olga", world.now)["count"] == 1
    world.pass_time(1.0)
    assert one.preview(3600.0, "olga", world.now)["workers"] == ["b-1", "b-2", "c-1", "undeclared-1"]


def test_exactly_what_was_shown_is_taken_out_with_one_token_once(world: World) -> None:
    one = purge(world)
    world.pass_time(3600.0)
    token = one.preview(3600.0, "olga", world.now)["token"]
    with pytest.raises(Conflict, match="somebody else"):
        one.carry_out(token, "ivan", world.now)
    world.beat("h2", world.report("b-1"), world.report("b-2"))  # it is back
    done = one.carry_out(token, "olga", world.now)
    assert (done["taken_out"], done["refused"]) == (2, 2)
    assert [(one["worker_id"], one["message"]) for one in done["refusals"]] == [
        (name, f"{name} is part of the fleet again") for name in ("b-1", "b-2")
    ]
    world.restart()  # durable
    assert sorted(world.fleet.state.workers_by_id) == ["a-1", "b-1", "b-2"]
    with pytest.raises(Conflict, match="expired, or was used"):
        one.carry_out(token, "olga", world.now)


def test_a_preview_of_nobody_has_no_token_and_an_old_one_is_worth_nothing(world: World) -> None:
    one = purge(world)
    token = one.preview(3600.0, "olga", world.now)["token"]
    with pytest.raises(Conflict, match="expired"):
        one.carry_out(token, "olga", world.pass_time(301.0))
    world.fleet.workers.forget("undeclared-1", "olga", world.now)
    assert one.preview(3600.0, "olga", world.now)["token"] is None


def test_over_http_it_is_two_requests_and_in_the_audit(tmp_path: Path) -> None:
    server = RunningServer(tmp_path)
    try:
        server.deploy("alpha", "w1")
        assert server.ask("POST", "/api/purge/preview", {"silent_s": 1}).status == 400
        shown = server.ask("POST", "/api/purge/preview", {"silent_s": 60})
        assert (shown.status, shown.json["count"]) == (200, 0)
        refused = server.ask("POST", "/api/purge", {"token": "g-0"})
        assert (refused.status, refused.json["error"]["code"]) == (409, "preview_expired")
        assert server.ask("POST", "/api/hosts/alpha/restart-agent").status == 409  # without an SSH helper
        assert server.ask("GET", "/api/hosts/alpha/agent-log").json["error"]["next"] == "restart the manager"
        reported = [one["what"] for one in server.ask("GET", "/api/audit").json["audit"]]
        assert any("silent for 60 s" in str(what) for what in reported)
    finally:
        server.close()
