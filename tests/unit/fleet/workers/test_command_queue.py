"""The command queue expires commands, and finds those of an agent or a worker without a full scan."""

from __future__ import annotations

from pathlib import Path

import pytest

from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord
from procguard.fleet.workers.command_queue import KEEP_FINISHED
from tests.unit.fleet_world import World


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.deploy({host: {f"w{host[1:]}": {"command": "sleep 9"}} for host in ("h1", "h2")})
    for host in ("h1", "h2"):
        made.beat(host, made.report(f"w{host[1:]}"))
    return made


def test_a_command_reports_who_asked_when_why_and_what_became_of_it(world: World) -> None:
    record = world.fleet.workers.command("w1", "stop", "token laptop", world.now, "disk change")
    world.beat("h1", world.report("w1", "stopping"))
    world.pass_time(3.0)
    world.beat("h1", world.report("w1", "stopped", reason="exit code 0"))
    view = world.fleet.state.command_view(record.command_id)
    assert (view["actor"], view["reason"], view["status"]) == ("token laptop", "disk change", "done")
    assert view["accepted_at"] < view["finished_at"]
    reported = [event["reason"] for event in world.fleet.state.events(worker="w1") if event["kind"] == "command"]
    assert reported[0] == "stop accepted: disk change"


def test_the_newest_commands_come_first_and_each_worker_has_its_own(world: World) -> None:
    first = world.fleet.workers.command("w1", "stop", "tester", world.now)
    other = world.fleet.workers.command("w2", "restart", "tester", world.now)
    last = world.fleet.workers.command("w1", "start", "tester", world.now)
    assert [one["command_id"] for one in world.fleet.state.commands("w1")] == [last.command_id, first.command_id]
    assert [one["status"] for one in world.fleet.state.commands("w1")] == ["accepted", "done"]
    assert world.fleet.state.commands(limit=2)[1]["command_id"] == other.command_id


def test_watchers_learn_of_each_step(world: World) -> None:
    last_heartbeat: list[tuple[str, str]] = []
    queue = world.fleet.state.command_queue
    world.fleet.state.bus.commands.subscribe(
        lambda record: last_heartbeat.append((record.worker_id, queue.status(record)))
    )
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.beat("h1", world.report("w1"))
    world.pass_time(61)
    world.expire_commands()
    assert last_heartbeat == [("w1", "delivered"), ("w1", "expired")]


@pytest.mark.parametrize("jump_s", [3_600.0, -3_600.0, 3.2e8, -3.2e8])
def test_a_jump_of_the_wall_clock_ends_no_command_and_keeps_none(world: World, jump_s: float) -> None:
    """Neither at once after a clock jump forward nor ten years late after one back; its host gets the true remaining
    time."""
    record = world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.now = Now(world.now.monotonic + 20.0, world.now.wall + 20.0 + jump_s)
    assert world.expire_commands() == []
    (reported,) = world.beat("h1", world.report("w1")).commands
    assert reported.ttl_s == 40.0
    world.pass_time(41.0)
    assert world.expire_commands() == [record]


@pytest.mark.parametrize(("away_s", "left_s"), [(15.0, 45.0), (-3.2e8, 60.0), (3.2e8, 0.0)])
def test_a_new_manager_goes_on_counting_and_its_clock_can_only_shorten_a_life(
    world: World, away_s: float, left_s: float
) -> None:
    world.fleet.workers.command("w1", "restart", "tester", world.now)
    world.fleet.close()
    world.now = Now(world.now.monotonic + 1.0, world.now.wall + away_s)
    world.fleet = world.open()
    world.pass_time(left_s + 0.5)
    assert len(world.expire_commands()) == 1


def test_indexes_hold_open_commands_only(world: World) -> None:
    agent_queue = world.fleet.state.command_queue
    world.fleet.workers.command("w1", "kill", "tester", world.now)
    assert [one.worker_id for one in agent_queue.open_of_agent("h1")] == ["w1"]
    assert list(agent_queue.open_of_agent("h2")) == []
    world.pass_time(61)
    world.expire_commands()
    assert list(agent_queue.open_of_agent("h1")) == []
    assert agent_queue.expire(world.pass_time(61)) == []


def test_finished_commands_are_kept_up_to_a_bound(world: World) -> None:
    agent_queue = world.fleet.state.command_queue
    for number in range(KEEP_FINISHED + 10):
        with world.changing() as tx:
            record = CommandRecord(f"c-{number}", number, "w1", "h1", "stop", 1, 1, "tester", world.now.wall)
            agent_queue.finish(tx, record, "done", "")
    assert agent_queue.get("c-9") is None and agent_queue.get("c-10") is not None
