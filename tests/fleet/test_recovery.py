"""Dead processes are restarted, once; unreachable ones are not affected. On real hosts, with real failures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.fleet.processes import HostProcess
from tests.waiting import Stopwatch, wait_until

pytestmark = pytest.mark.fleet

HEARTBEAT_TIMEOUT_S = 3.0  # conftest's manager


@pytest.fixture(scope="module")
def running(
    fleet: Fleet, manager: Manager, operator: Operator, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Manager]:
    """Four hosts with one counting worker each."""
    hosts = {host.name: jobs.host_variables(host, [jobs.counting(f"on-{host.name}")]) for host in fleet.hosts}
    inventory = jobs.write_inventory(tmp_path_factory.mktemp("inventory") / "prod.yaml", hosts)
    deploy = operator.invoke("deploy", "--hosts", str(inventory))
    assert deploy.returncode == 0, deploy.stdout + deploy.stderr
    yield manager


@pytest.fixture
def node1(running: Manager, fleet: Fleet) -> FleetHost:
    return settled_host(running, fleet[0])


@pytest.fixture
def node2(running: Manager, fleet: Fleet) -> FleetHost:
    return settled_host(running, fleet[1])


def settled_host(manager: Manager, host: FleetHost) -> FleetHost:
    """The host with its agent connected and its worker running, whatever the previous test did."""
    manager.wait_worker(f"on-{host.name}", "running", 30)
    wait_until(lambda: manager.host(host.name)["agent_state"] == "connected", 30, f"{host.name} connected")
    return host


def the_agent(host: FleetHost) -> HostProcess:
    found = wait_until(lambda: jobs.agents(host), 10, f"an agent on {host.name}")
    assert len(found) == 1, found
    return found[0]


def test_killed_child_is_restarted_by_its_runner_and_counted_with_its_reason(
    running: Manager, node1: FleetHost
) -> None:
    child, agent = jobs.only_child(node1, "on-node1"), the_agent(node1)
    before, started = running.worker("on-node1"), len(jobs.starts(node1, "on-node1"))
    killed_ns = time.monotonic_ns()
    node1.kill(child)
    wait_until(lambda: len(jobs.starts(node1, "on-node1")) > started, 10, "a new start", every_s=0.002)
    took_ms = (jobs.starts(node1, "on-node1")[-1][1] - killed_ns) / 1e6
    print(f"\nkill -9 of the child to the new child's first line: {took_ms:.1f} ms")
    assert took_ms < 2000
    after = wait_until(
        lambda: now if (now := running.worker("on-node1"))["attempt"] > before["attempt"] else None, 10, "reported"
    )
    after = running.wait_worker("on-node1", "running")
    assert after["attempt"] == before["attempt"] + 1
    assert after["restarts"] == before["restarts"] + 1
    assert after["last_exit"]["signal"] == 9
    assert after["last_exit"]["attempt"] == before["attempt"]
    events = running.get("/api/events?worker=on-node1&limit=50")["events"]
    assert any("signal 9" in event["reason"] for event in events), events
    assert the_agent(node1) == agent  # nothing but the runner took part
    assert after["pid"] == jobs.only_child(node1, "on-node1").pid


def test_killed_agent_comes_back_over_ssh_and_readopts_the_same_child(running: Manager, node2: FleetHost) -> None:
    """No line of its log is lost or duplicated, although it printed continuously."""
    child, agent = jobs.only_child(node2, "on-node2"), the_agent(node2)
    before = running.worker("on-node2")
    node2.kill(agent)
    began = time.monotonic()
    wait_until(lambda: [one for one in jobs.agents(node2) if one != agent], 15, "a new agent")
    wait_until(lambda: running.get("/api/recoveries")["recoveries"][0]["outcome"] != "open", 15, "it is heard")
    print(f"\nkill -9 of the agent until it was heard again: {time.monotonic() - began:.2f} s")
    assert time.monotonic() - began < 10
    recovery = running.get("/api/recoveries")["recoveries"][0]
    assert (recovery["host"], recovery["outcome"]) == ("node2", "recovered")
    assert recovery["steps"], recovery
    assert child.is_alive()
    assert jobs.only_child(node2, "on-node2") == child
    after = running.wait_worker("on-node2", "running")
    assert (after["pid"], after["attempt"], after["restarts"]) == (before["pid"], before["attempt"], before["restarts"])
    assert_log_is_whole(running, node2, "on-node2", after["attempt"])


def assert_log_is_whole(manager: Manager, host: FleetHost, worker_id: str, attempt: int) -> None:
    """Every line that this attempt has printed is in the manager's log, once and in order."""
    printed = jobs.numbers(attempt_log(host, worker_id, attempt).read_text(), worker_id)[-1]

    def arrived() -> list[int]:
        found = jobs.numbers(manager.log_text(worker_id, f"&attempt={attempt}"), worker_id)
        return found if found and found[-1] >= printed else []

    found = wait_until(arrived, 15, f"line {printed} of {worker_id}")
    assert found == list(range(len(found)))


def attempt_log(host: FleetHost, worker_id: str, attempt: int) -> Path:
    home = host.path("/root/.procguard")
    return next(
        path
        for path in home.glob(f"*/{host.name}/workers/*/attempts/{attempt}.log")
        if (path.parents[1] / "worker_id").read_text().strip() == worker_id
    )


def test_power_cut_shows_unknown_in_time_and_after_power_on_the_worker_runs_once(
    running: Manager, fleet: Fleet
) -> None:
    """Nothing is restarted elsewhere meanwhile; node3 shares its home with node4, which must not be affected."""
    node3, node4 = settled_host(running, fleet[2]), settled_host(running, fleet[3])
    neighbour, before = jobs.only_child(node4, "on-node4"), running.worker("on-node3")
    began = time.monotonic()
    node3.power_cut()
    unknown = running.wait_worker("on-node3", "unknown", HEARTBEAT_TIMEOUT_S + 10)
    took_s = time.monotonic() - began
    print(f"\npower cut to unknown: {took_s:.2f} s (heartbeat_timeout {HEARTBEAT_TIMEOUT_S:g} s)")
    assert took_s < HEARTBEAT_TIMEOUT_S + 4
    assert unknown["last_known_state"] == "running"
    assert unknown["reason"]
    assert jobs.children(node4, "on-node3") == []

    began = time.monotonic()
    node3.power_on()
    back = running.wait_worker("on-node3", "running", 45)
    print(f"power on to running: {time.monotonic() - began:.2f} s")
    assert back["attempt"] == before["attempt"] + 1
    assert back["epoch"] >= before["epoch"]
    time.sleep(1.0)  # long enough for a second instance to show
    child = jobs.only_child(node3, "on-node3")
    assert child.pid == running.worker("on-node3")["pid"]
    assert jobs.children(node4, "on-node3") == []
    assert jobs.only_child(node4, "on-node4") == neighbour
    assert running.worker("on-node4")["state"] == "running"


def test_cable_out_and_in_keeps_the_same_child_and_its_whole_log(running: Manager, node1: FleetHost) -> None:
    child, agent = jobs.only_child(node1, "on-node1"), the_agent(node1)
    attempt = running.worker("on-node1")["attempt"]
    node1.cable_out()
    try:
        running.wait_worker("on-node1", "unknown", HEARTBEAT_TIMEOUT_S + 10)
        assert child.is_alive()
    finally:
        node1.cable_in()
    began = time.monotonic()
    running.wait_worker("on-node1", "running", 30)
    print(f"\ncable in to running: {time.monotonic() - began:.2f} s")
    assert jobs.only_child(node1, "on-node1") == child
    assert the_agent(node1) == agent
    assert_log_is_whole(running, node1, "on-node1", attempt)


def test_frozen_host_is_unknown_and_thaws_with_the_same_child(running: Manager, node2: FleetHost) -> None:
    """A hung machine accepts connections and stays silent: the manager keeps responding, and nothing is duplicated."""
    child = jobs.only_child(node2, "on-node2")
    node2.freeze()
    try:
        running.wait_worker("on-node2", "unknown", HEARTBEAT_TIMEOUT_S + 10)
        watch = Stopwatch(running.process.pid)
        running.get("/api/hosts")
        assert watch.seconds < 1.0  # the manager answers meanwhile
    finally:
        node2.thaw()
    running.wait_worker("on-node2", "running", 45)
    assert jobs.only_child(node2, "on-node2") == child
    the_agent(node2)


def test_manager_killed_and_started_again_touches_no_child(running: Manager, fleet: Fleet) -> None:
    """An acknowledged stop given just before it died still holds afterwards."""
    for host in fleet.hosts:
        settled_host(running, host)
    same = {host.name: jobs.only_child(host, f"on-{host.name}") for host in fleet.hosts[1:]}
    running.command("on-node1", "stop")
    running.kill()
    began = time.monotonic()
    running.start()
    print(f"\nmanager started again: {time.monotonic() - began:.2f} s")
    for host in fleet.hosts[1:]:
        running.wait_worker(f"on-{host.name}", "running", 20)
    print(f"all workers known again: {time.monotonic() - began:.2f} s")
    running.wait_worker("on-node1", "stopped", 20)
    assert {host.name: jobs.only_child(host, f"on-{host.name}") for host in fleet.hosts[1:]} == same
    assert jobs.children(fleet[0], "on-node1") == []
    running.command("on-node1", "start")
    running.wait_worker("on-node1", "running", 20)


def test_restart_command_reaches_the_child_at_once(running: Manager, node1: FleetHost) -> None:
    child, started = jobs.only_child(node1, "on-node1"), len(jobs.starts(node1, "on-node1"))
    restarts = running.worker("on-node1")["restarts"]
    asked = time.monotonic()
    running.command("on-node1", "restart")
    wait_until(lambda: not child.is_alive(), 10, "the old child's end", every_s=0.001)
    reached_ms = (time.monotonic() - asked) * 1000
    wait_until(lambda: len(jobs.starts(node1, "on-node1")) > started, 10, "the new child", every_s=0.002)
    print(f"\nrestart: the old child ended after {reached_ms:.0f} ms")
    assert reached_ms < 2000
    assert running.wait_worker("on-node1", "running")["restarts"] <= restarts  # an operator's act spends no budget


def test_kill_command_leaves_nothing_and_no_restart(running: Manager, node1: FleetHost) -> None:
    child = jobs.only_child(node1, "on-node1")
    running.command("on-node1", "kill")
    view = running.wait_worker("on-node1", "stopped", 10)
    assert view["desired"] == "stopped"
    assert not child.is_alive()
    time.sleep(1.0)  # long enough for a wrong restart to show
    assert jobs.children(node1, "on-node1") == []
    running.command("on-node1", "start")
    running.wait_worker("on-node1", "running")
