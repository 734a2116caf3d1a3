"""Wall clocks jump by an hour and by ten years, on hosts and manager: only displayed times change."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from datetime import datetime
from functools import partial

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import HEARTBEAT_TIMEOUT_S, World
from tests.fleet.hosts import Fleet, FleetHost
from tests.fleet.processes import HostProcess
from tests.fleet.wall_clock import WallClock, set_host, why_unavailable

pytestmark = pytest.mark.fleet

HOUR, YEAR = 3600.0, 365.25 * 86400
JUMPS = (HOUR, -HOUR, 10 * YEAR, -10 * YEAR)


@pytest.fixture(scope="module")
def clock(tmp_path_factory: pytest.TempPathFactory) -> WallClock:
    if why_unavailable() and os.environ.get("CI") != "true":
        pytest.skip(why_unavailable())
    return WallClock(tmp_path_factory.mktemp("clock"))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, clock: WallClock) -> Iterator[World]:
    def shim(fleet: Fleet) -> None:
        for host in fleet.hosts:
            clock.install_on(host)

    directory = tmp_path_factory.mktemp("jumps")
    with World(directory, hosts=2, prepare=shim, manager_environment=clock.environment) as one:
        keeps, fenced = stamps.stamping("keeps"), stamps.stamping("fenced", on_partition="fence")
        one.deploy({"node1": [keeps, stamps.stamping("told")], "node2": [fenced]})
        yield one


@pytest.mark.chaos(16)
def test_clock_jumps_change_nothing_but_what_is_displayed(
    world: World, clock: WallClock, chaos_report: ChaosReport
) -> None:
    """Manager and hosts jump separately and together; commands still work; no host is declared lost."""
    node1, node2 = world.fleet.hosts
    same = {name: stamps.only_child(host, name) for name, host in (("keeps", node1), ("fenced", node2))}
    agents = [jobs.agents(host) for host in world.fleet.hosts]
    jumps = restarts = 0
    known = world.manager.get("/api/recoveries")["recoveries"]
    for _round in chaos_report.rounds(short=1, long=5):
        for jump_s, where in itertools.product(JUMPS, ("manager", "hosts", "both")):
            clock.set(jump_s if where != "hosts" else 0)
            for host in world.fleet.hosts:
                set_host(host, jump_s if where != "manager" else 0)
            jumps += 1
            watched_s = HEARTBEAT_TIMEOUT_S + 1 if chaos_report.long else 0.5
            assert_displayed(world, jump_s if where != "hosts" else 0, jump_s if where != "manager" else 0)
            old = stamps.only_child(node1, "told")
            reported = world.manager.command("told", "restart")["command_id"]
            what = f"a restart after {jump_s:g} s on {where}"
            world.until(partial(done, world, reported), what, 20)
            world.until(partial(replaced, node1, old), "the new child", 20)
            restarts += 1
            world.stays(lambda: alive(world, same), watched_s)
    clock.set(0)
    for host in world.fleet.hosts:
        set_host(host, 0)
    world.stays(lambda: alive(world, same), HEARTBEAT_TIMEOUT_S)
    assert world.manager.get("/api/recoveries")["recoveries"] == known
    assert [jobs.agents(host) for host in world.fleet.hosts] == agents
    found = stamps.instances(world.stamps("keeps", "fenced", "told"))
    assert len(found) == 2 + 1 + restarts, found
    assert stamps.overlap_ms(found) == 0
    chaos_report(
        measured=f"0 false deaths, 0 restarts of untouched children, {restarts} of {restarts} commands acted, in "
        f"{jumps} jumps of ±1 h and ±10 y on manager, hosts or both"
    )


def assert_displayed(world: World, manager_off_s: float, host_off_s: float) -> None:
    """The clocks really differ: the jump is visible."""
    shown = datetime.fromisoformat(world.manager.get("/api/hosts")["server_time"]).timestamp()
    assert abs(shown - time.time() - manager_off_s) < 60
    assert abs(float(world.fleet[0].run("date +%s").stdout) - time.time() - host_off_s) < 60


def done(world: World, command_id: str) -> bool:
    return command(world, command_id) == "done"


def replaced(host: FleetHost, old: HostProcess) -> bool:
    return stamps.only_child(host, "told") != old


def command(world: World, command_id: str) -> str:
    return str(world.manager.get(f"/api/commands/{command_id}")["status"])


def alive(world: World, same: dict[str, object]) -> bool:
    """All agents are connected, and every child that was not restarted is the same process."""
    states = {one["host"]: one["agent_state"] for one in world.manager.get("/api/hosts")["hosts"]}
    assert set(states.values()) == {"connected"}, states
    assert all(child.is_alive() for child in same.values())  # type: ignore[attr-defined]
    return True


@pytest.mark.chaos(16)
def test_a_restart_that_nobody_carries_out_expires_in_its_own_time_whatever_the_clock_says(
    world: World, clock: WallClock, chaos_report: ChaosReport
) -> None:
    """Neither at once when the clock jumps forward, nor never when it jumps back."""
    node1 = world.fleet[0]
    (agent,) = jobs.agents(node1)
    took = []
    lifetime_s = 60.0
    node1.freeze()
    try:
        reported = world.manager.command("told", "restart")["command_id"]
        began = time.monotonic()
        clock.set(HOUR)
        world.stays(lambda: command(world, reported) in ("accepted", "delivered"), 3)
        clock.set(-10 * YEAR)
        if chaos_report.long:
            took.append(world.until(lambda: command(world, reported) == "expired", "expired", 90) + 3)
            assert lifetime_s - 1 < time.monotonic() - began < lifetime_s + 20
    finally:
        clock.set(0)
        node1.thaw()
    world.settled("told")
    assert jobs.agents(node1) == [agent]
    chaos_report(
        measured=f"expired after {took[0]:.0f} s of its 60 through jumps of +1 h and -10 y"
        if took
        else "open for 3 s after a jump of +1 h, as it must be"
    )
