"""A local user of an agent's host listens at an address that the manager also has, and relays everything to it.

docker0 is 172.17.0.1 on every machine. Whoever may open a port on the agent's host stands between the agent and its
manager there: proof and all.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import REPOSITORY, Fleet, FleetHost, ip
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

WORKER = "relayed"
RECEIVED = "/tmp/heard"
RELAY = REPOSITORY / "tests" / "relay_in_between.py"


@dataclass
class World:
    fleet: Fleet
    manager: Manager
    operator: Operator
    directory: Path
    bridge_address: str

    @property
    def host(self) -> FleetHost:
        return self.fleet[0]

    def listen(self) -> None:
        """alice, an unprivileged user of this host, starts to relay."""
        port = self.manager.port
        self.host.run(f"ip address replace {self.bridge_address}/32 dev lo")
        program = self.host.path("/tmp/relay.py")
        program.write_text(RELAY.read_text())
        program.chmod(0o644)
        self.host.run(
            f"python3 -I -S /tmp/relay.py {self.bridge_address} {port} {self.fleet.manager_address} {port} {RECEIVED} "
            "> /tmp/relay.out 2>&1 < /dev/null & "
            "for i in $(seq 100); do grep -q listening /tmp/relay.out && exit 0; sleep 0.05; done; exit 1",
            user="alice",
        )

    def received(self) -> str:
        return self.host.run(f"cat {RECEIVED} 2>/dev/null || true").stdout

    def config(self) -> dict[str, object]:
        found = self.host.run("cat /root/.procguard/*/node1/agent.json").stdout
        return dict(json.loads(found))

    def deploy(self) -> None:
        values = jobs.host_variables(self.host, [jobs.counting(WORKER)]) | {"procguard_service": "none"}
        inventory = jobs.write_inventory(self.directory / "prod.yaml", {"node1": values})
        run = self.operator.invoke("deploy", "--hosts", str(inventory), timeout_s=90)
        assert run.returncode == 0, run.stdout + run.stderr


@contextlib.contextmanager
def bridge() -> Iterator[str]:
    """One of this machine's own, without ports, as docker0 is without containers. Its address."""
    name, address = f"pgrl{os.getpid()}"[:15], f"172.31.{os.getpid() % 250}.1"
    ip("link", "add", name, "type", "bridge")
    try:
        ip("address", "add", f"{address}/24", "dev", name)
        ip("link", "set", name, "up")
        yield address
    finally:
        ip("link", "delete", name)


@contextlib.contextmanager
def world(tmp_path: Path, *, advertised: bool) -> Iterator[World]:
    require_fleet()
    with bridge() as address, Fleet(1) as fleet:  # the bridge was there first: its address comes first, too
        jobs.plant(fleet)
        home, directory = tmp_path / "home", tmp_path / "manager"
        for one in (home, directory):
            one.mkdir()
        operator = Operator.with_keys(home, fleet.private_key, fleet.known_hosts)
        manager = Manager(directory, operator.environment, settings=["monitoring.heartbeat_timeout=3"])
        if advertised:
            manager.settings.append(f'web.advertise=["http://{address}:{manager.port}"]')
        with manager:
            operator.manager_url = manager.url
            yield World(fleet, manager, operator, tmp_path, address)


def assert_nothing_was_given_away(one: World) -> None:
    secret = str(one.config()["secret"])
    received = one.received()
    assert "Bearer" not in received and secret not in received
    assert "Authorization" not in received, received[:2000]


@pytest.mark.parametrize("advertised", [False, True])
def test_a_local_user_who_relays_gets_no_word_of_the_agent(tmp_path: Path, advertised: bool) -> None:
    """Deployed while the relay listens: the agent uses the manager's own address, whether the bridge's address was
    only the machine's or a careless operator has advertised it."""
    with world(tmp_path, advertised=advertised) as one:
        one.listen()
        one.deploy()
        one.manager.wait_worker(WORKER, "running")
        assert_nothing_was_given_away(one)
        bad = f"http://{one.bridge_address}:{one.manager.port}"
        urls = one.config()["manager_urls"]
        assert isinstance(urls, list) and urls[0] == f"http://{one.fleet.manager_address}:{one.manager.port}", urls
        assert (bad in urls) == advertised, urls

        if not advertised:
            return
        # An agent of an earlier deployment has it first, and the manager is restarted.
        wanted = json.dumps(one.config() | {"manager_urls": [bad, *[url for url in urls if url != bad]]})
        one.host.run(f"cat > $(ls /root/.procguard/*/node1/agent.json) <<'END'\n{wanted}\nEND")
        one.host.run(f": > {RECEIVED}")
        [agent] = jobs.agents(one.host)
        one.host.kill(agent)  # the manager starts it again over SSH
        wait_until(lambda: [found.pid for found in jobs.agents(one.host)] not in ([], [agent.pid]), 30, "its next life")
        wait_until(lambda: "/api/hello" in one.received(), 30, "an agent that tries the relay")
        one.manager.stop()
        one.manager.start()
        wait_until(
            lambda: one.manager.host("node1").get("agent_state") == "connected", 30, "the agent by its other address"
        )
        assert_nothing_was_given_away(one)
