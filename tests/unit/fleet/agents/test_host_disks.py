"""A host whose disk refuses writes is reported once, with the next step, however often it is observed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from procguard.fleet.agents.host_disks import KINDS
from procguard.fleet.history.query import EventQuery
from tests.unit.fleet_world import World

FULL: dict[str, Any] = {"disk_trouble": "space", "disk_path": "/data/procguard/f-1/gpu01"}


@pytest.fixture
def world(tmp_path: Path) -> World:
    made = World(tmp_path)
    made.deploy({"gpu01": {"w1": {"command": "python train.py"}}})
    return made


def reported(world: World) -> list[dict[str, Any]]:
    query = EventQuery(kind=("host_disk_full", "host_disk_ok"))
    return [dict(event) for event in world.fleet.state.find_events(query, 200)]


def test_a_full_disk_is_one_event_and_its_end_another(world: World) -> None:
    for _ in range(3):
        world.beat("gpu01", **FULL)
        world.pass_time(20)
    (full,) = reported(world)
    assert full["host"] == "gpu01" and full["cause"] == "disk"
    assert "no space is left on the disk that holds /data/procguard/f-1/gpu01: free some there" in full["reason"]
    assert world.fleet.state.host_view("gpu01")["disk_trouble"] == "space"
    world.beat("gpu01")
    assert [one["kind"] for one in reported(world)] == ["host_disk_full", "host_disk_ok"]
    assert world.fleet.state.host_view("gpu01")["disk_trouble"] == ""


@pytest.mark.parametrize("kind", [*KINDS, "of a newer agent"])
def test_each_kind_has_its_words(world: World, kind: str) -> None:
    world.beat("gpu01", disk_trouble=kind, disk_path="/data")
    assert "/data" in reported(world)[0]["reason"]
    assert world.fleet.state.host_view("gpu01")["disk_trouble"] == (kind if kind in KINDS else "io")


def test_an_agent_that_changes_its_mind_with_every_heartbeat_fills_no_history(world: World) -> None:
    for number in range(100):
        world.beat("gpu01", **(FULL if number % 2 else {}))
        world.pass_time(0.1)
    assert len(reported(world)) <= 3


def test_a_restarted_manager_repeats_no_event(world: World) -> None:
    world.beat("gpu01", **FULL)
    world.restart()
    world.beat("gpu01", **FULL)
    assert [one["kind"] for one in reported(world)] == ["host_disk_full"]
    world.pass_time(20)
    world.beat("gpu01")
    assert [one["kind"] for one in reported(world)] == ["host_disk_full", "host_disk_ok"]
