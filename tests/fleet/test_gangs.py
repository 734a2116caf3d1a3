"""A group that fails and restarts together, on three real hosts and a spare: every instance stamped by one clock."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet]

LEASE_S, GRACE_S = 6.0, 2.0
GROUP: dict[str, Any] = {"trainers": {"restart": "gang", "rendezvous": "torch", "max_attempts": 10}}
MEMBERS = ("rank-1", "rank-2", "rank-10")  # in the order of their ranks
HOST_OF = dict(zip(MEMBERS, ("node1", "node2", "node3"), strict=True))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    settings = ["recovery.task_reassignment=true"]
    with World(tmp_path_factory.mktemp("gang"), hosts=4, settings=settings) as one:
        workers = {host: [stamps.stamping(member, **spec())] for member, host in HOST_OF.items()}
        more = {host.name: {"procguard_groups": GROUP} for host in one.fleet.hosts}
        more["node4"]["procguard_spare"] = True
        one.deploy({**workers, "node4": []}, more)
        yield one


def spec() -> dict[str, Any]:
    return {"group": "trainers", "lease_s": LEASE_S, "stop_grace_s": GRACE_S}


def gang(world: World) -> dict[str, Any]:
    return next(one for one in world.manager.get("/api/groups")["groups"] if one["group"] == "trainers")


def together(world: World, above_epoch: int = 0, timeout_s: float = 40) -> dict[str, Any]:
    """The gang once all its members run under one epoch above this one."""

    def arrived() -> dict[str, Any]:
        view = gang(world)
        well = view["epoch"] > above_epoch and all(
            one["state"] == "running" and one["epoch"] == view["epoch"] for one in view["members"]
        )
        return view if well else {}

    try:
        return wait_until(arrived, timeout_s, "all members running together", every_s=0.02)
    except AssertionError as exc:
        raise AssertionError(f"{exc}; {gang(world)}; {world.events('limit=40')}") from None


def starts(world: World, epoch: int) -> dict[str, list[stamps.Instance]]:
    """Of each member: its instances under this epoch, from whatever host."""
    found = stamps.instances(world.stamps(*MEMBERS))
    return {member: [one for one in found if one.worker == member and one.epoch == epoch] for member in MEMBERS}


def assert_never_mixed(world: World) -> None:
    found = stamps.instances(world.stamps(*MEMBERS))
    print(f"mixed epochs: {stamps.mixed_epochs_ms(found):.1f} ms in {len(found)} instances")
    assert stamps.mixed_epochs_ms(found) == 0.0
    assert stamps.overlap_ms(found) == 0.0


def environment_of(world: World, member: str) -> dict[str, str]:
    host = world.host(gang_host(world, member))
    child = stamps.only_child(host, member)
    with open(f"/proc/{child.outer_pid}/environ", "rb") as file:
        pairs = (pair.partition(b"=") for pair in file.read().split(b"\0") if pair)
        return {name.decode(): value.decode() for name, _, value in pairs}


def gang_host(world: World, member: str) -> str:
    return str(world.manager.worker(member)["host"])


def test_members_start_together_ranked_as_a_person_counts_and_find_rank_0(world: World) -> None:
    view = together(world)
    assert [one["worker_id"] for one in view["members"]] == list(MEMBERS)
    reported = [environment_of(world, member) for member in MEMBERS]
    assert [env["RANK"] for env in reported] == [env["NODE_RANK"] for env in reported] == ["0", "1", "2"]
    assert {env["WORLD_SIZE"] for env in reported} == {"3"}
    assert {env["MASTER_ADDR"] for env in reported} == {world.fleet[0].address}
    assert {env["PROCGUARD_EPOCH"] for env in reported} == {str(view["epoch"])}
    (port,) = {int(env["MASTER_PORT"]) for env in reported}
    assert 1024 < port < 65536
    assert_never_mixed(world)


def test_one_member_killed_restarts_all_under_one_new_epoch_and_spends_one_attempt(world: World) -> None:
    before = together(world)
    host = world.host(gang_host(world, "rank-2"))
    killed_at = time.monotonic()
    host.kill(stamps.only_child(host, "rank-2"))
    after = together(world, before["epoch"])
    print(f"\none member killed: all run again after {time.monotonic() - killed_at:.2f} s")
    assert time.monotonic() - killed_at < 15
    assert after["attempts"] == before["attempts"] + 1
    assert after["incident"]["member"] == "rank-2"
    assert "signal 9" in after["incident"]["reason"]
    assert {member: len(found) for member, found in starts(world, after["epoch"]).items()} == dict.fromkeys(MEMBERS, 1)
    assert_never_mixed(world)


def test_an_operators_restart_of_one_member_restarts_all_and_spends_nothing(world: World) -> None:
    before = together(world)
    world.manager.command("rank-10", "restart")
    after = together(world, before["epoch"])
    assert after["attempts"] == before["attempts"]
    ports = {environment_of(world, member)["MASTER_PORT"] for member in MEMBERS}
    assert ports == {after["master"].rsplit(":", 1)[1]}
    assert_never_mixed(world)


def test_stopping_one_member_stops_all_and_starting_one_starts_all(world: World) -> None:
    before = together(world)
    world.manager.command("rank-2", "stop")
    for member in MEMBERS:
        world.manager.wait_worker(member, "stopped")
    assert gang(world)["phase"] == "stopped"
    world.stays(lambda: not any(stamps.children(host, member) for host in world.fleet.hosts for member in MEMBERS), 1.5)
    world.manager.command("rank-10", "start")
    together(world, before["epoch"])
    assert_never_mixed(world)


def test_a_manager_killed_in_the_middle_of_an_incident_goes_on_and_starts_nothing_twice(world: World) -> None:
    before = together(world)
    host = world.host(gang_host(world, "rank-1"))
    host.kill(stamps.only_child(host, "rank-1"))
    wait_until(lambda: gang(world)["incident"] != before["incident"], 10, "an incident", every_s=0.005)
    world.manager.kill()
    world.manager.start()
    after = together(world, before["epoch"], 60)
    counted = {member: len(found) for member, found in starts(world, after["epoch"]).items()}
    assert counted == dict.fromkeys(MEMBERS, 1)
    assert_never_mixed(world)


def test_a_lost_hosts_member_goes_to_the_spare_with_its_rank_and_all_restart(world: World) -> None:
    """Once its lease has ended, and not before; the returning host has no lease for it any more."""
    before = together(world)
    lost = world.host("node2")
    cut_at = time.monotonic()
    lost.power_cut()
    after = together(world, before["epoch"], 90)
    took_s = time.monotonic() - cut_at
    print(
        f"\nhost lost: all run again, one on the spare, after {took_s:.1f} s (lease {LEASE_S:g} s, grace {GRACE_S:g} s)"
    )
    assert gang_host(world, "rank-2") == "node4"
    assert environment_of(world, "rank-2")["RANK"] == "1"
    assert_never_mixed(world)
    lost.power_on()
    world.wait_connected("node2")
    world.stays(lambda: not stamps.children(lost, "rank-2"), 2)
    assert gang(world)["epoch"] == after["epoch"]
    assert_never_mixed(world)
