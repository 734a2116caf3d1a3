"""The document's servers B and C: a worker started by hand on another machine, without any token."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

CHECKOUT = "/opt/procguard"
AGENT = "launcher:by-hand"


@dataclass
class Scene:
    fleet: Fleet
    manager: Manager
    numbers: Iterator[int]

    def launch(self, host: FleetHost, command: str | None = None) -> Launcher:
        """Type the document's line on this host (its third way: the hosts have no set-up checkout)."""
        words = [
            "python3", "-m", "procguard.worker_launcher", "--worker-id", "by-hand",
            "--manager-url", f"http://{self.fleet.manager_address}:{self.manager.port}",
            "--command", command or f"python3 {jobs.JOB_PATH} by-hand",
        ]  # fmt: skip
        out = f"/root/jobs/launcher-{next(self.numbers)}.out"
        environment = f"PYTHONPATH={CHECKOUT} PYTHONDONTWRITEBYTECODE=1"
        line = f"{environment} exec {shlex.join(words)} >{out} 2>&1 </dev/null"
        pid = int(host.run(f"mkdir -p /root/jobs; cd /root/jobs; ({line}) & echo $!").stdout)
        return Launcher(host, pid, out)


@dataclass
class Launcher:
    host: FleetHost
    pid: int
    out: str

    def said(self) -> str:
        return self.host.path(self.out).read_text(errors="replace")

    def is_alive(self) -> bool:
        return self.pid in [one.pid for one in self.host.processes()]

    def send(self, signal_name: str) -> None:
        self.host.run(f"kill -{signal_name} {self.pid}", check=False)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """Two hosts that see this checkout."""
    require_fleet()
    with Fleet(2) as fleet:
        jobs.plant(fleet)
        for host in fleet.hosts:
            host.mount(REPOSITORY, CHECKOUT)
        operator = Operator.with_keys(tmp_path_factory.mktemp("home"), None, None)
        directory = tmp_path_factory.mktemp("manager")
        with Manager(directory, operator.environment, ["monitoring.heartbeat_timeout=3"]) as manager:
            yield Scene(fleet, manager, itertools.count(1))


@pytest.fixture(scope="module")
def approved(scene: Scene) -> Launcher:
    """A launcher on node1 that waited for approval and got it; its waiting is checked too."""
    launcher = scene.launch(scene.fleet[0])
    pending = wait_until(
        lambda: [one for one in scene.manager.get("/api/agents")["agents"] if one["agent_state"] == "pending"],
        20,
        f"a pending launcher; {launcher.said()}",
    )[0]
    assert pending["agent"] == AGENT
    wait_until(lambda: pending["fingerprint"] in launcher.said(), 10, "the fingerprint on its side")
    assert jobs.children(scene.fleet[0], "by-hand") == []
    status, body = scene.manager.request("POST", f"/api/agents/{AGENT}/approve")
    assert status < 300, body
    return launcher


def test_it_runs_nothing_until_approved_and_then_runs_here(scene: Scene, approved: Launcher) -> None:
    view = scene.manager.wait_worker("by-hand", "running", 20)
    assert view["host"] == "node1"
    assert view["pid"] == jobs.only_child(scene.fleet[0], "by-hand").pid
    wait_until(lambda: len(jobs.numbers(scene.manager.log_text("by-hand"), "by-hand")) > 10, 15, "its log")


def test_the_same_id_from_another_host_waits_and_whoever_approves_it_sees_the_holder(
    scene: Scene, approved: Launcher
) -> None:
    """An unauthenticated caller does not learn where the worker runs."""
    scene.manager.wait_worker("by-hand", "running", 20)
    other = scene.launch(scene.fleet[1])
    wait_until(lambda: "waits for approval" in other.said(), 20, "it waits")
    status, body = scene.manager.request("POST", f"/api/agents/{AGENT}/approve")
    assert status == 409 and b"is held by launcher:by-hand on host node1" in body
    assert "node1" not in other.said()
    other.send("TERM")
    wait_until(lambda: not other.is_alive(), 20, "its end")
    assert scene.manager.request("POST", f"/api/agents/{AGENT}/deny")[0] < 300
    assert jobs.children(scene.fleet[1], "by-hand") == []
    assert len(jobs.children(scene.fleet[0], "by-hand")) == 1


def test_a_second_launcher_of_the_same_worker_is_refused_naming_the_first(scene: Scene, approved: Launcher) -> None:
    child = jobs.only_child(scene.fleet[0], "by-hand")
    other = scene.launch(scene.fleet[0])
    wait_until(lambda: not other.is_alive(), 20, "its end")
    assert f"pid {approved.pid}" in other.said()
    assert child.is_alive()
    assert approved.is_alive()


def test_killed_launcher_leaves_its_child_and_the_next_one_adopts_it(scene: Scene, approved: Launcher) -> None:
    """Only with the same command; no second approval is needed. SIGTERM then ends launcher and child."""
    child = jobs.only_child(scene.fleet[0], "by-hand")
    approved.send("KILL")
    wait_until(lambda: not approved.is_alive(), 5, "killed")
    scene.manager.wait_worker("by-hand", "unknown", 20)
    other = scene.launch(scene.fleet[0], "sleep 77")
    wait_until(lambda: not other.is_alive(), 20, "the end of the launcher with another command")
    assert re.search(r"already running.*stop it first", other.said()), other.said()
    assert child.is_alive()

    following = scene.launch(scene.fleet[0])
    view = scene.manager.wait_worker("by-hand", "running", 20)
    assert view["pid"] == child.pid
    assert jobs.only_child(scene.fleet[0], "by-hand") == child

    following.send("TERM")
    wait_until(lambda: not following.is_alive(), 20, "the launcher's end")
    assert not child.is_alive()
    scene.manager.wait_worker("by-hand", "stopped", 20)
    state = f"agent_state of {view['agent']}"
    wait_until(
        lambda: (
            [a["agent_state"] for a in scene.manager.get("/api/agents")["agents"] if a["agent"] == view["agent"]]
            == ["ended"]
        ),
        10,
        state,
    )
