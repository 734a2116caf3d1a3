"""Spares take over the workers of a lost host, and the returning host has lost its leases: on real hosts."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.fleet import stamps
from tests.fleet.chaos_world import World
from tests.waiting import wait_until

pytestmark = [pytest.mark.fleet]

LEASE_S, GRACE_S, MARGIN_S = 4.0, 2.0, 2.0
REPLACED_WITHIN_S = LEASE_S + GRACE_S + MARGIN_S + 5.0
FENCE: dict[str, Any] = {"on_partition": "fence", "lease_s": LEASE_S, "stop_grace_s": GRACE_S}
SETTINGS = ("recovery.task_reassignment=true",)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("reassign"), hosts=3, settings=SETTINGS) as one:
        spare = {"procguard_spare": 1}
        one.deploy(
            {"node1": [stamps.stamping("moves", stubborn=True, **FENCE)], "node2": [], "node3": []},
            more={"node2": {**spare, "procguard_labels": {"disk": "fast"}}, "node3": {}},
        )
        time.sleep(3 * 2.5)  # the grace after the manager's start: a host lost during it waits for its end
        yield one


def first_lines(world: World) -> tuple[subprocess.CompletedProcess[str], list[int]]:
    """A search for what each attempt printed first: the run, and the attempts found, the newest first."""
    run = world.operator.invoke("search", "line 0$", "--select", "moves", "--json")
    return run, [json.loads(line)["attempt"] for line in run.stdout.splitlines()][::-1]


def test_after_a_power_cut_a_spare_has_the_task_in_time_and_never_two_have_it(world: World) -> None:
    home, spare = world.host("node1"), world.host("node2")
    stamps.only_child(home, "moves")
    world.settled("moves")
    home.power_cut()
    cut_at = time.monotonic()
    wait_until(lambda: stamps.children(spare, "moves"), REPLACED_WITHIN_S + 20, "the task on its spare", every_s=0.02)
    view = world.settled("moves")
    found = stamps.instances(world.stamps("moves"))
    assert [one.host for one in found] == ["node1", "node2"], found
    took_s = found[1].ns[0] / 1e9 - cut_at
    assert took_s <= REPLACED_WITHIN_S, f"{took_s:.1f} s: {world.events()[-12:]}"
    assert stamps.overlap_ms(found) == 0
    assert found[1].epoch > found[0].epoch
    assert (view["host"], view["home"], view["moves"]) == ("node2", "node1", 1)
    kinds = [event["kind"] for event in world.events("worker=moves&limit=200")]
    assert {"task_waiting", "reassigned"} <= set(kinds)


def test_a_search_finds_what_ran_on_a_host_that_is_off_and_names_that_host(world: World) -> None:
    """Some lines may never have left it."""
    run, attempts = first_lines(world)
    assert len(attempts) == len(set(attempts)) == 2, run.stdout + run.stderr
    assert run.returncode == 2
    assert "2 of 3 hosts" in run.stderr and "node1: away: " in run.stderr, run.stderr
    assert "moves ran there before" in run.stderr


def test_the_host_that_returns_starts_nothing_and_forgets_its_copy(world: World) -> None:
    home = world.host("node1")
    home.power_on()
    world.wait_connected("node1")
    world.stays(lambda: not stamps.children(home, "moves"), for_s=3)
    assert stamps.overlap_ms(stamps.instances(world.stamps("moves"))) == 0
    leftovers = list(home.path("/root/.procguard").glob("*/node1/workers/*"))
    wait_until(lambda: not [one for one in leftovers if one.exists()], 20, f"none of {leftovers}")


def test_a_deployment_of_its_home_says_where_it_is_and_a_move_brings_it_back(world: World) -> None:
    inventory = str(world.directory / "chaos.yaml")
    again = world.operator.invoke("deploy", "--hosts", inventory)
    assert again.returncode == 0, again.stdout + again.stderr
    assert world.manager.worker("moves")["host"] == "node2"
    moved = world.operator.invoke("move", "moves", "node1")
    assert moved.returncode == 0, moved.stdout + moved.stderr
    wait_until(lambda: stamps.children(world.host("node1"), "moves"), 30, "the task at home again")
    assert world.settled("moves")["host"] == "node1"
    found = stamps.instances(world.stamps("moves"))
    assert stamps.overlap_ms(found) == 0
    assert len({one.epoch for one in found}) == len(found)
    run, attempts = first_lines(world)
    assert run.returncode == 0, run.stdout + run.stderr
    assert attempts == sorted(set(attempts), reverse=True) and len(attempts) == len(found), run.stdout + run.stderr


def test_a_cordoned_spare_is_not_used_and_the_worker_says_so(world: World) -> None:
    assert world.operator.invoke("cordon", "node2", "--reason", "fan is loud").returncode == 0
    home = world.host("node1")
    world.settled("moves")
    home.power_cut()
    wait_until(
        lambda: "fan is loud" in world.manager.worker("moves")["reason"], REPLACED_WITHIN_S + 20, "the reason shown"
    )
    assert world.manager.worker("moves")["recovery"]["state"] == "no_spare"
    assert world.operator.invoke("uncordon", "node2").returncode == 0
    wait_until(lambda: stamps.children(world.host("node2"), "moves"), 15, "the task on its spare")
    home.power_on()
    world.wait_connected("node1")
    assert stamps.overlap_ms(stamps.instances(world.stamps("moves"))) == 0
