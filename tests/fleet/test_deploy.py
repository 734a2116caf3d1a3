"""`invoke deploy` on four real hosts, two of which share one home directory."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet
from tests.fleet.manager import Manager, Operator
from tests.fleet.processes import HostProcess
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

Run = subprocess.CompletedProcess[str]


@dataclass
class Deployed:
    fleet: Fleet
    manager: Manager
    operator: Operator
    inventory: Path
    first: Run
    first_took_s: float

    def hosts(self, *more_on_node1: dict[str, Any]) -> dict[str, dict[str, Any]]:
        return {
            host.name: jobs.host_variables(
                host, [jobs.counting(worker_of(host.name)), *(more_on_node1 if host.name == "node1" else ())]
            )
            for host in self.fleet.hosts
        }

    def deploy(self, hosts: dict[str, dict[str, Any]] | None = None, *options: str) -> Run:
        if hosts is not None:
            jobs.write_inventory(self.inventory, hosts)
        return self.operator.invoke("deploy", "--hosts", str(self.inventory), *options)

    def everything(self) -> dict[str, set[HostProcess]]:
        """Every agent, runner and child on every host."""
        return {
            host.name: {
                one for one in host.processes() if re.search(r"remote_agent|runner/__main__\.py|count\.py", one.command)
            }
            for host in self.fleet.hosts
        }


def worker_of(host_name: str) -> str:
    return f"count-{host_name}"


@pytest.fixture(scope="module")
def deployed(
    fleet: Fleet, manager: Manager, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    """The four hosts after a first deploy."""
    inventory = tmp_path_factory.mktemp("inventory") / "prod.yaml"
    nothing = subprocess.CompletedProcess[str]([], 0, "", "")
    state = Deployed(fleet, manager, operator, inventory, nothing, 0.0)
    began = time.monotonic()
    state.first = state.deploy(state.hosts())
    state.first_took_s = time.monotonic() - began
    print(f"\nfirst deploy of 4 hosts: {state.first_took_s:.2f} s\n{state.first.stdout}{state.first.stderr}")
    yield state


def said(run: Run) -> str:
    return run.stdout + run.stderr


def test_first_deploy_runs_every_worker_on_its_own_host_once(deployed: Deployed) -> None:
    """Also if two hosts share one home: each runs only its own workers, with one agent."""
    assert deployed.first.returncode == 0, said(deployed.first)
    for host in deployed.fleet.hosts:
        view = deployed.manager.wait_worker(worker_of(host.name), "running")
        assert view["host"] == host.name
        assert view["pid"] == jobs.only_child(host, worker_of(host.name)).pid
        assert len(jobs.agents(host)) == 1
        assert len(host.processes("count.py")) == 1
    assert deployed.first_took_s < 30


def test_first_deploy_reports_each_host_and_whether_recovery_works(deployed: Deployed) -> None:
    text = said(deployed.first)
    for host in deployed.fleet.hosts:
        assert host.name in text
        assert deployed.manager.host(host.name)["recovery_ssh"]["ok"] is True
    assert len(re.findall(r"recovery over SSH: yes", text)) >= 1


def test_the_logs_of_all_hosts_are_searched_where_they_lie(deployed: Deployed) -> None:
    """Each host reports its own worker, also with a shared home; by the installed release."""
    for host in deployed.fleet.hosts:
        deployed.manager.wait_worker(worker_of(host.name), "running")
    found = deployed.operator.invoke("search", "1$", "--since", "1h", "--limit", "5000")
    assert found.returncode == 0, said(found)
    workers = {line.split()[2].rstrip(":") for line in found.stdout.splitlines()}
    assert workers == {worker_of(host.name) for host in deployed.fleet.hosts}
    assert "4 of 4 hosts" in found.stderr
    assert deployed.operator.invoke("search", "(").returncode == 1


def test_second_deploy_changes_nothing(deployed: Deployed) -> None:
    """Every process is the same one: agent, runner, child."""
    before = deployed.everything()
    began = time.monotonic()
    again = deployed.deploy()
    print(f"\nsecond deploy of 4 hosts: {time.monotonic() - began:.2f} s\n{said(again)}")
    assert again.returncode == 0, said(again)
    assert deployed.everything() == before
    assert all(len(processes) == 3 for processes in before.values()), before
    recap = again.stdout[again.stdout.lower().rfind("recap") :]
    assert not re.search(r"changed=[1-9]|failed=[1-9]|unreachable=[1-9]", recap), again.stdout


def test_changed_command_waits_for_a_restart_and_undeclared_worker_runs_on(deployed: Deployed) -> None:
    """A redeploy never affects a child unless --restart-changed or --prune is given."""
    node1 = deployed.fleet[0]
    extra = jobs.counting("extra")
    assert deployed.deploy(deployed.hosts(extra)).returncode == 0
    deployed.manager.wait_worker("extra", "running")
    child = jobs.only_child(node1, "extra")

    changed = extra | {"env": {"GREETING": "it's 你好 $HOME"}}
    run = deployed.deploy(deployed.hosts(changed))
    assert run.returncode == 0, said(run)
    wait_until(lambda: deployed.manager.worker("extra")["restart_pending"], 10, "restart pending")
    assert child.is_alive()

    run = deployed.deploy(None, "--restart-changed")
    assert run.returncode == 0, said(run)
    wait_until(lambda: not child.is_alive(), 15, "old child gone")
    new = jobs.only_child(node1, "extra")
    assert f"GREETING={changed['env']['GREETING']}" in Path(f"/proc/{new.outer_pid}/environ").read_text().split("\0")
    wait_until(lambda: not deployed.manager.worker("extra")["restart_pending"], 10, "no restart pending")

    run = deployed.deploy(deployed.hosts())
    assert run.returncode == 0, said(run)
    assert deployed.manager.worker("extra")["undeclared"] is True
    assert new.is_alive()
    run = deployed.deploy(None, "--prune")
    assert run.returncode == 0, said(run)
    wait_until(lambda: not new.is_alive(), 20, "pruned child gone")
    assert jobs.only_child(node1, worker_of("node1")).is_alive()


def test_operators_stop_survives_a_redeploy(deployed: Deployed) -> None:
    node2 = deployed.fleet[1]
    deployed.manager.command(worker_of("node2"), "stop")
    deployed.manager.wait_worker(worker_of("node2"), "stopped", 20)
    assert deployed.deploy().returncode == 0
    time.sleep(1.0)  # long enough for a wrong start to show
    assert jobs.children(node2, worker_of("node2")) == []
    deployed.manager.command(worker_of("node2"), "start")
    deployed.manager.wait_worker(worker_of("node2"), "running")


def test_a_dead_host_fails_alone(deployed: Deployed) -> None:
    """Exit code 2 and the host's name; the other hosts get their changes."""
    deployed.fleet[1].power_cut()
    try:
        began = time.monotonic()
        run = deployed.deploy(deployed.hosts(jobs.counting("late")))
        print(f"\ndeploy with a dead host: {time.monotonic() - began:.2f} s\n{said(run)}")
        assert run.returncode == 2, said(run)
        assert re.search(r"node2.*(unreachable|cannot connect)", said(run))
        deployed.manager.wait_worker("late", "running")
        jobs.only_child(deployed.fleet[0], "late")
    finally:
        deployed.fleet[1].power_on()


def test_unknown_host_key_is_refused_with_the_command_that_adds_it(deployed: Deployed, tmp_path: Path) -> None:
    stranger = Operator.with_keys(tmp_path / "home", deployed.fleet.private_key, None)
    stranger.manager_url = deployed.manager.url
    before = deployed.everything()
    run = stranger.invoke("deploy", "--hosts", str(deployed.inventory), "--limit", "node1")
    assert run.returncode == 2, said(run)
    assert "host key is not known" in said(run)
    assert not (tmp_path / "home/.ssh/known_hosts").exists()
    assert deployed.everything()["node1"] == before["node1"]

    assert "invoke trust --hosts INVENTORY" in said(run)
    run = stranger.invoke("trust", "--hosts", str(deployed.inventory), "--limit", "node1", "--yes")
    assert run.returncode == 0, said(run)
    run = stranger.invoke("deploy", "--hosts", str(deployed.inventory), "--limit", "node1")
    assert run.returncode == 0, said(run)


def test_recovery_over_ssh_no_when_only_the_operator_has_the_key(deployed: Deployed, tmp_path: Path) -> None:
    """A manager without SSH keys: the deploy works, and reports that the manager cannot recover the host."""
    nobody = Operator.with_keys(tmp_path / "nobody", None, deployed.fleet.known_hosts)
    (tmp_path / "manager").mkdir()
    inventory = jobs.write_inventory(
        tmp_path / "inventory.yaml", {"node1": jobs.host_variables(deployed.fleet[0], [jobs.counting("keyless")])}
    )
    with Manager(tmp_path / "manager", nobody.environment) as manager:
        operator = Operator(deployed.operator.home, deployed.operator.environment, manager.url)
        run = operator.invoke("deploy", "--hosts", str(inventory))
        assert run.returncode == 0, said(run)
        assert re.search(r"recovery over SSH: no \(.+\)", said(run)), said(run)
        assert manager.host("node1")["recovery_ssh"]["ok"] is False
        manager.wait_worker("keyless", "running")
        assert len(jobs.agents(deployed.fleet[0])) == 2  # two fleets on one host, apart
        run = operator.invoke("undeploy", "--hosts", str(inventory))
        assert run.returncode == 0, said(run)
    wait_until(lambda: len(jobs.agents(deployed.fleet[0])) == 1, 10, "the other fleet's agent gone")
    assert jobs.children(deployed.fleet[0], "keyless") == []


def test_an_ordinary_user_needs_nothing_of_root(deployed: Deployed, tmp_path: Path) -> None:
    node2 = deployed.fleet[1]
    inventory = jobs.write_inventory(
        tmp_path / "alice.yaml", {"alice-at-2": jobs.host_variables(node2, [jobs.counting("hers")], user="alice")}
    )
    run = deployed.operator.invoke("deploy", "--hosts", str(inventory))
    assert run.returncode == 0, said(run)
    deployed.manager.wait_worker("hers", "running")
    assert jobs.only_child(node2, "hers").user_id == 47001
    secret_file = next(node2.path("/home/alice/.procguard").glob("*/alice-at-2/agent.json"))
    assert secret_file.stat().st_mode & 0o777 == 0o600
    run = deployed.operator.invoke("undeploy", "--hosts", str(inventory))
    assert run.returncode == 0, said(run)
    # The shell of the last session may see its end a moment after we do.
    wait_until(lambda: not [one for one in node2.processes() if one.user_id == 47001], 10, "nothing of hers runs")
    assert not node2.path("/home/alice/.procguard").exists()
