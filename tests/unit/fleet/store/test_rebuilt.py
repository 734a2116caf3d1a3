"""A rebuilt state has no workers: running workers are read from the hosts, and none is started a second time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.errors import Conflict
from procguard.fleet.store import exchange
from tests.unit.fleet_world import World

SPEC = {"command": "sleep 9"}
FLEET = {"fleet_id": "f-0123456789", "fleet_key": "ab" * 32, "term": 0, "n": 0, "rebuilt": True}


@pytest.fixture
def world(tmp_path: Path) -> World:
    exchange.write_new(str(tmp_path / "state.yaml"), {"fleet": {"fleet": FLEET}})
    return World(tmp_path)


def found(**hosts: list[str]) -> dict[str, Any]:
    """{"h1": ["w1"]}: these run there."""
    return {host: [{"worker_id": worker_id, "alive": True} for worker_id in workers] for host, workers in hosts.items()}


def results(answer: dict[str, Any]) -> dict[str, str]:
    return {worker_id: one["result"] for host in answer["hosts"].values() for worker_id, one in host["workers"].items()}


def test_nothing_is_declared_before_the_hosts_were_read(world: World) -> None:
    with pytest.raises(Conflict, match="where w1 may be running must be read from the hosts") as caught:
        world.deploy({"h1": {"w1": SPEC}})
    assert caught.value.code == "records_needed"
    assert not world.fleet.state.workers_by_id and not world.fleet.state.agents_by_id
    world.deploy({"h1": {"w1": SPEC}}, check=True)


def test_what_runs_on_its_host_is_taken_over_and_goes_on(world: World) -> None:
    assert results(world.deploy({"h1": {"w1": SPEC}}, found=found(h1=["w1"]))) == {"w1": "new"}
    assert world.fleet.state.workers_by_id["w1"].desired == "running"


def test_what_runs_on_another_host_is_refused_and_taken_over_where_it_is_declared_then(world: World) -> None:
    records = found(h1=[], h2=["w1"])
    answer = world.deploy({"h1": {"w1": SPEC}, "h2": {}}, found=records)
    assert results(answer) == {"w1": "refused"}
    assert "it runs on h2" in answer["hosts"]["h1"]["workers"]["w1"]["message"]
    assert "w1" not in world.fleet.state.workers_by_id
    assert results(world.deploy({"h1": {}, "h2": {"w1": SPEC}}, found=records)) == {"w1": "new"}
    assert world.fleet.state.workers_by_id["w1"].agent_id == "h2"


def test_a_hostile_host_that_says_it_runs_everything_gets_nothing(world: World) -> None:
    """Neither the worker nor its specification changes, and what its own host runs is adopted nevertheless."""
    records = found(h1=["w1"], evil=["w1", "w2"])
    answer = world.deploy({"h1": {"w1": SPEC, "w2": SPEC}, "evil": {}}, found=records)
    assert results(answer) == {"w1": "new", "w2": "refused"}
    assert world.fleet.state.workers_of("evil") == []


def test_what_runs_nowhere_is_declared_stopped_until_an_operator_starts_it(world: World) -> None:
    answer = world.deploy({"h1": {"w1": SPEC}, "h2": {}}, found=found(h1=[]))
    assert "invoke start w1 (not read: h2)" in answer["hosts"]["h1"]["workers"]["w1"]["message"]
    assert world.fleet.state.workers_by_id["w1"].desired == "stopped"
    world.fleet.workers.command("w1", "start", "tester", world.now)
    assert world.fleet.state.workers_by_id["w1"].desired == "running"


def test_it_is_over_once_all_hosts_were_read(world: World) -> None:
    world.deploy({"h1": {"w1": SPEC}}, found=found(h1=["w1"]))
    world.restart()
    assert world.fleet.state.rebuilt
    world.deploy({"h1": {"w1": SPEC}}, found=found(h1=["w1"]), all_read=True)
    world.restart()
    assert not world.fleet.state.rebuilt
    assert results(world.deploy({"h1": {"w1": SPEC, "w9": SPEC}}))["w9"] == "new"
    assert world.fleet.state.workers_by_id["w9"].desired == "running"


def test_no_grant_of_before_is_good_for_a_rebuilt_state(world: World) -> None:
    world.deploy({"h1": {"w1": SPEC}, "h2": {}}, found=found(h1=["w1"], h2=[]))
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    world.beat("h2", world.report("w1", epoch=epoch + 1, grant="0" * 32))
    worker = world.fleet.state.workers_by_id["w1"]
    assert (worker.agent_id, worker.epoch) == ("h1", epoch)
