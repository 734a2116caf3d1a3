"""Which parts of a heartbeat wait for the disk: what is acknowledged, but not the manager's own observations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

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


def test_an_agent_that_is_back_waits_for_no_commit_and_its_events_go_with_the_next(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = Commits(world, monkeypatch)
    world.beat("h1", world.report("w1"))
    assert commits.made == []
    assert kinds(world)[-2:] == ["agent_connected", "agent_connected"]  # shown at once
    world.fleet.state.durability.commit()  # the manager's round does, each second
    world.restart()
    assert kinds(world)[-2:] == ["agent_connected", "agent_connected"]


def test_an_agent_has_started_once_however_often_its_manager_starts(world: World) -> None:
    """`agent_started` tells when an agent's process began, not when a manager first heard of it."""
    before = kinds(world).count("agent_started")
    for _ in range(3):
        world.beat("h1", world.report("w1"))
        world.restart()
    assert kinds(world).count("agent_started") == before == 1
    world.beat("h1", world.report("w1"), pid=78)  # it was restarted while the manager was away
    world.restart()
    world.beat("h1", world.report("w1"), pid=78)
    started = [event for event in world.fleet.state.events() if event["kind"] == "agent_started"]
    assert [event["reason_params"]["pid"] for event in started] == [77, 78]


def test_an_agent_that_starts_waits_for_no_commit_either(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    commits = Commits(world, monkeypatch)
    world.beat("h1", world.report("w1"), pid=78)
    assert commits.made == [] and kinds(world)[-2:] == ["agent_started", "agent_connected"]
    world.beat("h1", world.report("w1"), pid=79, release="0.2.0")
    assert len(commits.made) == 1  # its release is remembered, too


def test_a_restarted_manager_warns_of_workers_that_it_does_not_know(world: World) -> None:
    world.beat("h1", world.report("w1"), world.report("stray"))
    assert kinds(world)[-2:] == ["warning", "agent_connected"]


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
