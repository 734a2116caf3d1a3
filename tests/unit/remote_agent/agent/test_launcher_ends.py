"""A launcher ended by its user is not a failure: no alert, its worker is stopped, and it leaves the list by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.fleet.agents.enrolment import ENDED_KEPT_S
from procguard.fleet.recovery.monitor import ProcessMonitor
from procguard.notify.alerts import ALERT_OF_KIND
from tests.unit.fleet_world import World

AGENT = "launcher:w1"


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path, heartbeat_timeout_s=10.0)
    world.register("w1")
    world.beat(AGENT, world.report("w1"))
    world.beat(AGENT, world.report("w1", state="stopped"), ends=True)
    return world


def agent_state(world: World) -> str:
    return str(world.fleet.state.host_view(AGENT)["agent_state"])


def test_its_silence_is_expected_and_its_worker_stays_stopped(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    world.fleet.agents.heartbeats.poll_closed(AGENT, world.now, True)

    found = [finding for _ in range(60) for finding in world.watched(monitor, 1.0)]

    assert found == []
    assert (agent_state(world), world.fleet.state.worker("w1")["state"]) == ("ended", "stopped")
    assert world.kinds().count("agent_ended") == 1
    assert not {"agent_ended"} & set(ALERT_OF_KIND)


def test_the_next_manager_knows_it_too(world: World, tmp_path: Path) -> None:
    world.restart()
    assert (agent_state(world), world.fleet.state.worker("w1")["state"]) == ("ended", "stopped")


def test_started_again_it_is_watched_again(world: World) -> None:
    monitor = ProcessMonitor(world.fleet, world.settings, world.now)
    world.beat(AGENT, world.report("w1", attempt=2))
    assert agent_state(world) == "connected"
    found = [finding.kind for _ in range(12) for finding in world.watched(monitor, 1.0)]
    assert "unreachable" in found


def test_after_a_day_it_leaves_the_list(world: World) -> None:
    world.fleet.agents.enrolment.forget_the_ended(world.pass_time(ENDED_KEPT_S - 1))
    assert "w1" in world.fleet.state.workers_by_id
    world.fleet.agents.enrolment.forget_the_ended(world.pass_time(2))
    assert "w1" not in world.fleet.state.workers_by_id and AGENT not in world.fleet.state.agents_by_id


def test_an_agent_of_a_host_cannot_call_itself_ended(tmp_path: Path) -> None:
    """Only launchers are ended by users: a deployed agent that becomes silent is suspect."""
    world = World(tmp_path)
    world.deploy({"gpu01": {"w2": {"command": "python train.py"}}})
    world.beat("gpu01", world.report("w2"), ends=True)
    assert world.fleet.state.host_view("gpu01")["agent_state"] == "connected"
