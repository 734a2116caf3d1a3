"""A host that cannot reach the manager works through the manager's own SSH, and recovers from every failure of it."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

WORKER = "tunnelled"


@dataclass
class World:
    fleet: Fleet
    manager: Manager
    operator: Operator
    inventory: Path

    @property
    def host(self) -> FleetHost:
        return self.fleet[1]

    def tunnel(self) -> dict[str, Any]:
        return dict(self.manager.host("node2").get("tunnel") or {})

    def deploy(self, **variables: Any) -> Any:
        values = jobs.host_variables(self.host, [jobs.counting(WORKER)])
        values |= {"procguard_service": "none", **variables}
        jobs.write_inventory(self.inventory, {"node2": values})
        return self.operator.invoke("deploy", "--hosts", str(self.inventory), timeout_s=90)

    def relays(self) -> list[Any]:
        """The listener for the agent on the host: only the relay, because command lines do not distinguish it."""
        return [one for one in self.host.processes("-I -S -c") if one.command.startswith("python3")]

    def back(self, timeout_s: float = 30) -> float:
        """Until commands reach the host and log lines the manager again; how long that took."""
        began = time.monotonic()
        wait_until(lambda: self.tunnel().get("state") == "up", timeout_s, f"tunnel up; {self.tunnel()}")
        wait_until(
            lambda: self.manager.host("node2").get("agent_state") == "connected", timeout_s, "its agent connected"
        )
        seen = self.manager.log_text(WORKER)[-100:]
        wait_until(lambda: self.manager.log_text(WORKER)[-100:] != seen, timeout_s, "newer log lines")
        return time.monotonic() - began

    def tunnel_process(self) -> psutil.Process:
        assert self.manager.process is not None
        children = psutil.Process(self.manager.process.pid).children()
        [found] = [one for one in children if "procguard.deploy.tunnel.process" in one.cmdline()]
        return found


def cut_off(fleet: Fleet, host: FleetHost) -> None:
    """Nothing that this host sends to the manager arrives, but for the answers to connections that the manager opens:
    its port is closed to the host as by a firewall."""
    host.run(f"ip route replace blackhole {fleet.manager_address}/32")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """node1 is a jump host, node2 has no route to the manager: SSH goes through node1."""
    require_fleet()
    with Fleet(2) as fleet:
        jobs.plant(fleet)
        cut_off(fleet, fleet[1])
        home, directory = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("manager")
        operator = Operator.with_keys(home, fleet.private_key, fleet.known_hosts)
        with Manager(directory, operator.environment, settings=["monitoring.heartbeat_timeout=3"]) as manager:
            operator.manager_url = manager.url
            yield World(fleet, manager, operator, tmp_path_factory.mktemp("inventory") / "prod.yaml")


JUMP = "-o ProxyJump=root@{}"


def test_without_a_way_the_deploy_says_so_and_names_the_tunnel(world: World) -> None:
    run = world.deploy(ansible_ssh_common_args=JUMP.format(world.fleet[0].address))
    assert run.returncode == 2
    text = run.stdout + run.stderr
    assert "node2 can't reach the manager" in text and "procguard_tunnel: true" in text
    assert "Traceback" not in text


def test_through_the_tunnel_everything_works(world: World) -> None:
    """Deploy, heartbeat, commands, logs."""
    jump = JUMP.format(world.fleet[0].address)
    run = world.deploy(ansible_ssh_common_args=jump, procguard_tunnel=True)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "recovery over SSH: yes" in run.stdout
    tunnel = world.tunnel()
    assert tunnel["state"] == "up" and 20000 <= tunnel["port"] < 32000
    view = world.manager.wait_worker(WORKER, "running")
    child = jobs.only_child(world.host, WORKER)
    assert view["pid"] == child.pid
    wait_until(lambda: len(jobs.numbers(world.manager.log_text(WORKER), WORKER)) > 50, 15, "log lines")
    began = time.monotonic()
    world.manager.command(WORKER, "restart")
    wait_until(lambda: not child.is_alive(), 10, "old child gone")
    print(f"\na command over the tunnel took {time.monotonic() - began:.2f} s")
    world.manager.wait_worker(WORKER, "running")

    again = world.deploy(ansible_ssh_common_args=jump, procguard_tunnel=True)
    assert again.returncode == 0 and re.search(r"changed=0", again.stdout), again.stdout + again.stderr
    listed = world.operator.invoke("hosts")
    assert "tunnel" in listed.stdout, listed.stdout
    doctor = world.operator.invoke("doctor", "node2", "--hosts", str(world.inventory))
    assert doctor.returncode == 0 and "✓ tunnel" in doctor.stdout, doctor.stdout + doctor.stderr


def test_nobody_is_an_operator_at_the_end_of_a_tunnel(world: World) -> None:
    """Root on the host has access to the manager's SSH session, but gets only the rights of an agent's secret."""
    port = world.tunnel()["port"]
    token = world.operator.invoke("token.create", "--name", "t").stdout.split()
    secret = next(word for word in token if len(word) > 30)
    for path in ("/api/remote-workers", "/api/hosts", "/api/tokens", "/metrics", "/", "/healthz", "/ws"):
        for extra in ("", f"-H 'Authorization: Bearer {secret}'"):
            said = world.host.run(
                f"curl -s -o /dev/null -w '%{{http_code}}' {extra} -H 'Host: localhost' http://127.0.0.1:{port}{path}"
            )
            assert said.stdout == "404", (path, said.stdout)
    body = "-H 'Content-Type: application/json' -d '{\"command\": \"stop\"}'"
    said = world.host.run(
        f"curl -s -w '%{{http_code}}' -H 'Authorization: Bearer {secret}' -X POST {body} "
        f"http://127.0.0.1:{port}/api/workers/{WORKER}/command"
    )
    assert said.stdout.endswith(("404", "405")), said.stdout
    beat = world.host.run(
        f"curl -s -w '%{{http_code}}' -H 'Authorization: Bearer {secret}' -X POST -H 'Content-Type: application/json' "
        f'-d \'{{"state": "running"}}\' http://127.0.0.1:{port}/api/workers/{WORKER}/heartbeat'
    )
    assert beat.stdout.endswith("401"), beat.stdout
    assert world.manager.worker(WORKER)["state"] == "running"


@pytest.mark.parametrize("broken", ["tunnel process", pytest.param("sshd", marks=pytest.mark.long)])
def test_a_tunnel_that_is_killed_comes_back_and_the_child_notices_nothing(world: World, broken: str) -> None:
    child = jobs.only_child(world.host, WORKER)
    before = world.tunnel()["port"]
    if broken == "tunnel process":
        world.tunnel_process().send_signal(signal.SIGKILL)
    else:
        sessions = [one for one in world.host.processes("sshd: root") if "listener" not in one.command]
        for one in sessions:
            world.host.kill(one)
    wait_until(lambda: world.tunnel().get("state") != "up", 10, "tunnel down", every_s=0.005)
    print(f"\nback {world.back():.1f} s after {broken} was killed")
    assert world.tunnel()["port"] == before
    assert jobs.only_child(world.host, WORKER) == child
    kinds = [event["kind"] for event in world.manager.get("/api/events?host=node2")["events"]]
    assert kinds.count("tunnel_up") >= 2 and "tunnel_down" in kinds


@pytest.mark.long
def test_a_relay_that_hangs_is_replaced(world: World) -> None:
    """Its connection is silently dead: a new one replaces it, on the same port."""
    [relay] = world.relays()
    world.host.kill(relay, signal.SIGSTOP)
    world.tunnel_process().send_signal(signal.SIGKILL)
    wait_until(lambda: world.tunnel().get("state") != "up", 10, "tunnel down", every_s=0.005)
    print(f"\nback {world.back():.1f} s after its relay hung")
    assert not relay.is_alive()


def test_a_killed_agent_is_missed_at_once_and_started_over_ssh(world: World) -> None:
    """A closed connection is a signal, also through a tunnel; nothing on the host would restart the agent."""
    [agent] = jobs.agents(world.host)
    child = jobs.only_child(world.host, WORKER)
    world.host.kill(agent)
    wait_until(lambda: [one for one in jobs.agents(world.host) if one != agent], 15, "its successor")
    world.back()
    assert jobs.only_child(world.host, WORKER) == child
    suspected = [one for one in world.manager.get("/api/events?host=node2")["events"] if one["kind"] == "agent_suspect"]
    assert suspected


@pytest.mark.long
def test_a_short_cut_of_the_cable_breaks_nothing(world: World) -> None:
    """TCP continues: the same tunnel, the same port, no event."""
    before = world.tunnel()
    world.host.cable_out()
    time.sleep(1.5)
    world.host.cable_in()
    world.back()
    assert world.tunnel() == before


@pytest.mark.long
def test_a_cut_that_both_ends_notice_is_over_soon_after_the_cable_is_back(world: World) -> None:
    """Silence for half a minute: both ends give up, and the host's sshd is not notified."""
    child, port = jobs.only_child(world.host, WORKER), world.tunnel()["port"]
    [relay] = world.relays()
    world.host.cable_out()
    try:
        wait_until(lambda: world.tunnel().get("state") == "down", 60, "the tunnel is down")
        wait_until(lambda: not relay.is_alive(), 60, "the relay gave up")
    finally:
        world.host.cable_in()
    print(f"\nback {world.back(40):.1f} s after the cable")
    assert world.tunnel()["port"] == port and jobs.only_child(world.host, WORKER) == child


def test_a_manager_that_is_killed_opens_its_tunnels_again(world: World) -> None:
    child = jobs.only_child(world.host, WORKER)
    port = world.tunnel()["port"]
    world.manager.kill()
    wait_until(lambda: not world.relays(), 10, "the relay ended with the manager")
    world.manager.start()
    print(f"\nback {world.back():.1f} s after the manager's start")
    assert jobs.only_child(world.host, WORKER) == child and world.tunnel()["port"] == port


@pytest.mark.long
def test_a_host_that_lost_power_is_back_with_its_worker(world: World) -> None:
    world.host.power_cut()
    world.host.power_on()
    cut_off(world.fleet, world.host)
    wait_until(lambda: jobs.children(world.host, WORKER), 45, "the child runs again")
    print(f"\nback {world.back():.1f} s after the power")


def test_undeploy_leaves_no_relay(world: World) -> None:
    run = world.operator.invoke("undeploy", "--hosts", str(world.inventory))
    assert run.returncode == 0, run.stdout + run.stderr
    wait_until(lambda: not world.relays(), 10, "no relay")
    assert world.manager.host("node2") == {}
    assert not world.host.path("/root/.procguard").exists()
