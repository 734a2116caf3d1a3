"""The host's own disk, under procguard_home, has no space or no inodes left. Scenario 21.

The disk is small and holds nothing but the agent's things; what the jobs note of their starts lies on another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, small_disks
from tests.fleet.chaos_world import World
from tests.fleet.hosts import FleetHost
from tests.fleet.small_disks import Filler, LoopDisk
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

ACTS_WITHIN_S = 5.0
RECOVERS_WITHIN_S = 10.0
HOME = "/data/procguard"
DISK_BYTES = 96 * 1024 * 1024
# Prints without catching anything, as most jobs do: a print that raises ENOSPC ends it.
PRINTS = """
import os, sys, time
with open(f"/var/tmp/{sys.argv[1]}.starts", "a") as starts:
    starts.write(f"{os.getpid()} {time.monotonic_ns()} {os.environ.get('PROCGUARD_ATTEMPT')}\\n")
number = 0
while True:
    print(f"{sys.argv[1]} line {number}", "x" * int(sys.argv[2]), flush=True)
    number += 1
    time.sleep(0.01)
"""
# Notes its start, waits for a file of its name, and ends with the code in it.
ENDS = """
import os, sys, time
with open(f"/var/tmp/{sys.argv[1]}.starts", "a") as starts:
    starts.write(f"{os.getpid()} {time.monotonic_ns()} {os.environ.get('PROCGUARD_ATTEMPT')}\\n")
while not os.path.exists(f"/var/tmp/{sys.argv[1]}.end"):
    time.sleep(0.01)
time.sleep(0.3)
sys.exit(int(open(f"/var/tmp/{sys.argv[1]}.end").read()))
"""
RESTART = {"max_attempts": 3, "backoff_s": [0, 0.5], "jitter": 0, "start_secs": 0.1}


def worker(script: str, name: str, *words: str, **spec: Any) -> dict[str, Any]:
    command = ["python3", "-c", script, name, *words]
    return {"worker_id": name, "command": command, "restart": dict(RESTART), "stop_grace_s": 1, **spec}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    small_disks.require()
    directory = tmp_path_factory.mktemp("host-disk")
    with LoopDisk(directory / "disk", directory / "image", DISK_BYTES) as disk, World(directory, hosts=1) as one:
        one.fleet[0].mount(disk.place, "/data")
        one.disk = disk  # type: ignore[attr-defined]
        yield one


def starts(host: FleetHost, name: str) -> int:
    return len(jobs.starts(host, name))


def alive(host: FleetHost, name: str) -> list[int]:
    """By the kernel's word."""
    return [one.pid for one in host.processes(f" {name}") if one.command.startswith("python3 -c")]


def marked_losses(text: str, name: str) -> int:
    """Asserts that whatever is missing stands at a marker that says how much. Returns the bytes that markers name."""
    before, marked, lost = -1, False, 0
    for line in text.splitlines():
        found = re.fullmatch(r".*procguard: ([\d,]+) bytes of this log were dropped.*", line)
        if found:
            lost, marked = lost + int(found[1].replace(",", "")), True
        elif re.fullmatch(rf"{name} line \d+ x+", line):
            number = int(line.split()[2])
            assert number == before + 1 or (marked and number > before), (before, number)
            before, marked = number, False
    assert before > 0
    return lost


def agent_again(world: World) -> None:
    """Its agent is killed; the manager, which reaches the host over SSH, brings it back."""
    host = world.fleet[0]
    for agent in jobs.agents(host):
        host.kill(agent)
    wait_until(lambda: world.manager.host(host.name)["agent_state"] != "connected", 10, "its agent missed")
    world.wait_connected(host.name)


def agent_alone(world: World) -> None:
    """The same while the manager is away: it has nothing to go by but what lies on its host."""
    host = world.fleet[0]
    world.manager.stop()
    for agent in jobs.agents(host):
        host.kill(agent)
    (directory,) = host.path(HOME).glob(f"*/{host.name}")
    inside = f"{HOME}/{directory.parent.name}/{host.name}"
    host.run(f"python3 -I {inside}/current/remote_agent/install.py ensure --dir {inside}")
    assert len(jobs.agents(host)) == 1


def kinds(world: World, kind: str) -> int:
    return sum(one["kind"] == kind for one in world.events("limit=500"))


@pytest.mark.chaos(21)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["space", "inodes"])
def test_a_full_disk_of_a_host_undoes_nothing_and_starts_nothing_twice(
    world: World, chaos_report: ChaosReport, what: str
) -> None:
    host, disk = world.fleet[0], world.disk  # type: ignore[attr-defined]
    slowest = {"stop": 0.0, "kill": 0.0, "recovered": 0.0}
    lost = 0
    for round_ in chaos_report.rounds(short=1, long=10):
        names = {role: f"{role}-{what}-{round_}" for role in ("prints", "kills", "stops", "once", "budget")}
        world.deploy(
            {
                host.name: [
                    worker(PRINTS, names["prints"], "2000"),
                    worker(PRINTS, names["kills"], "10"),
                    worker(PRINTS, names["stops"], "10"),
                    worker(ENDS, names["once"], oneshot=True),
                    worker(ENDS, names["budget"]),
                ]
            },
            more={host.name: {"procguard_home": HOME}},
        )
        (child,) = alive(host, names["prints"])
        time.sleep(0.5)  # what was printed so far is on its way to the manager
        told = kinds(world, "host_disk_full")
        filler = ExitStack()
        filler.enter_context(Filler(disk, what))
        # stop and kill act at once, and what ends by itself ends once.
        began = time.monotonic()
        world.manager.command(names["stops"], "stop")
        world.manager.wait_worker(names["stops"], "stopped", 15)
        slowest["stop"] = max(slowest["stop"], time.monotonic() - began)
        began = time.monotonic()
        world.manager.command(names["kills"], "kill")
        world.manager.wait_worker(names["kills"], "stopped", 15)
        slowest["kill"] = max(slowest["kill"], time.monotonic() - began)
        for role, code in (("once", 0), ("budget", 1)):
            host.path(f"/var/tmp/{names[role]}.end").write_text(str(code))
        world.manager.wait_worker(names["once"], "exited", 15)
        wait_until(lambda: kinds(world, "host_disk_full") == told + 1, 10, "the manager knows of the full disk")
        assert world.manager.host(host.name)["disk_trouble"] == what
        # Agents come and go: with what they find on the full disk nothing is started again.
        for restart in (agent_again, agent_alone):
            restart(world)
            world.stays(lambda: not alive(host, names["kills"]) and not alive(host, names["stops"]), 2)
        world.manager.start()
        world.wait_connected(host.name)
        assert starts(host, names["once"]) == 1
        view = world.manager.worker(names["budget"])
        assert view["state"] in ("backoff", "failed"), view
        assert alive(host, names["prints"]) == [child], world.told(names["prints"])
        shown = [one for one in world.manager.get("/api/remote-workers")["workers"] if one["state"] == "running"]
        assert {one["worker_id"] for one in shown if one["worker_id"] in names.values()} == {names["prints"]}, shown
        # Room again: everything goes on by itself.
        began = time.monotonic()
        filler.close()
        wait_until(lambda: world.manager.host(host.name)["disk_trouble"] == "", 15, "the manager knows of the room")
        world.manager.command(names["stops"], "start")
        world.manager.wait_worker(names["stops"], "running", 15)
        slowest["recovered"] = max(slowest["recovered"], time.monotonic() - began)
        world.manager.wait_worker(names["budget"], "failed", 30)
        assert starts(host, names["budget"]) == 4
        assert kinds(world, "host_disk_full") == told + 1
        agent_again(world)
        assert starts(host, names["once"]) == starts(host, names["kills"]) == 1
        assert alive(host, names["prints"]) == [child]
        lost += marked_losses(world.manager.log_text(names["prints"]), names["prints"])
        for role in ("prints", "stops"):
            world.manager.command(names[role], "stop")
            world.manager.wait_worker(names[role], "stopped")
    assert slowest["stop"] <= ACTS_WITHIN_S and slowest["kill"] <= ACTS_WITHIN_S, slowest
    assert slowest["recovered"] <= RECOVERS_WITHIN_S, slowest
    chaos_report(
        measured=f"no {what}: 0 kills undone, 0 finished jobs started again, 4 starts of a budget of 3; the printing "
        f"job lived ({lost / 1e6:.1f} MB of its log lost and marked while the manager was away); stop after {slowest['stop']:.1f} s, kill after {slowest['kill']:.1f} s; all as usual "
        f"{slowest['recovered']:.1f} s after there was room"
    )
