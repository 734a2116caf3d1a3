"""Grants of leases, and when an instance is confirmed stopped: never in doubt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.config.groups import GroupPolicy
from procguard.fleet.leases import GONE_MARGIN_S
from procguard.fleet.workers import ownership
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

FENCED: dict[str, Any] = {"command": "train", "on_partition": "fence", "lease_s": 60.0, "stop_grace_s": 10.0}
CERTAIN_S = 60.0 + 10.0 + GONE_MARGIN_S


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": FENCED, "plain": {"command": "crawl"}}})
    return world


def run(world: World, agent_id: str = "h1", state: str = "running", **values: Any) -> messages.AgentReply:
    values.setdefault("lease_left_s", 50.0)
    return world.beat(agent_id, world.report("w1", state, **values))


def gone(world: World) -> str:
    return world.fleet.leases.is_confirmed_stopped("w1", world.now)


def test_a_fenced_worker_is_granted_its_lease_in_each_answer_to_a_heartbeat(world: World) -> None:
    epoch = world.fleet.state.workers_by_id["w1"].epoch
    for _ in range(2):
        assert run(world).leases == [messages.Lease("w1", epoch, 60.0)]
        world.pass_time(2.0)


def test_its_assignment_says_that_it_is_fenced_and_the_others_that_they_are_not(world: World) -> None:
    assignments = world.beat("h1").assignments or []
    assert {one.worker_id: one.lease_s for one in assignments} == {"w1": 60.0, "plain": None}


def test_a_held_request_grants_nothing(world: World) -> None:
    """The time of sending is unknown, so the host has no start time for the lease."""
    run(world)
    reply = world.fleet.agents.replies.news_for_agent("h1", "", 0, world.now)
    assert reply is not None
    assert reply.leases == []


def test_what_is_to_be_stopped_is_granted_on_until_it_has_stopped(world: World) -> None:
    run(world)
    world.fleet.workers.command("w1", "stop", "anna", world.now)
    assert run(world, state="stopping").leases
    assert not run(world, state="stopped").leases


def test_the_instance_is_gone_after_lease_grace_and_margin_and_not_before(world: World) -> None:
    run(world)
    world.pass_time(CERTAIN_S - 0.1)
    assert gone(world) == ""
    world.pass_time(0.5)
    assert "lease" in gone(world)


def test_each_renewal_counts_again_also_one_whose_answer_was_lost(world: World) -> None:
    run(world)
    world.pass_time(CERTAIN_S - 1.0)
    run(world)  # its answer may never arrive: what was granted is granted
    world.pass_time(CERTAIN_S - 1.0)
    assert gone(world) == ""
    world.pass_time(2.0)
    assert gone(world)


def test_a_worker_that_keeps_running_is_never_gone_by_time_alone(world: World) -> None:
    world.beat("h1", world.report("plain"))
    world.pass_time(1e6)
    instance = world.fleet.leases.judge("plain", world.now)
    assert not instance.gone
    assert instance.wait_s is None
    assert "keep" in instance.reason


def test_a_host_that_never_spoke_of_a_lease_is_not_believed_to_hold_one(world: World) -> None:
    """An agent of an earlier release ignores the fence and keeps running."""
    run(world, lease_left_s=None)
    world.pass_time(1e6)
    assert gone(world) == ""
    assert "confirmed" in world.fleet.leases.judge("w1", world.now).reason


def test_a_fence_put_around_a_running_worker_counts_once_its_host_has_confirmed_it(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": {**FENCED, "on_partition": "keep"}}})
    run(world, lease_left_s=None)
    world.deploy({"h1": {"w1": FENCED}})
    world.pass_time(1e6)
    assert gone(world) == ""
    run(world)
    world.pass_time(CERTAIN_S + 1.0)
    assert gone(world)


def test_after_a_start_of_the_manager_every_lease_may_have_just_been_granted(world: World) -> None:
    run(world)
    world.pass_time(1e6)
    world.restart()
    world.pass_time(CERTAIN_S - 0.1)
    assert gone(world) == ""
    world.pass_time(0.5)
    assert gone(world)


@pytest.mark.parametrize("restarted", [False, True])
def test_a_shorter_lease_does_not_shorten_what_was_granted_before(world: World, restarted: bool) -> None:
    run(world)
    world.deploy({"h1": {"w1": {**FENCED, "lease_s": 5.0, "stop_grace_s": 0.0}}})
    if restarted:
        world.restart()
    world.pass_time(CERTAIN_S - 0.1)
    assert gone(world) == ""
    world.pass_time(0.5)
    assert gone(world)


@pytest.mark.parametrize("state", ["exited", "failed"])
def test_a_settled_end_reported_by_its_agent_is_an_end_at_once(world: World, state: str) -> None:
    run(world, state=state)
    assert state in gone(world)


def test_stopped_is_an_end_only_where_it_is_to_be_stopped(world: World) -> None:
    """Waiting for a lease it is stopped too, and the next grant starts it."""
    run(world, state="stopped")
    assert gone(world) == ""
    world.fleet.workers.command("w1", "stop", "anna", world.now)
    assert gone(world) == ""  # the stop has not been reported
    run(world, state="stopped")
    assert "stopped" in gone(world)


def test_an_end_before_the_newest_start_is_none(world: World) -> None:
    run(world, state="failed")
    world.fleet.workers.command("w1", "start", "anna", world.now)
    assert gone(world) == ""


def test_the_last_word_of_an_agent_that_is_away_is_no_proof(world: World) -> None:
    run(world, state="failed")
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    assert gone(world) == ""


def test_a_worker_that_its_agent_no_longer_names_is_not_known_to_have_ended(world: World) -> None:
    run(world, state="failed")
    world.beat("h1", pid=78)
    assert gone(world) == ""


def test_no_second_agent_is_granted_a_lease_while_the_first_may_hold_one(world: World) -> None:
    """If a worker is handed over too early, the lease is the last line of defence."""
    run(world)
    world.deploy({"h2": {}})
    worker, leases = world.fleet.state.workers_by_id["w1"], world.fleet.leases
    kept = leases._granted["w1"]
    with world.changing() as tx:
        world.fleet.placement.transfer(tx, worker, "h2", "h2")
    leases._granted["w1"] = kept
    assert run(world, "h2").leases == []
    world.pass_time(CERTAIN_S + 1.0)
    assert run(world, "h2").leases


def test_after_an_orderly_transfer_the_new_agent_is_granted_at_once_and_the_old_one_no_more(world: World) -> None:
    run(world, state="failed")
    world.deploy({"h2": {}})
    worker = world.fleet.state.workers_by_id["w1"]
    with world.changing() as tx:
        ownership.withdraw(world.fleet.state, tx, world.fleet.state.agents_by_id["h1"], worker)
    with world.changing() as tx:
        world.fleet.placement.transfer(tx, worker, "h2", "h2")
    assert [lease.epoch for lease in run(world, "h2").leases] == [worker.epoch]
    assert run(world, "h1").leases == []


def test_without_any_record_of_a_grant_nothing_is_concluded(world: World) -> None:
    run(world)
    world.fleet.leases.ended("w1")
    world.pass_time(1e6)
    assert gone(world) == ""


def test_a_gangs_member_reports_three_times_within_its_lease_too(tmp_path: Path) -> None:
    """It is fenced whatever its on_partition says."""
    world = World(tmp_path, groups={"g": GroupPolicy(restart="gang")})
    world.deploy({"h1": {"w1": {"command": "x", "group": "g", "lease_s": 3.0}}})
    assert world.beat("h1").interval_s == 1.0


def test_how_often_an_agent_reports_follows_its_leases_and_the_fleets_size(world: World) -> None:
    leased = {"command": "x", "on_partition": "fence", "lease_s": 1.5}
    world.deploy({"h1": {"w1": {"command": "x"}}})
    usual_s = world.beat("h1").interval_s
    world.deploy({"h1": {"w1": {"command": "x"}, "w2": leased}})
    assert world.beat("h1").interval_s == 0.5 < usual_s
    world.deploy({"h1": {"w1": {"command": "x"}, "w2": {**leased, "lease_s": 3.0}}})
    assert world.beat("h1").interval_s == 1.0
    world.deploy({"h1": {"w1": {"command": "x"}}}, prune=True)
    rev = world.beat("h1").assignments_rev
    assert world.beat("h1", world.report("w1"), assignments_rev=rev).interval_s == usual_s  # w2 is gone from there
    world.deploy({f"many{number}": {} for number in range(3_000)})
    assert world.beat("h1").interval_s > usual_s
