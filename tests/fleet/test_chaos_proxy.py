"""Requests and responses between agents and manager are lost, duplicated, delayed and reordered."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World, agent_journal
from tests.fleet.proxy import ChaosProxy
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

WORKERS = ("again-1", "again-2", "flip-1", "flip-2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("proxy"), hosts=1) as one:
        yield one


@pytest.fixture(scope="module")
def proxy(world: World) -> Iterator[ChaosProxy]:
    """Between the agent and the manager, calm while it is deployed. This process listens for other machines then,
    and so needs a token."""
    status, body = world.manager.request("POST", "/api/tokens", {"scope": "operator", "name": "test"})
    assert status == 201, body
    world.manager.token = json.loads(body)["token"]
    with ChaosProxy(
        (world.fleet.manager_address, 0), ("127.0.0.1", world.manager.port), random.randrange(2**32)
    ) as one:
        variables = {"procguard_manager_url": one.url}
        world.deploy({"node1": [stamps.stamping(name) for name in WORKERS]}, more={"node1": variables})
        yield one


@pytest.mark.chaos(12)
def test_a_bad_network_makes_no_command_act_twice_and_everything_converges(
    world: World, proxy: ChaosProxy, chaos_report: ChaosReport
) -> None:
    """Restarts are counted by starts in the kernel's clock, and compared with the manager's results."""
    host = world.fleet[0]
    restarts: dict[str, list[str]] = {"again-1": [], "again-2": []}
    flips, converged_s = 0, []
    for _round in chaos_report.rounds(short=1, long=20):
        proxy.calm = False
        began = time.monotonic()
        while time.monotonic() - began < 12:
            for name, sent in restarts.items():
                if random.random() < 0.4:
                    sent.append(world.manager.command(name, "restart")["command_id"])
            for name in ("flip-1", "flip-2"):
                world.manager.command(name, random.choice(("start", "stop")))
                flips += 1
            time.sleep(random.uniform(0.05, 0.8))
        wanted = {"flip-1": random.choice(("start", "stop")), "flip-2": random.choice(("start", "stop"))}
        last = time.monotonic()
        for name, verb in wanted.items():
            world.manager.command(name, verb)
        # The network stays as bad as it is while they converge.
        for name, verb in wanted.items():
            count = 1 if verb == "start" else 0
            wait_until(lambda: len(stamps.children(host, name)) == count, 60, f"{name} {verb}ed", every_s=0.05)  # noqa: B023
        converged_s.append(time.monotonic() - last)
        proxy.calm = True
        for name, verb in wanted.items():
            world.manager.wait_worker(name, "running" if verb == "start" else "stopped", 30)
    done = 0
    for name, sent in restarts.items():
        wait_until(lambda: all(final(world, one) for one in sent), 90, f"an end of each restart of {name}")  # noqa: B023
        carried_out = [one for one in sent if final(world, one) == "done"]
        world.settled(name)
        ran = stamps.instances(world.stamps(name))
        assert len(ran) - 1 == len(carried_out), (name, ran, {one: final(world, one) for one in sent})
        done += len(carried_out)
    journal = agent_journal(host)
    assert len(journal.begun) == len(set(journal.begun))
    assert stamps.overlap_ms(stamps.instances(world.stamps(*WORKERS))) == 0
    for name in restarts:
        assert_log_is_whole(world, name)
    harmed = sum(proxy.fates.values()) - proxy.fates["pass"]
    chaos_report(
        measured=f"0 of {done} restarts acted twice; {flips} starts and stops converged, after at most "
        f"{max(converged_s):.1f} s; overlap 0 ms; {harmed} of {sum(proxy.fates.values())} requests harmed"
    )


def final(world: World, command_id: str) -> str:
    """The command's result, "" while it is pending."""
    status = world.manager.get(f"/api/commands/{command_id}")["status"]
    return status if status in ("done", "failed", "expired") else ""


def assert_log_is_whole(world: World, worker_id: str) -> None:
    """The lines of the newest attempt that was over before the network was calm: each once, in order."""
    attempt = world.manager.worker(worker_id)["attempt"]
    wait_until(lambda: len(lines(world, worker_id, attempt)) > 20, 20, "lines of the newest attempt")
    for one in range(max(1, attempt - 3), attempt + 1):
        found = lines(world, worker_id, one)
        assert found == list(range(len(found))), (worker_id, one)


def lines(world: World, worker_id: str, attempt: int) -> list[int]:
    return jobs.numbers(world.manager.log_text(worker_id, f"&attempt={attempt}"), worker_id)
