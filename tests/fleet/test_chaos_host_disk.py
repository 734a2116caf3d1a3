"""The host's own disk, under procguard_home, has no space or no inodes left. Scenario 21.

The disk is small and contains only the agent's files; the jobs record their starts on another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
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
    """From the kernel's process table."""
    return [one.pid for one in host.processes(f" {name}") if one.command.startswith("python3 -c")]


def marked_losses(text: str, name: str) -> int:
    """Asserts that every missing part has a marker with its size. Returns the bytes in markers."""
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
    """The same without the manager: the agent has only the files on its host."""
    host = world.fleet[0]
    world.manager.stop()
    for agent in jobs.agents(host):
        host.kill(agent)
    (directory,) = host.path(HOME).glob(f"*/{host.name}")
    inside = f"{HOME}/{directory.parent.name}/{host.name}"
    host.run(f"python3 -I {inside}/current/remote_agent/install/__main__.py ensure --dir {inside}")
    assert len(jobs.agents(host)) == 1


def kinds(world: World, kind: str) -> int:
    return sum(one["kind"] == kind for one in world.events("limit=500"))


class Round:
    """Separate workers, and one fault after the other while the disk refuses everything."""

    def __init__(self, world: World, what: str, number: int) -> None:
        self.world, self.what = world, what
        self.manager, self.host = world.manager, world.fleet[0]
        self.prints, self.kills, self.stops, self.once, self.budget = (
            f"{role}-{what}-{number}" for role in ("prints", "kills", "stops", "once", "budget")
        )
        specs = [
            worker(PRINTS, self.prints, "2000"),
            worker(PRINTS, self.kills, "10"),
            worker(PRINTS, self.stops, "10"),
            worker(ENDS, self.once, oneshot=True),
            worker(ENDS, self.budget),
        ]
        world.deploy({self.host.name: specs}, more={self.host.name: {"procguard_home": HOME}})
        (self.child,) = alive(self.host, self.prints)
        self.reported = kinds(world, "host_disk_full")

    def end(self, worker_id: str, verb: str) -> float:
        """Seconds until it was so."""
        began = time.monotonic()
        self.manager.command(worker_id, verb)
        self.manager.wait_worker(worker_id, "stopped", 15)
        wait_until(lambda: not alive(self.host, worker_id), 5, f"{worker_id} gone")
        return time.monotonic() - began

    def let_end(self) -> None:
        """Jobs that finish do so while nothing can be written."""
        for name, code in ((self.once, 0), (self.budget, 1)):
            self.host.path(f"/var/tmp/{name}.end").write_text(str(code))
        self.manager.wait_worker(self.once, "exited", 15)

    def is_reported(self) -> None:
        wait_until(
            lambda: kinds(self.world, "host_disk_full") == self.reported + 1, 10, "the manager knows of the disk"
        )
        assert self.manager.host(self.host.name)["disk_trouble"] == self.what

    def nothing_is_undone(self) -> None:
        """Agents restart: from the files on the full disk they start nothing again."""
        for restart in (agent_again, agent_alone):
            restart(self.world)
            self.world.stays(lambda: not alive(self.host, self.kills) and not alive(self.host, self.stops), 1)
        self.manager.start()
        self.world.wait_connected(self.host.name)
        assert starts(self.host, self.once) == starts(self.host, self.kills) == 1
        assert self.manager.worker(self.budget)["state"] in ("backoff", "failed")
        assert alive(self.host, self.prints) == [self.child], self.world.reported(self.prints)
        views = self.manager.get("/api/remote-workers")["workers"]
        assert [one["worker_id"] for one in views if one["state"] == "running"] == [self.prints]

    def recover(self) -> float:
        """Seconds from free space until a stopped worker runs again after a normal start."""
        began = time.monotonic()
        wait_until(lambda: self.manager.host(self.host.name)["disk_trouble"] == "", 15, "the manager knows of the room")
        self.manager.command(self.stops, "start")
        self.manager.wait_worker(self.stops, "running", 15)
        return time.monotonic() - began

    def judge(self) -> int:
        """Everything in the end. Returns the bytes of its log that are lost, and marked."""
        self.manager.wait_worker(self.budget, "failed", 30)
        assert starts(self.host, self.budget) == 4
        assert starts(self.host, self.once) == starts(self.host, self.kills) == 1
        assert kinds(self.world, "host_disk_full") == self.reported + 1
        assert alive(self.host, self.prints) == [self.child]
        lost = marked_losses(self.manager.log_text(self.prints), self.prints)
        for name in (self.prints, self.stops):
            self.end(name, "stop")
        return lost


@pytest.mark.chaos(21)
@pytest.mark.timeout(300)
@pytest.mark.parametrize("what", ["space", "inodes"])
def test_a_full_disk_of_a_host_undoes_nothing_and_starts_nothing_twice(
    world: World, chaos_report: ChaosReport, what: str
) -> None:
    stop_s = kill_s = recovered_s = 0.0
    lost = 0
    for number in chaos_report.rounds(short=1, long=10):
        one = Round(world, what, number)
        with Filler(world.disk, what):  # type: ignore[attr-defined]
            stop_s = max(stop_s, one.end(one.stops, "stop"))
            kill_s = max(kill_s, one.end(one.kills, "kill"))
            one.let_end()
            one.is_reported()
            one.nothing_is_undone()
        recovered_s = max(recovered_s, one.recover())
        lost += one.judge()
    assert max(stop_s, kill_s) <= ACTS_WITHIN_S, (stop_s, kill_s)
    assert recovered_s <= RECOVERS_WITHIN_S
    chaos_report(
        measured=f"no {what}: 0 kills undone, 0 finished jobs run again, 4 starts of a budget of 3; the printing job "
        f"lived ({lost / 1e6:.1f} MB of its log lost, marked, while the manager was away); stop after {stop_s:.1f} s, "
        f"kill after {kill_s:.1f} s; as usual {recovered_s:.1f} s after there was room"
    )
