"""The shipped playbooks on two real hosts: the same results as `invoke`, and idempotent."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet
from tests.fleet.manager import Manager, Operator
from tests.fleet.test_upgrade import release, worker_of

pytestmark = [pytest.mark.fleet, pytest.mark.timeout(400)]  # Ansible takes its time


@dataclass
class World:
    fleet: Fleet
    manager: Manager
    operator: Operator
    inventory: Path
    folder: Path

    def play(self, name: str, *options: str, checkout: Path = REPOSITORY) -> tuple[dict[str, dict[str, int]], str]:
        """Host -> {"ok", "changed", "failed", …} of the recap, and all output."""
        run = subprocess.run(
            [
                sys.executable, "-m", "ansible", "playbook", "-i", str(self.inventory),
                str(checkout / "playbooks" / f"{name}.yaml"), *options,
            ],
            cwd=self.folder,
            env=self.operator.environment
            | {
                "PROCGUARD_MANAGER_URL": self.manager.url,
                "ANSIBLE_FORKS": "4",
                "ANSIBLE_PIPELINING": "1",
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_LOCALHOST_WARNING": "0",
                "ANSIBLE_HOME": str(self.folder / "ansible"),
                "LC_ALL": "C.UTF-8",
            },
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        text = run.stdout + run.stderr
        print(text)
        recap = text[text.rfind("PLAY RECAP") :]
        found = re.findall(r"^(\S+)\s*: (.*)$", recap, re.MULTILINE)
        return {host: {k: int(v) for k, v in re.findall(r"(\w+)=(\d+)", counts)} for host, counts in found}, text

    def pids(self) -> dict[str, int]:
        return {host.name: jobs.only_child(host, worker_of(host.name)).pid for host in self.fleet.hosts}


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    require_fleet()
    with Fleet(2) as hosts:
        jobs.plant(hosts)
        yield hosts


@pytest.fixture(scope="module")
def world(
    fleet: Fleet, manager: Manager, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("playbooks")
    variables = {
        host.name: jobs.host_variables(host, [jobs.counting(worker_of(host.name))])
        | {
            "ansible_python_interpreter": "/usr/bin/python3",
            "procguard_manager_url": f"http://{fleet.network}.1:{manager.port}",
            # ssh itself, which Ansible uses, does not look into $HOME/.ssh
            "ansible_ssh_private_key_file": str(operator.home / ".ssh" / "id_ed25519"),
            "ansible_ssh_common_args": f"-o UserKnownHostsFile={operator.home}/.ssh/known_hosts",
            "procguard_tunnel": host.name == "node2",
        }
        for host in fleet.hosts
    }
    (folder / "project").mkdir()
    (folder / "project" / "train.py").write_text("print(1)\n")
    everywhere = {"procguard_sync": {"src": "project", "dest": CODE}}
    yield World(fleet, manager, operator, jobs.write_inventory(folder / "prod.yaml", variables, everywhere), folder)


def changed(recap: dict[str, dict[str, int]]) -> dict[str, int]:
    return {host: counts["changed"] for host, counts in recap.items()}


NODES = ["node1", "node2"]
CODE = "/root/my project"


ONE = ("--limit", "node2,localhost")  # the one with a tunnel: a play takes seconds of each host


def test_check_mode_says_what_it_would_do_and_does_nothing(world: World) -> None:
    recap, text = world.play("deploy", "--check", *ONE)
    assert changed(recap) == {"localhost": 0, "node2": 2}, text  # the code and the agent
    assert "would install the agent" in text
    assert not any(host.path(CODE).exists() for host in world.fleet.hosts)
    assert world.manager.get("/api/hosts")["hosts"] == []
    assert [host.processes("remote_agent") for host in world.fleet.hosts] == [[], []]


def test_deploy_changes_each_host_once_and_then_nothing(world: World) -> None:
    recap, text = world.play("deploy", "-vvv")  # shows the input of each command
    assert changed(recap) == {"localhost": 0, **dict.fromkeys(NODES, 2)}, text  # the code and the agent
    assert [host.path(f"{CODE}/train.py").read_text() for host in world.fleet.hosts] == ["print(1)\n"] * 2
    assert all(counts["failed"] == counts["unreachable"] == 0 for counts in recap.values())
    assert world.manager.host("node2")["tunnel"]["state"] == "up" and world.manager.host("node1")["tunnel"] is None
    for host in world.fleet.hosts:
        world.manager.wait_worker(worker_of(host.name), "running")
        secret = json.loads(next(host.path("/root").rglob(f"{host.name}/agent.json")).read_text())["secret"]
        assert secret not in text
    before = world.pids()
    assert changed(world.play("deploy", *ONE)[0]) == {"localhost": 0, "node2": 0}
    assert world.pids() == before


def test_what_ansible_brought_is_what_invoke_brings(world: World) -> None:
    """`invoke deploy` finds nothing to do where the playbook was."""
    run = world.operator.invoke("deploy", "--hosts", str(world.inventory), "--json")
    answer: dict[str, Any] = json.loads(run.stdout)
    assert {name: one["status"] for name, one in answer["hosts"].items()} == dict.fromkeys(NODES, "ok"), run.stdout
    assert {one["code"][0]["status"] for one in answer["hosts"].values()} == {"same"}


def test_upgrade_rollback_and_restart_leave_every_child_alone(world: World) -> None:
    before = world.pids()
    newer = release(world.folder / "newer", "agent/agent.py", "\nNEWER = True\n")
    recap, text = world.play("upgrade", checkout=newer)
    assert changed(recap) == {"localhost": 0, **dict.fromkeys(NODES, 1)}, text
    new = {world.manager.host(name)["release"] for name in NODES}
    assert len(new) == 1
    assert changed(world.play("rollback", *ONE)[0]) == {"localhost": 0, "node2": 1}
    assert [world.manager.host(name)["release"] in new for name in NODES] == [True, False]
    agents = {host.name: jobs.agents(host) for host in world.fleet.hosts}
    recap, text = world.play("restart_agent", *ONE)
    assert recap["node2"]["failed"] == 0 and set(recap) == {"localhost", "node2"}, text
    now = {host.name: jobs.agents(host) for host in world.fleet.hosts}
    assert [name for name in NODES if now[name] != agents[name]] == ["node2"]
    assert world.pids() == before


def test_undeploy_leaves_nothing(world: World) -> None:
    """`invoke undeploy` removes what Ansible brought, too."""
    recap, text = world.play("undeploy", *ONE)
    assert changed(recap) == {"localhost": 0, "node2": 1}, text
    assert [host["host"] for host in world.manager.get("/api/hosts")["hosts"]] == ["node1"]
    run = world.operator.invoke("undeploy", "--hosts", str(world.inventory), "--limit", "node1")
    assert run.returncode == 0, run.stdout + run.stderr
    assert world.manager.get("/api/hosts")["hosts"] == []
    for host in world.fleet.hosts:
        assert host.processes("remote_agent") + host.processes("count.py") == []
        assert not host.path("/root/.procguard").exists()
    left = [name for name in os.listdir(world.folder) if name.startswith("procguard-")]
    assert left == []
