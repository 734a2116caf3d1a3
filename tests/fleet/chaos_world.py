"""The basis of each scenario of the chaos suite: a fleet with the stamping job, a manager, and a deployment.

Owns and ends them. Knows no scenario.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.fleet import jobs, stamps
from tests.fleet.conftest import require_fleet
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.manager import Manager, Operator
from tests.waiting import wait_until

HEARTBEAT_TIMEOUT_S = 2.5
SETTINGS = (f"monitoring.heartbeat_timeout={HEARTBEAT_TIMEOUT_S}", "monitoring.interval=1")


class World:
    """`with World(tmp, hosts=2) as world: world.deploy({"node1": [stamps.stamping("w")]})`"""

    def __init__(
        self,
        directory: Path,
        hosts: int,
        settings: Sequence[str] = (),
        *,
        prepare: Callable[[Fleet], None] | None = None,
        manager_environment: Mapping[str, str] | None = None,
    ) -> None:
        require_fleet()
        self.directory = directory
        self._stack = ExitStack()
        with ExitStack() as stack:
            self.fleet: Fleet = stack.enter_context(Fleet(hosts))
            if prepare is not None:
                prepare(self.fleet)
            stamps.plant(self.fleet)
            self.operator = Operator.with_keys(directory / "home", self.fleet.private_key, self.fleet.known_hosts)
            (directory / "manager").mkdir()
            environment = self.operator.environment | dict(manager_environment or {})
            self.manager = Manager(directory / "manager", environment, [*SETTINGS, *settings])
            stack.callback(self.manager.stop)
            self.operator.manager_url = self.manager.url
            self.manager.start()
            self._stack = stack.pop_all()

    def __enter__(self) -> World:
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        self._stack.close()

    def deploy(
        self,
        workers: Mapping[str, Sequence[dict[str, Any]]],
        more: Mapping[str, Mapping[str, Any]] | None = None,
        everywhere: dict[str, Any] | None = None,
    ) -> None:
        """Host name -> its workers; `more`: host name -> further variables, `everywhere`: those of all hosts. Returns
        when all workers run."""
        hosts = {}
        for host in self.fleet.hosts:
            if host.name in workers:
                hosts[host.name] = jobs.host_variables(host, workers[host.name]) | dict((more or {}).get(host.name, {}))
        inventory = jobs.write_inventory(self.directory / "chaos.yaml", hosts, everywhere)
        run = self.operator.invoke("deploy", "--hosts", str(inventory))
        assert run.returncode == 0, run.stdout + run.stderr
        for specs in workers.values():
            for spec in specs:
                self.manager.wait_worker(spec["worker_id"], "running", 30)

    def settled(self, worker_id: str, timeout_s: float = 40) -> dict[str, Any]:
        """Wait until the worker runs and its agent is connected. Returns the manager's view of the worker."""
        view = self.manager.wait_worker(worker_id, "running", timeout_s)
        self.wait_connected(view["host"], timeout_s)
        return self.manager.wait_worker(worker_id, "running", timeout_s)

    def host(self, name: str) -> FleetHost:
        return next(one for one in self.fleet.hosts if one.name == name)

    def wait_connected(self, host: str, timeout_s: float = 40) -> None:
        """Wait for the agent's heartbeat. On failure, reports what the manager did about it."""
        try:
            wait_until(lambda: self.manager.host(host)["agent_state"] == "connected", timeout_s, f"{host} connected")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; {self.manager.get('/api/recoveries')['recoveries'][:3]}") from None

    def stamps(self, *worker_ids: str) -> list[stamps.Stamp]:
        return [one for worker_id in worker_ids for one in stamps.read(self.fleet.hosts, worker_id)]

    def events(self, query: str = "limit=200") -> list[dict[str, Any]]:
        return list(self.manager.get(f"/api/events?{query}")["events"])

    def reported(self, worker_id: str) -> str:
        """The manager's view of a worker and its recent actions, for a failed test."""
        view = self.manager.worker(worker_id)
        known = {name: view.get(name) for name in ("host", "state", "desired", "epoch", "attempt", "reason")}
        events = [f"{one['at'][11:]} {one['kind']} {one['reason']}" for one in self.events("limit=25")]
        return "\n".join([f"the manager: {known}", *events])

    @staticmethod
    def until(predicate: Callable[[], Any], what: str, timeout_s: float) -> float:
        """Seconds until the condition was true."""
        began = time.monotonic()
        wait_until(predicate, timeout_s, what, every_s=0.02)
        return time.monotonic() - began

    @staticmethod
    def stays(predicate: Callable[[], Any], for_s: float) -> float:
        """Assert that the condition stays true, checked every 50 ms. Returns `for_s`."""
        deadline = time.monotonic() + for_s
        while time.monotonic() < deadline:
            assert predicate()
            time.sleep(0.05)
        return for_s


@dataclass
class AgentJournal:
    """The commands in the journals of a host's agents."""

    begun: list[str] = field(default_factory=list)  # one entry per line, so that a command executed twice is visible
    ended: dict[str, str] = field(default_factory=dict)  # command id -> done, failed, expired


def agent_journal(host: FleetHost) -> AgentJournal:
    """Of the deployed agent of this host, read from its disk."""
    found = AgentJournal()
    for path in host.path("/root/.procguard").glob(f"*/{host.name}/journal.jsonl"):
        for line in path.read_text().splitlines():
            record = json.loads(line)
            if record["t"] == "begin":
                found.begun.append(record["id"])
            elif record["t"] == "end":
                found.ended[record["id"]] = record["status"]
    return found
