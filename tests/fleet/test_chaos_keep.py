"""Network links, agents and an sshd fail; a worker in keep mode is the same process before, during and after.

One world for all scenarios: no worker is restarted, so each is one process from the first scenario to the last.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import World
from tests.fleet.cuts import partitioned
from tests.fleet.silence import attempts_s, fall_silent, speak_again
from tests.waiting import Stopwatch, wait_until

pytestmark = pytest.mark.fleet

SUSPECTED_WITHIN_S = 0.2
ADOPTED_WITHIN_S = 3.0
API_P99_S = 0.5
ATTEMPT_ENDS_WITHIN_S = 30.0
PATHS = ("/api/remote-workers", "/api/hosts", "/api/events?limit=50", "/healthz", "/api/recoveries")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("keep"), hosts=2) as one:
        one.deploy({"node1": [stamps.stamping("keeps-1")], "node2": [stamps.stamping("keeps-2")]})
        yield one


@pytest.mark.chaos(2)
def test_a_partition_leaves_a_worker_in_keep_mode_alone(world: World, chaos_report: ChaosReport) -> None:
    """The same pid before, during and after; no second one is started; the log has no gap."""
    host, other = world.fleet[0], world.fleet[1]
    child = stamps.only_child(host, "keeps-1")
    attempt = world.settled("keeps-1")["attempt"]
    cut_for_s = 0.0
    for _round in chaos_report.rounds(short=1, long=10):
        with partitioned(host):
            cut_for_s += world.until(lambda: world.manager.worker("keeps-1")["state"] == "unknown", "unknown", 20)
            cut_for_s += world.stays(lambda: child.is_alive() and not stamps.children(other, "keeps-1"), for_s=2)
        world.settled("keeps-1")
        assert stamps.only_child(host, "keeps-1") == child
    found = stamps.instances(world.stamps("keeps-1"))
    assert [one.pid for one in found] == [child.pid], found
    assert world.manager.worker("keeps-1")["attempt"] == attempt
    chaos_report(measured=f"same pid, 1 instance; cut off for {cut_for_s:.0f} s in all")


@pytest.mark.alone
@pytest.mark.chaos(3)
def test_a_killed_agent_is_suspected_at_once_and_its_successor_adopts_the_same_child(
    world: World, chaos_report: ChaosReport
) -> None:
    """Detected by its closed connection, started over SSH by the manager: there is no cron and no systemd."""
    host = world.fleet[0]
    child, attempt = stamps.only_child(host, "keeps-1"), world.manager.worker("keeps-1")["attempt"]
    suspected_s, adopted_s = [], []
    for _round in chaos_report.rounds(short=3, long=100):
        world.settled("keeps-1")
        (agent,) = jobs.agents(host)
        began = time.monotonic()
        host.kill(agent)
        wait_until(lambda: world.manager.host("node1")["agent_state"] != "connected", 10, "suspected", every_s=0.001)
        suspected_s.append(time.monotonic() - began)
        world.wait_connected("node1")
        world.manager.wait_worker("keeps-1", "running", 30)
        adopted_s.append(time.monotonic() - began)
        assert len(jobs.agents(host)) == 1
        assert stamps.only_child(host, "keeps-1") == child
    assert len(stamps.instances(world.stamps("keeps-1"))) == 1
    assert world.manager.worker("keeps-1")["attempt"] == attempt
    # Other work on the machine delays single ones: of many the typical one counts, of three the best.
    typical = statistics.median if chaos_report.long else min
    assert typical(suspected_s) <= SUSPECTED_WITHIN_S, suspected_s
    assert typical(adopted_s) <= ADOPTED_WITHIN_S, adopted_s
    chaos_report(
        measured=f"the child lived {len(adopted_s)}/{len(adopted_s)}; suspected after "
        f"{statistics.median(suspected_s) * 1000:.0f} ms (worst {max(suspected_s) * 1000:.0f}), adopted after "
        f"{statistics.median(adopted_s):.2f} s (worst {max(adopted_s):.2f}), its SSH included"
    )


@pytest.mark.chaos(19)
def test_a_silent_sshd_slows_nobody_and_each_attempt_ends(world: World, chaos_report: ChaosReport) -> None:
    """Its agent is killed, so the manager has to recover it. Another host's dead agent is restarted meanwhile."""
    node1, node2 = world.fleet.hosts
    child, neighbour = stamps.only_child(node1, "keeps-1"), stamps.only_child(node2, "keeps-2")
    answered_s: list[float] = []
    ended_s: list[float] = []
    wanted = 2 if chaos_report.long else 1
    for _round in chaos_report.rounds(short=1, long=5):
        known = len(attempts_s(node1))
        fall_silent(node1)
        for agent in jobs.agents(node1):
            node1.kill(agent)
        began = time.monotonic()
        beside_back_s = 0.0
        (dead,) = jobs.agents(node2)
        node2.kill(dead)
        while time.monotonic() - began < 90 and len(attempts_s(node1)) < known + wanted:
            for path in PATHS:
                watch = Stopwatch(world.manager.process.pid)
                world.manager.get(path)
                answered_s.append(watch.seconds)
            if not beside_back_s and world.manager.host("node2")["agent_state"] == "connected" and jobs.agents(node2):
                beside_back_s = time.monotonic() - began
            time.sleep(0.01)
        assert len(attempts_s(node1)) >= known + wanted, world.manager.get("/api/recoveries")
        ended_s = attempts_s(node1)
        assert 0 < beside_back_s < 20
        speak_again(node1)
        world.settled("keeps-1")
        world.settled("keeps-2")
        assert stamps.only_child(node1, "keeps-1") == child
        assert stamps.only_child(node2, "keeps-2") == neighbour
    p99_s = sorted(answered_s)[int(0.99 * len(answered_s))]
    assert p99_s < API_P99_S, p99_s
    assert max(ended_s) <= ATTEMPT_ENDS_WITHIN_S, ended_s
    chaos_report(
        measured=f"API p99 {p99_s * 1000:.0f} ms of {len(answered_s)} requests; the longest of {len(ended_s)} attempts "
        f"ended after {max(ended_s):.1f} s; the neighbour's agent was back after {beside_back_s:.1f} s"
    )
