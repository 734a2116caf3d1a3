"""The zmq channel between real hosts: two whose agents' Python has pyzmq, and one without it."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from tests.fleet import jobs
from tests.fleet.chaos_world import World
from tests.fleet.hosts import Fleet, FleetHost
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

VENV = "/opt/zmq-python"
ATTEMPTS = {"w1": 2, "w2": 1, "w3": 2}  # of which the logs are read
VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"


def plant_pyzmq(host: FleetHost) -> None:
    """A virtual environment with pyzmq and nothing else, of the Python that these tests' pyzmq was built for."""
    say = "import sys; print('%d.%d' % sys.version_info[:2])"
    for python in (sys._base_executable, "/usr/bin/python3", f"/usr/bin/python{VERSION}"):  # type: ignore[attr-defined]
        if host.run(f'{python} -c "{say}"', check=False).stdout.strip() == VERSION:
            break
    else:
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"no Python {VERSION} on a host for this machine's pyzmq")
    host.run(f"{python} -m venv --without-pip {VENV}")
    packages = host.path(f"{VENV}/lib/python{VERSION}/site-packages")
    ours = Path(zmq.__file__).parent
    shutil.copytree(ours, packages / "zmq")
    if (ours.parent / "pyzmq.libs").is_dir():
        shutil.copytree(ours.parent / "pyzmq.libs", packages / "pyzmq.libs")


def prepare(fleet: Fleet) -> None:
    jobs.plant(fleet)
    for host in fleet.hosts[:2]:
        plant_pyzmq(host)


def channel_of(world: World, host: str) -> tuple[str, str]:
    view = world.manager.host(host)
    return (view["channel"], view["channel_trouble"]) if view["agent_state"] == "connected" else ("", "")


def wait_zmq(world: World, host: str, timeout_s: float = 20) -> None:
    try:
        wait_until(lambda: channel_of(world, host) == ("zmq", ""), timeout_s, f"{host} on zmq")
    except AssertionError as exc:
        log = world.host(host).run("tail -n 20 /root/.procguard/*/*/agent.log", check=False).stdout
        raise AssertionError(f"{exc}; the manager: {channel_of(world, host)}; its agent: {log}") from None


def whole_log(world: World, worker_id: str) -> list[int]:
    """The numbers of its attempt's lines that the manager has; each once and in order, or the test fails."""
    text = world.manager.log_text(worker_id, f"&attempt={ATTEMPTS[worker_id]}")
    numbers = [int(found) for found in re.findall(rf"^{worker_id} line (\d+)$", text, re.MULTILINE)]
    assert numbers == list(range(len(numbers))), f"{worker_id}: lines are missing or doubled"
    return numbers


def started_again(world: World, worker_id: str) -> bool:
    view = world.manager.worker(worker_id)
    return (view["state"], view["attempt"]) == ("running", 2)


def agents_connections(host: FleetHost, port: int) -> int:
    """Established TCP connections of this host to a port of the manager."""
    shown = host.run("cat /proc/net/tcp").stdout
    return len(re.findall(rf"^ *\d+: \S+ \S+:{port:04X} 01 ", shown, re.MULTILINE))


def test_agents_use_zmq_where_they_can_and_http_where_not(tmp_path: Path) -> None:
    base = 21_000 + free_port() % 9_000
    settings = ("communication.adapter_type=zmq", f"communication.adapter_config.port_base={base}")
    with World(tmp_path, 3, settings, prepare=prepare) as world:
        workers = {f"node{number}": [jobs.counting(f"w{number}")] for number in (1, 2, 3)}
        python: dict[str, Any] = {"ansible_python_interpreter": f"{VENV}/bin/python"}
        world.deploy(workers, more={"node1": python, "node2": python})
        first, second, third = world.fleet.hosts

        # Who speaks by which channel, and why not by zmq.
        for host in ("node1", "node2"):
            wait_zmq(world, host)
            # One for heartbeats, one for the held request.
            wait_until(lambda host=host: agents_connections(world.host(host), base) == 2, 10, "two connections")
        wait_until(lambda: "no pyzmq" in channel_of(world, "node3")[1], 15, "node3 says why it is on http")
        assert channel_of(world, "node3")[0] == "http"
        wait_until(lambda: agents_connections(first, base + 1) == 1, 10, "log bytes have a connection of their own")
        assert agents_connections(first, world.manager.port) == 0
        shown = world.operator.invoke("agents").stdout
        assert re.search(r"node1 .* zmq ", shown) and re.search(r"node3 .* http .*no pyzmq", shown), shown
        log = first.run("cat /root/.procguard/*/node1/agent.log").stdout
        assert "channel is_now=zmq" in log

        # A command reaches the child, on every host alike.
        for number, host in ((1, first), (3, third)):
            before = jobs.only_child(host, f"w{number}")
            world.manager.command(f"w{number}", "restart")
            wait_until(lambda before=before: not before.is_alive(), 5, "the child was stopped")
            wait_until(lambda number=number: started_again(world, f"w{number}"), 15, f"w{number} runs its attempt 2")

        # Logs come whole.
        for worker_id in ("w1", "w2", "w3"):
            wait_until(lambda worker_id=worker_id: len(whole_log(world, worker_id)) > 50, 15, f"{worker_id}'s log")

        # A killed agent is noticed by its closed connection and comes back on zmq; the child is not touched.
        child = jobs.only_child(second, "w2")
        [agent] = second.processes("remote_agent run")
        second.kill(agent)
        # "suspect" is what a closed connection makes an agent, and nothing else does.
        wait_until(lambda: world.events("kind=agent_suspect&host=node2"), 10, "the closed connection was noticed")
        wait_until(lambda: second.processes("remote_agent run"), 30, "the agent was started again")
        wait_zmq(world, "node2")
        assert jobs.only_child(second, "w2") == child
        at = whole_log(world, "w2")[-1]
        wait_until(lambda: whole_log(world, "w2")[-1] > at + 50, 15, "its log goes on")

        # The manager is killed: everybody finds the next one, on the channel as before.
        child = jobs.only_child(first, "w1")
        world.manager.kill()
        world.manager.start()
        for host in ("node1", "node2"):
            wait_zmq(world, host)
        wait_until(lambda: channel_of(world, "node3")[0] == "http", 30, "node3 is back")
        assert jobs.only_child(first, "w1") == child
        for worker_id in ("w1", "w2", "w3"):
            at = whole_log(world, worker_id)[-1]
            wait_until(
                lambda worker_id=worker_id, at=at: whole_log(world, worker_id)[-1] > at + 50, 15, "its log goes on"
            )
