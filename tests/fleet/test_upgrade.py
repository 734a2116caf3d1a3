"""`invoke upgrade` and `invoke rollback` on four real hosts: one is first, and no job is affected."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

Run = subprocess.CompletedProcess[str]


def release(folder: Path, file: str, addition: str) -> Path:
    """A checkout with a different agent: `addition` at the end of one of its modules."""
    for name in ("procguard", "remote_agent", "scripts", "playbooks"):
        shutil.copytree(REPOSITORY / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "tasks.py", folder / "tasks.py")
    with open(folder / "remote_agent" / file, "a", encoding="utf-8") as out:
        out.write(addition)
    (folder / ".venv").symlink_to(REPOSITORY / ".venv")  # for the playbooks
    patient = folder / "procguard" / "deploy" / "install" / "deployer.py"
    patient.write_text(patient.read_text().replace("VERIFY_TIMEOUT_S = 30.0", "VERIFY_TIMEOUT_S = 5.0"))
    return folder


@dataclass
class Deployed:
    fleet: Fleet
    manager: Manager
    operator: Operator
    inventory: Path
    folder: Path

    def invoke(self, task: str, checkout: Path = REPOSITORY, *options: str) -> Run:
        run = self.operator.invoke(task, "--hosts", str(self.inventory), *options, checkout=checkout, timeout_s=120)
        print(run.stdout + run.stderr)
        return run

    def pids(self) -> dict[str, int]:
        return {host.name: jobs.only_child(host, worker_of(host.name)).pid for host in self.fleet.hosts}

    def releases(self) -> dict[str, str]:
        return {host.name: self.manager.host(host.name)["release"] for host in self.fleet.hosts}


def worker_of(host: str) -> str:
    return f"count-{host}"


@pytest.fixture(scope="module")
def deployed(fleet: Fleet, manager: Manager, operator: Operator, tmp_path_factory: pytest.TempPathFactory) -> Deployed:
    return first_deployed(fleet, manager, operator, tmp_path_factory.mktemp("upgrade"))


def first_deployed(fleet: Fleet, manager: Manager, operator: Operator, folder: Path) -> Deployed:
    """A worker that prints a hundred numbered lines a second on every host."""
    variables = {host.name: jobs.host_variables(host, [jobs.counting(worker_of(host.name))]) for host in fleet.hosts}
    inventory = jobs.write_inventory(folder / "prod.yaml", variables)
    state = Deployed(fleet, manager, operator, inventory, folder)
    run = state.invoke("deploy")
    assert run.returncode == 0, run.stdout + run.stderr
    for host in fleet.hosts:
        manager.wait_worker(worker_of(host.name), "running")
    return state


def assert_no_line_lost_or_doubled(deployed: Deployed) -> None:
    for host in deployed.fleet.hosts:
        worker = worker_of(host.name)
        written = jobs.numbers(deployed.manager.log_text(worker), worker)
        assert written == list(range(written[0], written[0] + len(written))), worker


def test_upgrade_and_rollback_leave_every_child_alone_and_lose_no_line(deployed: Deployed) -> None:
    upgrade_and_rollback(deployed)


def upgrade_and_rollback(deployed: Deployed) -> None:
    names = [host.name for host in deployed.fleet.hosts]
    before, old = deployed.pids(), deployed.releases()
    newer = release(deployed.folder / "newer", "agent/agent.py", "\nNEWER = True\n")

    run = deployed.invoke("upgrade", newer, "--canary", "node3")
    assert run.returncode == 0, run.stdout + run.stderr
    reported = [line.split()[1] for line in run.stdout.splitlines() if "upgraded" in line]
    assert reported[0] == "node3" and sorted(reported) == sorted(names)
    assert deployed.pids() == before
    new = deployed.releases()
    assert len(set(new.values())) == 1 and not set(new.values()) & set(old.values())

    back = deployed.invoke("rollback")
    assert back.returncode == 0, back.stdout + back.stderr
    assert deployed.releases() == old and deployed.pids() == before
    assert_no_line_lost_or_doubled(deployed)


def test_from_the_portal_one_agent_is_upgraded_restarted_and_its_log_read(deployed: Deployed) -> None:
    """Its children's pids stay; the manager's own release is what an agent gets."""
    before, own, manager = deployed.pids(), deployed.releases(), deployed.manager
    newer = release(deployed.folder / "other", "agent/agent.py", "\nOTHER = True\n")
    run = deployed.invoke("upgrade", newer, "--limit", "node2")
    assert run.returncode == 0, run.stdout + run.stderr
    assert deployed.releases()["node2"] != own["node2"]

    def ask(action: str, reported: str) -> str:
        status, body = manager.request("POST", f"/api/hosts/node2/{action}-agent")
        assert status == 202, body
        events = f"/api/events?host=node2&kind={reported}&after={json.loads(body)['seq']}"
        return str(wait_until(lambda: manager.get(events)["events"], 30, f"the {action}")[-1]["reason"])

    assert ask("upgrade", "agent_upgraded").startswith("release ")
    assert deployed.releases() == own and deployed.pids() == before
    agent = manager.host("node2")["agent_pid"]
    ask("restart", "agent_restarted")
    assert manager.host("node2")["agent_pid"] != agent and deployed.pids() == before
    log = manager.get("/api/hosts/node2/agent-log")
    assert log["running"] and "agent ends" in log["text"] and log["path"].endswith("/agent.log")

    host = next(one for one in deployed.fleet.hosts if one.name == "node2")
    frozen = manager.host("node2")["agent_pid"]
    assert host.ssh(f"kill -STOP {frozen}").returncode == 0
    log = manager.get("/api/hosts/node2/agent-log?bytes=300")
    assert log["text"] and len(log["text"]) <= 300  # whatever its agent does
    ask("restart", "agent_restarted")
    assert manager.host("node2")["agent_pid"] != frozen and deployed.pids() == before
    assert_no_line_lost_or_doubled(deployed)


@pytest.mark.parametrize(
    ("name", "file", "addition"),
    [
        ("does-not-start", "agent/agent.py", "\nraise RuntimeError('a bad release')\n"),
        (
            "is-not-heard",
            "agent/session.py",
            "\n\ndef _mute(self):\n    pass\n\n\nManagerSession.start = _mute\n",
        ),
    ],
    ids=["does-not-start", "is-not-heard"],
)
def test_a_bad_release_goes_back_on_the_first_host_and_never_reaches_the_others(
    deployed: Deployed, name: str, file: str, addition: str
) -> None:
    bad_release(deployed, name, file, addition)


def bad_release(deployed: Deployed, name: str, file: str, addition: str) -> None:
    before, old = deployed.pids(), deployed.releases()
    others = [host.processes("remote_agent") for host in deployed.fleet.hosts[1:]]
    bad = release(deployed.folder / name, file, addition)

    run = deployed.invoke("upgrade", bad)
    text = run.stdout + run.stderr
    assert run.returncode == 2 and "rolled back to release" in text, text
    assert text.count("skipped") >= len(deployed.fleet.hosts) - 1, text
    assert "skipped: 1 of 1 hosts before it failed" in text
    assert deployed.pids() == before and deployed.releases() == old
    assert [host.processes("remote_agent") for host in deployed.fleet.hosts[1:]] == others
    assert deployed.manager.host("node1")["agent_state"] == "connected"


@pytest.mark.long
@pytest.mark.timeout(900)
def test_sixteen_hosts_are_upgraded_and_rolled_back_while_they_print(tmp_path: Path) -> None:
    require_fleet()
    with Fleet(16) as fleet:
        jobs.plant(fleet)
        operator = Operator.with_keys(tmp_path / "home", fleet.private_key, fleet.known_hosts)
        (tmp_path / "manager").mkdir()
        with Manager(tmp_path / "manager", operator.environment) as manager:
            operator.manager_url = manager.url
            deployed = first_deployed(fleet, manager, operator, tmp_path)
            upgrade_and_rollback(deployed)
            bad_release(deployed, "does-not-start", "agent/agent.py", "\nraise RuntimeError('a bad release')\n")
            assert_no_line_lost_or_doubled(deployed)
