"""A worker was moved; then its old host is pruned, undeployed, added again, renamed, off: the job is not affected."""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

WORKER = "roam"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("moved"), hosts=2) as one:
        one.deploy({"node1": [stamps.stamping(WORKER)], "node2": []})
        yield one


class Retirement:
    """Actions on the worker's `old` host while it runs on `new`, where the inventory declares it."""

    def __init__(self, world: World, old: str, new: str) -> None:
        self.world, self.old, self.new = world, world.host(old), world.host(new)

    def inventory(self, old_name: str = "", with_old: bool = True) -> str:
        hosts = {old_name or self.old.name: jobs.host_variables(self.old, [])} if with_old else {}
        hosts[self.new.name] = jobs.host_variables(self.new, [stamps.stamping(WORKER)])
        return str(jobs.write_inventory(self.world.directory / "moved.yaml", hosts))

    def invoke(self, task: str, *options: str, inventory: str = "") -> subprocess.CompletedProcess[str]:
        return self.world.operator.invoke(task, "--hosts", inventory or self.inventory(), *options, timeout_s=120)

    def well(self, task: str, *options: str, inventory: str = "") -> str:
        run = self.invoke(task, *options, inventory=inventory)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def acts(self) -> list[Callable[[], None]]:
        return [self.pruned, self.undeployed_and_added_again, self.renamed, self.off]

    def pruned(self) -> None:
        self.well("deploy", "--limit", self.old.name, "--prune")
        self.well("deploy", "--prune")

    def undeployed_and_added_again(self) -> None:
        self.well("undeploy", "--limit", self.old.name)
        self.well("deploy")

    def renamed(self) -> None:
        """The same machine under another name; its old name is no longer in the inventory."""
        other = self.inventory(old_name="renamed")
        self.well("deploy", inventory=other)
        self.well("deploy", "--prune", inventory=other)
        self.well("undeploy", "--limit", "renamed", inventory=other)
        self.well("deploy")

    def off(self) -> None:
        self.old.power_cut()
        assert self.invoke("deploy", "--prune").returncode == 2
        assert self.invoke("undeploy", "--limit", self.old.name).returncode == 2
        self.old.power_on()
        self.well("deploy")
        self.world.wait_connected(self.old.name)


@pytest.mark.chaos(34)
def test_retiring_the_old_host_of_a_moved_worker_never_touches_the_job(world: World, chaos_report: ChaosReport) -> None:
    done = 0
    for number in chaos_report.rounds(short=1, long=10):
        old, new = ("node1", "node2") if number % 2 == 0 else ("node2", "node1")
        world.settled(WORKER)
        assert world.operator.invoke("move", WORKER, new).returncode == 0
        wait_until(lambda new=new: stamps.children(world.host(new), WORKER), 30, f"{WORKER} on {new}")  # type: ignore[misc]
        world.settled(WORKER)
        job = stamps.only_child(world.host(new), WORKER)
        retirement = Retirement(world, old, new)
        retirement.well("deploy", "--limit", old, "--prune")  # its new host has not been deployed since
        for _ in range(2):
            again = retirement.well("deploy", "--prune")
            assert "not in the inventory" not in again and "declared again" not in again, again
            assert "ok=2  changed=0" in again, again
        acts = retirement.acts() if chaos_report.long else [retirement.undeployed_and_added_again]
        random.shuffle(acts)
        for act in acts:
            act()
            done += 1
            assert stamps.only_child(world.host(new), WORKER) == job, f"{act.__name__}: {world.reported(WORKER)}"
            view = world.settled(WORKER)
            known = (view["host"], view["desired"], view["undeclared"], view["restarts_total"])
            assert known == (new, "running", False, 0), f"{act.__name__}: {world.reported(WORKER)}"
    found = stamps.instances(world.stamps(WORKER))
    assert stamps.overlap_ms(found) == 0, found
    chaos_report(measured=f"same process after {done} retirements of its old host; overlap 0 ms")
