"""A manager with a new address is found again: recovery sends it to each agent. Jobs are not affected."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

SETTINGS = ["monitoring.heartbeat_timeout=1", "monitoring.interval=0.5", "recovery.recovery_timeout=5"]


class World:
    def __init__(self, fleet: Fleet, manager: Manager, operator: Operator, inventory: Path) -> None:
        self.fleet, self.manager, self.operator, self.inventory = fleet, manager, operator, inventory

    def move_the_manager(self, *settings: str) -> None:
        """The same state on another port."""
        self.manager.stop()
        self.manager.port = free_port()
        self.manager.url = self.operator.manager_url = f"http://127.0.0.1:{self.manager.port}"
        self.manager.settings = [*SETTINGS, *settings]
        self.manager.start()

    def connected(self, host: FleetHost, timeout_s: float = 40) -> None:
        def is_connected() -> bool:
            return bool(self.manager.host(host.name)["agent_state"] == "connected")

        wait_until(is_connected, timeout_s, f"{host.name} connected", every_s=0.1)

    def steps(self, host: FleetHost) -> list[str]:
        found = self.manager.get("/api/recoveries")["recoveries"]
        return [step["text"] for one in found if one["host"] == host.name for step in one["steps"]]

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [one for one in self.manager.get("/api/events?limit=500")["events"] if one["kind"] == kind]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    require_fleet()
    with Fleet(2) as fleet:
        jobs.plant(fleet)
        operator = Operator.with_keys(tmp_path_factory.mktemp("home"), fleet.private_key, fleet.known_hosts)
        hosts = {host.name: jobs.host_variables(host, [jobs.counting(f"on-{host.name}")]) for host in fleet.hosts}
        inventory = jobs.write_inventory(tmp_path_factory.mktemp("inventory") / "prod.yaml", hosts)
        with Manager(tmp_path_factory.mktemp("manager"), operator.environment, settings=SETTINGS) as manager:
            operator.manager_url = manager.url
            deploy = operator.invoke("deploy", "--hosts", str(inventory))
            assert deploy.returncode == 0, deploy.stdout + deploy.stderr
            yield World(fleet, manager, operator, inventory)


def record(host: FleetHost) -> Path:
    return next(host.path("/root/.procguard").glob(f"*/{host.name}/agent.json"))


def test_agents_are_given_the_new_address_of_their_manager_and_children_run_on(world: World) -> None:
    hosts = world.fleet.hosts
    for host in hosts:
        world.manager.wait_worker(f"on-{host.name}", "running")
    before = {host.name: (jobs.only_child(host, f"on-{host.name}"), jobs.agents(host)) for host in hosts}
    old = json.loads(record(hosts[0]).read_text())
    world.move_the_manager("recovery.enable_auto_recovery=false")  # recovery may be quicker than the command below

    found = world.operator.invoke("doctor", "node1", "--hosts", str(world.inventory))
    tries = rf"its agent tries {old['manager_urls'][0]}.*; this manager is at \S+:{world.manager.port}"
    assert re.search(tries, found.stdout)
    assert "recovery sends the agent this address" in found.stdout and found.returncode != 0

    world.move_the_manager()
    wait_until(lambda: len(world.events("agent_addresses")) == len(hosts), 40, "the new addresses", every_s=0.1)
    given = time.monotonic()
    for host in hosts:
        world.connected(host, 10)
    print(f"\nconnected {time.monotonic() - given:.2f} s after the last event")
    for host in hosts:
        assert (jobs.only_child(host, f"on-{host.name}"), jobs.agents(host)) == before[host.name]
        assert any("it only knew" in step for step in world.steps(host)), world.steps(host)
    now = json.loads(record(hosts[0]).read_text())
    assert record(hosts[0]).stat().st_mode & 0o777 == 0o600
    assert all(url.endswith(f":{world.manager.port}") for url in now["manager_urls"])
    moved = ("manager_urls", "manager_tried")
    assert {k: v for k, v in now.items() if k not in moved} == {k: v for k, v in old.items() if k not in moved}

    again = world.operator.invoke("deploy", "--hosts", str(world.inventory))  # finds nothing to correct
    assert again.returncode == 0 and jobs.agents(hosts[0]) == before["node1"][1], again.stdout


def test_where_no_address_leads_to_the_manager_the_incident_says_what_was_tried_and_what_to_set(world: World) -> None:
    node1 = world.fleet[0]
    child = jobs.only_child(node1, "on-node1")
    world.move_the_manager("web.host=127.0.0.1")
    said = wait_until(lambda: [one for one in world.steps(node1) if "at no address" in one], 40, "a look over SSH")
    assert f"http://127.0.0.1:{world.manager.port}: refused" in said[0]
    assert "web.advertise" in said[0] and "web.host" in said[0]
    world.move_the_manager()  # corrected: the attempts of the manager before do not count
    world.connected(node1)
    assert jobs.only_child(node1, "on-node1") == child
