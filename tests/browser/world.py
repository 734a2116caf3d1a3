"""A small fleet with an example of everything: a worker with a log, simulated hosts with workers in several states, a
partly failed operation, a launcher that waits for approval. Each of its pages is in pages.py."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from playwright.sync_api import Page, expect

from scripts.swarm import Behaviour, Swarm
from scripts.swarm.swarm import default_spec
from tests.browser.conftest import ManagerRig
from tests.browser.pages import PortalPage
from tests.browser.test_portal import settled
from tests.waiting import wait_until

SETTINGS = (
    'notifications=[{name: oncall, type: webhook, url: "http://127.0.0.1:9/", events: []}]',
    "notify=[{select: 'label.owner=li', to: oncall, on: [finished]}]",
    "logs.retention=[{select: '*', days: 30}]",
)


class World(NamedTuple):
    rig: ManagerRig
    names: dict[str, str]

    def address(self, place: PortalPage) -> str:
        return f"{self.rig.url}/{place.address.format(**self.names)}"


@contextlib.contextmanager
def small_world(directory: Path, hosts: int = 3, each: int = 4, *, bundled: bool = True) -> Iterator[World]:
    """`hosts` simulated hosts, three or more, with `each` workers, four or more; what is more than three
    has workers that fail or wait, and the last three of many are gone."""
    made = ManagerRig(directory, bundled=bundled)
    try:
        made.start_manager(*SETTINGS)
        made.start_worker("worker1")
        with Swarm(
            made.url, hosts, each, seed=3, behaviour=Behaviour(refuse=0.3, gpus=True, gpus_per_host=8), prefix="gpu",
            spec=_spec,
        ) as swarm:  # fmt: skip
            swarm.wait_running(60 + 0.1 * hosts * each)
            names = {"worker": "worker1", "host": "gpu-00000", "operation": _operation(made)}
            swarm.crash(["gpu-00001-w0", "gpu-00002-w3"])
            swarm.crash([one for agent in swarm.agent_ids[3:] for one in swarm.workers[agent][:1]])
            if hosts > 20:
                swarm.kill(swarm.agent_ids[-3:])
            made.ask("POST", "/api/workers/gpu-00000-w1/command", {"command": "stop"})
            asking = {"worker_id": "worker9", "command": "python train.py", "host": "gpu9"}
            secret = hashlib.sha256(b"a launcher's own").hexdigest()
            made.ask("POST", "/api/workers/register", {**asking, "secret_sha256": secret}, X_Forwarded_For="192.0.2.7")
            made.ask("POST", "/api/tokens", {"scope": "viewer", "name": "wall-screen"})
            made.ask("POST", "/api/mutes", {"select": "host=gpu9*", "for_s": 7200, "note": "a new data set"})
            yield World(made, names)
    finally:
        made.end()


def _spec(host: int, number: int) -> dict[str, Any]:
    """Of the hosts beyond the first three, workers of some stay failed, of others wait for their restart."""
    restart = {0: {"policy": "never"}, 1: {"policy": "on-failure", "backoff_s": [900]}}
    return default_spec(host, number) | ({"restart": restart[host % 3]} if host > 2 and host % 3 < 2 else {})


def _operation(rig: ManagerRig) -> str:
    """An ended operation that has partly failed, with its cause."""
    token = rig.ask("POST", "/api/operations/preview", {"command": "restart", "selector": "gpu-*"})["token"]
    begun = rig.ask("POST", "/api/operations", {"token": token, "reason": "a new data set"})
    name = str(begun["operation_id"])
    ended = ("done", "partly")
    wait_until(lambda: rig.ask("GET", f"/api/operations/{name}")["status"] in ended, 60, "the operation has ended")
    return name


def visit(page: Page, world: World, place: PortalPage) -> None:
    page.goto(world.address(place))
    settled(page)
    expect(page.locator(place.ready).first).to_be_visible()
