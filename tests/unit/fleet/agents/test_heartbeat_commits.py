"""Which parts of a heartbeat wait for the disk: what is acknowledged, but not the manager's own observations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.i18n.reasons import because
from remote_agent.protocol import messages
from tests.unit.fleet.test_transaction import Commits
from tests.unit.fleet_world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A restarted manager."""
    made = World(tmp_path)
    made.deploy({"h1": {"w1": {"command": "x"}}})
    made.beat("h1", made.report("w1"))
    made.restart()
    yield made
    made.fleet.close()


def kinds(world: World) -> list[str]:
    return [event["kind"] for event in world.fleet.state.events(limit=100)]


def test_an_agent_that_returns_to_a_restarted_manager_causes_no_event_and_waits_for_no_commit(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing has happened to it: thousands of such events would displace others from the history."""
    commits, before = Commits(world, monkeypatch), kinds(world)
    world.beat("h1", world.report("w1"))
    assert commits.made == [] and kinds(world) == before
    assert world.fleet.state.hosts()[0]["agent_state"] == "connected"


def test_an_agent_has_started_once_however_often_its_manager_starts(world: World) -> None:
    """`agent_started` tells when an agent's process began, not when a manager first heard of it."""
    before = kinds(world)
    assert before.count("agent_started") == before.count("agent_connected") == 1
    for _ in range(3):
        world.beat("h1", world.report("w1"))
        world.restart()
    world.beat("h1", world.report("w1"), pid=78)  # it was restarted while the manager was away
    assert kinds(world) == [*before, "agent_started"]
    world.restart()
    world.beat("h1", world.report("w1"), pid=78)
    assert kinds(world) == [*before, "agent_started"]
    assert world.fleet.state.events()[-1]["reason_params"]["pid"] == 78


@pytest.mark.parametrize("lost", ["suspect", "unreachable"])
def test_an_agent_that_was_lost_is_said_to_be_back_by_the_next_manager_too(world: World, lost: str) -> None:
    world.beat("h1", world.report("w1"))
    world.fleet.agents.mark("h1", lost, because("agent.unheard"), world.now)
    world.restart()
    world.beat("h1", world.report("w1"))
    assert kinds(world)[-2:] == [f"agent_{lost}", "agent_connected"]
    world.restart()
    world.beat("h1", world.report("w1"))
    assert kinds(world)[-2:] == [f"agent_{lost}", "agent_connected"]


def test_an_agent_that_starts_or_is_back_waits_for_no_commit(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits(world, monkeypatch)
    world.beat("h1", world.report("w1"), pid=78)
    world.fleet.agents.mark("h1", "suspect", because("agent.unheard"), world.now)
    world.beat("h1", world.report("w1"), pid=78)
    assert commits.made == [] and kinds(world)[-3:] == ["agent_started", "agent_suspect", "agent_connected"]
    world.fleet.state.durability.commit()  # the manager's round does, each second
    world.beat("h1", world.report("w1"), pid=79, release="0.2.0")
    assert len(commits.made) == 2  # its release is remembered, too
    world.restart()
    assert kinds(world)[-4:] == ["agent_started", "agent_suspect", "agent_connected", "agent_started"]


def test_a_restarted_manager_warns_of_workers_that_it_does_not_know(world: World) -> None:
    world.beat("h1", world.report("w1"), world.report("stray"))
    assert kinds(world)[-1] == "warning"


def test_what_a_heartbeat_brings_is_durable_before_it_is_answered(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(world, monkeypatch)
    event = world.event("w1", "starting", "running")
    reply = world.beat("h1", world.report("w1"), events=[event])
    assert len(commits.made) == 1 and reply.events_acked == {"w1": event.seq}
    world.beat("h1", world.report("w1", "backoff"))
    assert len(commits.made) == 2  # what is remembered of a worker
    world.beat("h1", world.report("w1", "backoff", lease_left_s=5.0))
    assert len(commits.made) == 3 and world.fleet.state.workers_by_id["w1"].leased
    result = messages.CommandResult("c-1", "done")
    world.beat("h1", world.report("w1", "backoff", lease_left_s=5.0), results=[result], pid=78)
    assert len(commits.made) == 4
