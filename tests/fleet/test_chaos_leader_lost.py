"""Scenario 30 on real hosts: the leader of two managers is partitioned from its agents but not from its database, and
its machine loses power. Each manager has an address of its own on the hosts' network."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres_server
from tests.chaos import ChaosReport
from tests.fleet import jobs
from tests.fleet.conftest import require_fleet
from tests.fleet.cuts import cut_off, restore_to
from tests.fleet.hosts import Fleet, ip
from tests.fleet.manager import Operator
from tests.fleet.several_world import OneOfSeveral, SeveralManagers
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

HOSTS = 3
CUT_ANSWERED_WITHIN_S = 15.0  # it has to be noticed first, from silence
LOST_ANSWERED_WITHIN_S = 10.0
SLACK_S = 3.0  # two busy cores run PostgreSQL, two managers and the hosts


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    require_fleet()
    with Fleet(HOSTS) as hosts:
        jobs.plant(hosts)
        yield hosts


def answered(leader: OneOfSeveral) -> bool:
    """It receives heartbeats of every agent, and each worker is running."""
    hosts = leader.get("/api/hosts")["hosts"]
    states = [one["state"] for one in leader.get("/api/remote-workers")["workers"]]
    return all(one["agent_state"] == "connected" for one in hosts) and states == ["running"] * HOSTS


def instances(leader: OneOfSeveral) -> dict[str, tuple[int, int, int]]:
    """(epoch, attempt, pid) of each worker."""
    found = leader.get("/api/remote-workers")["workers"]
    return {one["worker_id"]: (one["epoch"], one["attempt"], one["pid"]) for one in found}


@pytest.mark.few
@pytest.mark.timeout(300)
@pytest.mark.chaos(30)
def test_a_leader_that_hears_no_agent_hands_over_and_one_without_power_is_replaced(
    fleet: Fleet, tmp_path: Path, chaos_report: ChaosReport
) -> None:
    addresses = {"m1": fleet.manager_address, "m2": f"{fleet.network}.250"}
    ip("addr", "add", f"{addresses['m2']}/24", "dev", fleet.bridge)
    operator = Operator.with_keys(tmp_path / "home", fleet.private_key, fleet.known_hosts)
    cut_s: list[float] = []
    lost_s: list[float] = []
    with (
        postgres_server.cluster() as server,
        SeveralManagers(tmp_path, server, ("m1", "m2"), "web.trust_local=false", addresses=addresses) as world,
    ):
        token = (world.leader().directory / "operator.token").read_text().strip()
        operator.environment["PROCGUARD_TOKEN"] = token
        for one in world.managers.values():
            one.token = token
        operator.manager_url = world.leader().url
        spec = {"command": "sleep 100000", "on_partition": "fence", "lease_s": 20.0}
        declared = {
            host.name: jobs.host_variables(host, [{"worker_id": f"w-{host.name}", **spec}]) for host in fleet.hosts
        }
        run = operator.invoke("deploy", "--hosts", str(jobs.write_inventory(tmp_path / "hosts.yaml", declared)))
        assert run.returncode == 0, run.stdout + run.stderr
        wait_until(lambda: answered(world.leader()), 60, "every worker runs")
        before = instances(world.leader())
        for _ in chaos_report.rounds(short=1, long=50):
            leader = world.leader()
            began = time.monotonic()
            for host in fleet.hosts:
                cut_off(host, addresses[leader.name])
            follower, _served_s = world.led_by_another(leader, began, 60)
            wait_until(lambda follower=follower: answered(follower), 60, "every agent was answered", 0.05)
            cut_s.append(time.monotonic() - began)
            wait_until(lambda leader=leader: leader.role() == "standby", 20, "the former leader stands by")
            assert leader.process is not None
            assert leader.process.poll() is None
            said = [one["reason_code"] for one in follower.get("/api/events?kind=state&limit=50")["events"]]
            assert "managers.cut_off" in said
            for host in fleet.hosts:
                restore_to(host, addresses[leader.name])
            assert instances(follower) == before

            began = time.monotonic()
            ip("addr", "del", f"{addresses[follower.name]}/24", "dev", fleet.bridge)  # first: no good-bye gets out
            follower.kill()
            third, _served_s = world.led_by_another(follower, began, 60)
            wait_until(lambda third=third: answered(third), 60, "every agent was answered", 0.05)
            lost_s.append(time.monotonic() - began)
            assert instances(third) == before
            ip("addr", "add", f"{addresses[follower.name]}/24", "dev", fleet.bridge)
            follower.start()
            kinds = {event["kind"] for event in third.get("/api/events?limit=1000")["events"]}
            assert not kinds & {"recovery", "agent_unreachable", "worker_exited"}, kinds
    assert max(cut_s) <= CUT_ANSWERED_WITHIN_S + SLACK_S
    assert max(lost_s) <= LOST_ANSWERED_WITHIN_S + SLACK_S
    chaos_report(
        f"{HOSTS} real hosts: leader cut off from its agents, all answered by the other after {max(cut_s):.1f} s "
        f"at most of {len(cut_s)}; leader's machine without power: after {max(lost_s):.1f} s; "
        f"0 children touched, 0 recoveries (load {os.getloadavg()[0]:.0f})"
    )
