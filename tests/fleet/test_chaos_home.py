"""Two hosts on one NFS-like home: each manages its own workers; locks and sockets are on host-local disks."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.fleet.hosts import Fleet, FleetHost
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

OWN = {"node1": ("one-a", "one-b"), "node2": ("two-a", "two-b")}


def share(fleet: Fleet) -> None:
    fleet.share_home(fleet.hosts)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("home"), hosts=2, prepare=share) as one:
        # Each power cut is a failure of the worker: many of them would spend its attempts, and wait longer each time.
        restart = {"max_attempts": 1000, "backoff_s": [0]}
        one.deploy({host: [stamps.stamping(name, restart=restart) for name in names] for host, names in OWN.items()})
        yield one


def running(host: FleetHost) -> list[str]:
    """The stamping workers on this host, from the kernel's process table."""
    return sorted(one.command.split()[4] for one in host.processes(stamps.STAMP_PATH) if "stamp.py" in one.command)


def only_its_own(world: World) -> bool:
    return all(set(running(world.host(name))) <= set(own) for name, own in OWN.items())


def settled(world: World) -> None:
    for name in (name for names in OWN.values() for name in names):
        world.settled(name)


@pytest.mark.chaos(24)
def test_hosts_that_share_a_home_run_only_their_own_workers(world: World, chaos_report: ChaosReport) -> None:
    """Also if both agents are killed at once, and if one host loses power while the other keeps running."""
    node1, node2 = world.fleet.hosts
    settled(world)
    for _round in chaos_report.rounds(short=1, long=10):
        untouched = {name: stamps.only_child(node2, name) for name in OWN["node2"]}
        killed = [(host, agent) for host in world.fleet.hosts for agent in jobs.agents(host)]
        for host, agent in killed:
            host.kill(agent)
        wait_until(
            lambda: all(len(jobs.agents(host)) == 1 for host in world.fleet.hosts), 30, "an agent on each host again"
        )
        settled(world)
        assert only_its_own(world)
        node1.power_cut()
        world.stays(lambda: running(node2) == sorted(OWN["node2"]), 4)
        node1.power_on()
        settled(world)
        assert only_its_own(world)
        assert {name: stamps.only_child(node2, name) for name in OWN["node2"]} == untouched
    locations = {host.name: runtime_dirs(host) for host in world.fleet.hosts}
    for host in world.fleet.hosts:
        assert locations[host.name], locations
        for place in locations[host.name]:
            # Of another file system than the home, and nothing of it on the other host.
            assert host.path(place).stat().st_dev != host.path("/root").stat().st_dev
            other = node2 if host is node1 else node1
            assert place in locations[other.name] or not other.path(place).exists()
    found = stamps.instances(world.stamps(*OWN["node1"], *OWN["node2"]))
    assert {(one.host, one.worker) for one in found} == {(host, name) for host, names in OWN.items() for name in names}
    assert stamps.overlap_ms(found) == 0
    chaos_report(measured="each of 4 workers only on its own host; overlap 0 ms; runtime directories host-local")


def runtime_dirs(host: FleetHost) -> list[str]:
    """Where this host's agent keeps its locks and sockets."""
    records = host.path("/root/.procguard").glob(f"*/{host.name}/agent.json")
    return [json.loads(path.read_text())["runtime_dir"] for path in records]
