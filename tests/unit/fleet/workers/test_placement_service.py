"""A task changes its host only after its instance is confirmed stopped; cordons, moves, deployments of moved
workers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.errors import Conflict, NotFound, UsageError
from procguard.fleet.model.records import WorkerRecord
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

FENCED: dict[str, Any] = {"command": "train", "on_partition": "fence", "lease_s": 60.0, "stop_grace_s": 10.0}
CERTAIN_S = 73.0


@pytest.fixture
def world(tmp_path: Path) -> World:
    world = World(tmp_path)
    world.deploy({"h1": {"w1": FENCED}, "s1": {}}, spares={"s1": True})
    world.beat("h1", world.report("w1", lease_left_s=50.0))
    world.beat("s1")
    return world


def worker(world: World) -> WorkerRecord:
    return world.fleet.state.workers_by_id["w1"]


def lose(world: World) -> None:
    world.pass_time(CERTAIN_S)
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    world.beat("s1")


def reassign(world: World, target: str = "s1") -> None:
    with world.changing() as tx:
        world.fleet.placement.reassign(tx, worker(world), target, "its host is lost", actor="tester")


def test_a_task_is_not_given_away_while_its_instance_may_be_alive(world: World) -> None:
    with pytest.raises(Conflict, match="lease"):
        reassign(world)
    assert worker(world).agent_id == "h1"


def test_given_away_it_has_a_new_epoch_its_old_agent_receives_the_removal(world: World) -> None:
    before = worker(world).epoch
    lose(world)
    reassign(world)
    assert worker(world).epoch > before
    (mine,) = world.beat("s1").assignments or []
    assert (mine.desired, mine.epoch, mine.lease_s) == ("running", worker(world).epoch, 60.0)
    (stale,) = world.beat("h1", pid=78).assignments or []
    assert (stale.worker_id, stale.desired, stale.epoch) == ("w1", "removed", before)


def test_the_old_agent_gets_it_also_from_the_next_manager_and_until_it_confirms(world: World) -> None:
    lose(world)
    reassign(world)
    world.restart()
    reply = world.beat("h1", world.report("w1", epoch=1, lease_left_s=0.0), pid=79)
    assert [one.desired for one in reply.assignments or []] == ["removed"]
    assert reply.leases == []
    world.beat("h1", pid=79, assignments_rev=reply.assignments_rev)
    assert world.fleet.state.agents_by_id["h1"].withdrawn == {}


def test_unreported_attempts_keep_their_names(world: World) -> None:
    """During a partition the old host may have restarted it; logs are identified by the number of their attempt."""
    lose(world)
    reassign(world)
    (mine,) = world.beat("s1").assignments or []
    assert mine.attempt_base > 4


def test_it_does_not_go_back_to_a_host_that_may_still_have_its_old_copy(world: World) -> None:
    lose(world)
    reassign(world)
    world.beat("h1", pid=78)
    world.beat("s1", world.report("w1", "failed", lease_left_s=0.0))
    with pytest.raises(Conflict, match="old copy"):
        reassign(world, "h1")
    assert "still be running" in world.fleet.placement.choose(worker(world), world.now).rejected["h1"]


def test_it_goes_back_once_that_is_confirmed(world: World) -> None:
    lose(world)
    reassign(world)
    rev = world.beat("h1", pid=78).assignments_rev
    world.beat("h1", pid=78, assignments_rev=rev)
    world.beat("s1", world.report("w1", "failed", lease_left_s=0.0))
    reassign(world, "h1")
    assert (worker(world).agent_id, worker(world).home) == ("h1", "")


def test_the_new_hosts_events_count_also_where_its_clock_is_behind(world: World) -> None:
    event = world.event("w1", "starting", "running", "started")
    world.beat("h1", world.report("w1", lease_left_s=50.0), events=[event])
    lose(world)
    reassign(world)
    earlier = messages.WorkerEvent("w1", 5, 1.0, 20, "stopped", "starting", "first on the spare")
    world.beat("s1", world.report("w1", lease_left_s=50.0), events=[earlier])
    assert any(one["reason"] == "first on the spare" for one in world.fleet.state.events())


def test_a_promised_gpu_is_no_longer_free(world: World) -> None:
    gpus = [messages.GpuUsage(0), messages.GpuUsage(1, worker_id="other"), messages.GpuUsage(2, trouble="lost")]
    world.beat("s1", usage=messages.HostUsage(gpus=gpus))
    candidate = world.fleet.placement.candidate(world.fleet.state.agents_by_id["s1"], world.now)
    assert candidate.gpus_free == 1
    world.deploy({"s1": {"busy": {"command": "x", "gpus": 2}}}, spares={"s1": True})
    assert world.fleet.placement.candidate(world.fleet.state.agents_by_id["s1"], world.now).gpus_free == 0


# ------------------------------------------------------------------------------------------------------ cordons


def test_a_cordon_is_durable_visible_and_lifted(world: World) -> None:
    world.fleet.placement.cordon("s1", "fan is loud", "anna", world.now)
    world.restart()
    world.beat("s1")
    view = next(one for one in world.fleet.state.hosts() if one["host"] == "s1")
    assert (view["cordoned"]["reason"], view["cordoned"]["actor"]) == ("fan is loud", "anna")
    assert "fan is loud" in world.fleet.placement.choose(worker(world), world.now).rejected["s1"]
    world.fleet.placement.uncordon("s1", "anna", world.now)
    assert world.fleet.placement.choose(worker(world), world.now).agent_id == "s1"


def test_a_cordon_of_a_host_that_is_not_there_is_an_error(world: World) -> None:
    with pytest.raises(NotFound):
        world.fleet.placement.cordon("nowhere", "", "anna", world.now)


# ----------------------------------------------------------------------------------------------- deployments


def test_spare_true_and_spare_1_are_not_the_same(world: World) -> None:
    world.deploy({"s1": {}}, spares={"s1": 1})
    assert world.fleet.placement.candidate(world.fleet.state.agents_by_id["s1"], world.now).carries_most == 1
    world.deploy({"s1": {}}, spares={"s1": True})
    assert world.fleet.placement.candidate(world.fleet.state.agents_by_id["s1"], world.now).carries_most is None


@pytest.mark.parametrize("spare", [-1, "many", 1.5])
def test_a_nonsensical_spare_is_refused(world: World, spare: Any) -> None:
    with pytest.raises(UsageError, match="spare"):
        world.deploy({"s1": {}}, spares={"s1": spare})


def test_a_deployment_of_its_home_leaves_a_reassigned_worker_where_it_is_and_says_so(world: World) -> None:
    lose(world)
    reassign(world)
    epoch = worker(world).epoch
    answer = world.deploy(
        {"h1": {"w1": {**FENCED, "command": "train --more"}}, "s1": {}}, spares={"s1": True}, prune=True
    )
    reported = answer["hosts"]["h1"]["workers"]["w1"]
    assert (reported["result"], "invoke move w1 h1" in reported["message"]) == ("changed", True)
    assert answer["hosts"]["s1"]["workers"] == {}  # a guest is no business of the spare's inventory
    assert (worker(world).agent_id, worker(world).epoch, worker(world).spec.command) == ("s1", epoch, "train --more")


def test_no_longer_declared_by_its_home_a_guest_is_left_alone_and_belongs_to_its_new_host(world: World) -> None:
    lose(world)
    reassign(world)
    reported = world.deploy({"h1": {}}, prune=True)["hosts"]["h1"]["workers"]["w1"]
    assert reported["result"] == "elsewhere" and "runs on s1" in reported["message"]
    assert (worker(world).desired, worker(world).undeclared, worker(world).home) == ("running", False, "")
    assert world.deploy({"h1": {}}, prune=True)["hosts"]["h1"]["workers"] == {}
    assert world.deploy({"s1": {}}, prune=True)["hosts"]["s1"]["workers"]["w1"]["result"] == "removed"


def test_gone_from_the_whole_inventory_a_guest_is_pruned_where_it_lives(world: World) -> None:
    lose(world)
    reassign(world)
    world.deploy({"s1": {}, "h1": {}}, prune=True)
    assert worker(world).desired == "removed"


def moved(world: World) -> None:
    """w1 was moved from h1 to s1 by an operator."""
    world.fleet.placement.move("w1", "s1", "anna", world.now)
    world.beat("h1", world.report("w1", "stopped", lease_left_s=0.0))
    world.fleet.placement.moved(world.now)
    world.beat("s1", world.report("w1", "running", lease_left_s=50.0))


@pytest.mark.parametrize("prune", [False, True])
@pytest.mark.parametrize("hosts", [("h1", "s1"), ("s1", "h1")])
def test_deploying_what_was_moved_and_declared_there_is_idempotent(
    world: World, hosts: tuple[str, ...], prune: bool
) -> None:
    moved(world)
    declared = {host: {"w1": FENCED} if host == "s1" else {} for host in hosts}
    for _ in range(3):
        answer = world.deploy(declared, prune=prune)
        assert answer["hosts"]["h1"]["workers"] == {}
        reported = answer["hosts"]["s1"]["workers"]["w1"]
        assert (reported["result"], reported["message"]) == ("unchanged", "")
    assert (worker(world).desired, worker(world).undeclared, worker(world).home) == ("running", False, "")


def test_retiring_the_old_host_of_a_moved_worker_never_touches_it(world: World) -> None:
    moved(world)
    before = (worker(world).agent_id, worker(world).epoch, worker(world).generation)
    world.deploy({"h1": {}}, prune=True)  # as undeploy does, before the inventory names it anywhere else
    world.fleet.agents.mark("h1", "unreachable", "uninstalled", world.now)
    world.fleet.agents.forget("h1", "anna", world.now)
    again = world.deploy({"h1": {"w1": FENCED}})["hosts"]["h1"]["workers"]["w1"]
    assert again["result"] == "refused" and "invoke move w1 h1" in again["message"]
    world.beat("h1")  # the host is back, under its old name
    assert (worker(world).agent_id, worker(world).epoch, worker(world).generation) == before
    assert (worker(world).desired, worker(world).home, worker(world).undeclared) == ("running", "", False)


def test_a_host_that_is_forgotten_is_nobodys_home_any_more(world: World) -> None:
    moved(world)
    world.fleet.agents.mark("h1", "unreachable", "it is off", world.now)
    world.fleet.agents.forget("h1", "anna", world.now)
    assert worker(world).home == ""
    world.restart()
    assert worker(world).home == ""


def test_a_worker_on_its_way_is_not_pruned_where_it_leaves(world: World) -> None:
    world.fleet.placement.move("w1", "s1", "anna", world.now)
    answer = world.deploy({"h1": {}, "s1": {"w1": FENCED}}, prune=True)
    assert answer["hosts"]["h1"]["workers"] == {}
    assert answer["hosts"]["s1"]["workers"]["w1"]["result"] == "unchanged"
    world.beat("h1", world.report("w1", "stopped", lease_left_s=0.0))
    world.fleet.placement.moved(world.now)
    assert (worker(world).agent_id, worker(world).desired, worker(world).home) == ("s1", "running", "")


def test_declared_on_another_host_it_is_neither_undeclared_nor_pruned_where_it_runs(world: World) -> None:
    """The order of the hosts in the inventory does not matter."""
    answer = world.deploy({"h1": {}, "s1": {"w1": FENCED}}, prune=True)
    assert answer["hosts"]["h1"]["workers"] == {}
    assert answer["hosts"]["s1"]["workers"]["w1"]["result"] == "refused"
    assert (worker(world).desired, worker(world).undeclared) == ("running", False)


# ------------------------------------------------------------------------------------------------------ moves


def test_a_move_stops_first_and_starts_there_once_it_has_stopped(world: World) -> None:
    world.fleet.placement.move("w1", "s1", "anna", world.now)
    world.fleet.placement.moved(world.now)
    assert (worker(world).agent_id, worker(world).desired) == ("h1", "stopped")
    world.restart()
    world.beat("s1")
    world.beat("h1", world.report("w1", "stopped", lease_left_s=0.0))
    world.fleet.placement.moved(world.now)
    assert (worker(world).agent_id, worker(world).desired, worker(world).home) == ("s1", "running", "h1")


def test_a_start_calls_a_move_off(world: World) -> None:
    world.fleet.placement.move("w1", "s1", "anna", world.now)
    world.fleet.workers.command("w1", "start", "anna", world.now)
    world.beat("h1", world.report("w1", "running", lease_left_s=50.0))
    world.fleet.placement.moved(world.now)
    assert (worker(world).agent_id, worker(world).moving) == ("h1", None)


def test_a_worker_stopped_while_it_moves_arrives_stopped(world: World) -> None:
    world.fleet.placement.move("w1", "s1", "anna", world.now)
    world.fleet.workers.command("w1", "stop", "anna", world.now)
    world.beat("h1", world.report("w1", "stopped", lease_left_s=0.0))
    world.fleet.placement.moved(world.now)
    assert (worker(world).agent_id, worker(world).desired) == ("s1", "stopped")


@pytest.mark.parametrize("target", ["h1", "nowhere"])
def test_a_move_that_cannot_be_is_refused_at_once(world: World, target: str) -> None:
    with pytest.raises((Conflict, NotFound)):
        world.fleet.placement.move("w1", target, "anna", world.now)


def test_a_move_to_a_cordoned_host_is_refused_with_the_reason(world: World) -> None:
    world.fleet.placement.cordon("s1", "fan is loud", "anna", world.now)
    with pytest.raises(Conflict, match="fan is loud"):
        world.fleet.placement.move("w1", "s1", "anna", world.now)


def test_a_worker_of_a_lost_host_is_not_forgotten_while_its_lease_may_run(world: World) -> None:
    """Forgotten and declared elsewhere, it would run twice."""
    world.fleet.agents.mark("h1", "unreachable", "no heartbeat", world.now)
    with pytest.raises(Conflict, match="lease"):
        world.fleet.workers.forget("w1", "anna", world.now)
    world.pass_time(CERTAIN_S)
    world.fleet.workers.forget("w1", "anna", world.now)
    assert "w1" not in world.fleet.state.workers_by_id
