"""A fleet over https with the manager's own CA: deployment, revocation, rotation, and a manager with another CA."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet
WORKER = "count-tls"


class TlsRig:
    def __init__(self, fleet: Fleet, manager: Manager, operator: Operator, inventory: Path) -> None:
        self.host, self.manager, self.operator, self.inventory = fleet.hosts[0], manager, operator, inventory

    def deploy(self) -> None:
        run = self.operator.invoke("deploy", "--hosts", str(self.inventory))
        assert run.returncode == 0, run.stdout + run.stderr

    def is_connected(self) -> bool:
        return self.manager.host(self.host.name).get("agent_state") == "connected"

    def settings(self) -> str:
        [path] = self.host.path(self.host.home_of("root")).glob(f".procguard/*/{self.host.name}/agent.json")
        assert path.stat().st_mode & 0o077 == 0
        return path.read_text()

    def log(self) -> str:
        [path] = self.host.path(self.host.home_of("root")).glob(f".procguard/*/{self.host.name}/agent.log")
        return path.read_text()


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TlsRig]:
    require_fleet()
    with Fleet(1) as fleet:
        jobs.plant(fleet)
        operator = Operator.with_keys(tmp_path_factory.mktemp("home"), fleet.private_key, fleet.known_hosts)
        settings = ["web.tls=auto", "monitoring.heartbeat_timeout=2"]
        with Manager(tmp_path_factory.mktemp("manager"), operator.environment, settings) as manager:
            operator.manager_url = manager.url
            hosts = {fleet.hosts[0].name: jobs.host_variables(fleet.hosts[0], [jobs.counting(WORKER)])}
            inventory = jobs.write_inventory(tmp_path_factory.mktemp("inventory") / "prod.yaml", hosts)
            yield TlsRig(fleet, manager, operator, inventory)


def child(host: FleetHost) -> int:
    return jobs.only_child(host, WORKER).pid


def test_a_host_is_deployed_over_https_and_pinned_to_the_managers_ca(rig: TlsRig) -> None:
    """The command line finds the CA of this machine's manager by itself; the agent got it over SSH."""
    rig.deploy()
    rig.manager.wait_worker(WORKER, "running")
    assert "BEGIN CERTIFICATE" in rig.settings() and "https://10.77" in rig.settings()
    wait_until(lambda: f"{WORKER} line 5" in rig.manager.log_text(WORKER), 20, "its log comes over https")
    assert "curl --cacert" in rig.manager.console() and "sha256:" in rig.manager.console()
    pid = child(rig.host)
    rig.deploy()  # again: nothing changes
    assert child(rig.host) == pid


def test_a_stolen_secret_is_revoked_and_a_deployment_rotates_it_under_the_running_job(rig: TlsRig) -> None:
    pid, stolen = child(rig.host), rig.settings()
    run = rig.operator.invoke("agents.revoke", rig.host.name)
    assert run.returncode == 0 and "workers keep running" in run.stdout, run.stdout + run.stderr
    wait_until(lambda: not rig.is_connected(), 15, "the agent is let in no more")
    assert child(rig.host) == pid
    rig.deploy()
    wait_until(rig.is_connected, 15, "the agent is back with another secret")
    secret_of = lambda text: text.partition('"secret":"')[2].partition('"')[0]  # noqa: E731
    assert secret_of(rig.settings()) != secret_of(stolen) != ""
    assert child(rig.host) == pid


def test_a_manager_with_another_ca_is_not_believed_until_a_deployment_brings_it(rig: TlsRig) -> None:
    pid = child(rig.host)
    rig.manager.stop()
    shutil.rmtree(next(rig.manager.directory.glob("**/tls")))
    rig.manager.start()
    wait_until(lambda: "certificate cannot be trusted" in rig.log(), 60, "the agent says why it does not answer")
    assert not rig.is_connected() and child(rig.host) == pid
    rig.deploy()
    wait_until(rig.is_connected, 15, "the agent believes the new CA")
    assert child(rig.host) == pid
