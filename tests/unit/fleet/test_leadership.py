"""One of several managers: what it may send while it leads, while it only renews leases, and otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.leadership import NotLeading
from procguard.fleet.leases import GONE_MARGIN_S
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

FENCED: dict[str, Any] = {"command": "train", "on_partition": "fence", "lease_s": 60.0, "stop_grace_s": 10.0}
CERTAIN_S = 60.0 + 10.0 + GONE_MARGIN_S
URLS = ("http://leader:5000", "http://standby:5000")


class ScriptedLeadership:
    term = 7

    def __init__(self, grace_s: float = 0.0) -> None:
        self.directs = self.renews = True
        self.grace_s = grace_s

    def may_direct(self) -> bool:
        return self.directs

    def may_renew(self) -> bool:
        return self.directs or self.renews

    def manager_urls(self) -> tuple[str, ...]:
        return URLS


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": FENCED}})
    return world


def led(world: World) -> ScriptedLeadership:
    leadership = ScriptedLeadership()
    world.fleet.state.leadership = leadership
    return leadership


def running(world: World) -> messages.WorkerReport:
    return world.report("w1", "running", lease_left_s=50.0)


def test_assignments_leave_only_while_it_leads(world: World) -> None:
    leadership = led(world)
    leadership.directs = False
    assert world.beat("h1").assignments is None
    assert world.fleet.agents.replies.news_for_agent("h1", "", 0, world.now) is None
    leadership.directs = True
    assert [one.worker_id for one in world.beat("h1").assignments or []] == ["w1"]


def test_commands_leave_only_while_it_leads(world: World) -> None:
    world.beat("h1", running(world))
    world.fleet.workers.command("w1", "restart", "anna", world.now)
    leadership = led(world)
    leadership.directs = False
    assert world.beat("h1", running(world)).commands == []
    leadership.directs = True
    assert [one.command for one in world.beat("h1", running(world)).commands] == ["restart"]


def test_without_the_database_a_lease_is_renewed_to_its_holder_and_granted_to_nobody_new(world: World) -> None:
    leadership = led(world)
    leadership.directs = False
    assert world.beat("h1", running(world)).leases == []
    leadership.directs = True
    assert world.beat("h1", running(world)).leases
    leadership.directs = False
    assert world.beat("h1", running(world)).leases
    world.pass_time(CERTAIN_S + 1.0)
    assert world.beat("h1", running(world)).leases == []


def test_one_that_does_not_lead_notes_the_heartbeat_and_sends_the_agent_on(world: World) -> None:
    leadership = led(world)
    leadership.directs = leadership.renews = False
    world.pass_time(5.0)
    with pytest.raises(NotLeading) as refused:
        world.beat("h1", running(world))
    assert refused.value.http_status == 421
    assert refused.value.extra == {"managers": list(URLS), "term": 7}
    assert world.fleet.state.agent_status["h1"].last_seen == world.now.monotonic


@pytest.mark.parametrize("grace_s", [0.0, 30.0])
def test_after_a_takeover_leases_count_longer_by_the_grace_of_an_earlier_leader(world: World, grace_s: float) -> None:
    world.beat("h1", running(world))  # the host confirms that it holds its lease
    leases = world.fleet.leases
    leases.ended("w1")
    world.fleet.state.leadership = ScriptedLeadership(grace_s)
    leases.restore(world.now)
    world.pass_time(CERTAIN_S + grace_s - 1.0)
    assert leases.is_confirmed_stopped("w1", world.now) == ""
    world.pass_time(1.5)
    assert "lease" in leases.is_confirmed_stopped("w1", world.now)
