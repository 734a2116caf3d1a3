"""Scenarios 30 and 31: the leader of several managers is lost, frozen or partitioned; their database is damaged.

Acknowledged changes are declarations of hosts with a worker each; the oracle is what the next leader knows, the terms
in the managers' logs and the epochs of all workers.
"""

from __future__ import annotations

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scripts.swarm import Swarm
from tests import postgres_server
from tests.chaos import ChaosReport
from tests.fleet.several_world import (
    EXIT_FENCED,
    SERVING_WITHIN_S,
    Declarer,
    OneOfSeveral,
    SeveralManagers,
    check_nothing_lost,
    declaring,
    one_address,
    workers_of,
)
from tests.postgres_server import Postgres
from tests.waiting import wait_until

HARMS = ("SIGKILL", "SIGSTOP", "cut from the database")
ANSWERED_WITHIN_S = 10.0
UNAVAILABLE_AT_MOST_S = 5.0
HOUR_S = 3_600.0
SLACK_S = 2.0  # two busy cores run PostgreSQL, two managers and the test


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with postgres_server.cluster() as started:
        yield started


def check(world: SeveralManagers, leader: OneOfSeveral, declarer: Declarer) -> None:
    """Nothing is lost, and the new leader has begun no recovery: it waits for the agents, as after a start. (One that
    has led for longer rightly begins to recover the declared hosts, which have no agent.)"""
    check_nothing_lost(world, leader, declarer)
    kinds = {event["kind"] for event in leader.get("/api/events?limit=1000")["events"]}
    assert not kinds & {"recovery", "agent_unreachable"}, "a recovery began because of a takeover"


@pytest.mark.few
@pytest.mark.timeout(300)
@pytest.mark.chaos(30)
@pytest.mark.parametrize("harm", HARMS)
def test_a_standby_takes_over_and_no_acknowledged_change_is_lost(
    server: Postgres, tmp_path: Path, chaos_report: ChaosReport, harm: str
) -> None:
    served: list[float] = []
    with SeveralManagers(tmp_path, server) as world, declaring(world) as declarer:
        for _ in chaos_report.rounds(short=1, long=50):
            leader = world.leader()
            before = len(declarer.acknowledged)
            wait_until(lambda before=before: len(declarer.acknowledged) > before + 3, 30, "changes are acknowledged")
            time.sleep(random.random())
            assert leader.process is not None
            began = time.monotonic()
            if harm == "cut from the database":
                assert leader.relay is not None
                leader.relay.cut()
            else:
                leader.send(getattr(signal, harm))
            follower, took_s = world.led_by_another(leader, began)
            served.append(took_s)
            if harm == "SIGSTOP":
                leader.send(signal.SIGCONT)
            elif harm == "cut from the database":
                wait_until(lambda leader=leader: leader.role() == "cut", 10, "it says that it has no database")
                leader.relay.restore()
            if harm in ("SIGSTOP", "cut from the database"):
                assert leader.ended() == EXIT_FENCED
                assert "was fenced: another manager leads" in leader.console()
            else:
                assert leader.ended() == -signal.SIGKILL
            check(world, follower, declarer)
            leader.start()
            check(world, world.leader(), declarer)
    assert max(served) <= SERVING_WITHIN_S + SLACK_S
    chaos_report(
        f"{harm}: {len(served)} takeovers, serving after {max(served):.1f} s at most; "
        f"0 of {len(declarer.acknowledged)} acknowledged changes lost, 0 epochs twice, 0 recoveries"
    )


@pytest.mark.few
@pytest.mark.timeout(300)
@pytest.mark.chaos(30)
def test_of_three_managers_one_leads_whoever_is_lost_and_promote_is_as_quick_as_a_takeover(
    server: Postgres, tmp_path: Path, chaos_report: ChaosReport
) -> None:
    promoted: list[float] = []
    with SeveralManagers(tmp_path, server, ("m1", "m2", "m3")) as world, declaring(world) as declarer:
        for _ in chaos_report.rounds(short=1, long=20):
            leader = world.leader()
            standbys = wait_until(
                lambda leader=leader: [
                    one["name"] for one in leader.get("/api/managers")["managers"] if one["role"] == "standby"
                ][:2],
                20,
                "two stand by",
            )
            chosen = world.managers[standbys[-1]]
            began = time.monotonic()
            status, body = leader.request("POST", "/api/managers/promote", {"name": chosen.name})
            assert status == 200, body
            follower, took_s = world.led_by_another(leader, began)
            promoted.append(took_s)
            assert follower is chosen
            wait_until(lambda leader=leader: leader.role() == "standby", 20, "the former leader stands by")
            follower.kill()
            third = world.leader()
            assert third is not follower
            check(world, third, declarer)
            assert [one.role() for one in world.managers.values() if one.process].count("leader") == 1
            follower.start()
    assert max(promoted) <= SERVING_WITHIN_S + SLACK_S
    chaos_report(
        f"three managers: {len(promoted)} promotions, the chosen one serves after {max(promoted):.1f} s at most"
    )


@pytest.mark.few
@pytest.mark.timeout(300)
@pytest.mark.chaos(30)
@pytest.mark.parametrize("harm", ["SIGKILL", "SIGSTOP"])
def test_every_agent_is_answered_again_and_no_worker_is_touched(
    server: Postgres, tmp_path: Path, chaos_report: ChaosReport, harm: str
) -> None:
    """Simulated agents behind one address."""
    agents = 500 if chaos_report.long else 60
    answered: list[float] = []
    with SeveralManagers(tmp_path, server) as world, one_address(world) as url:
        token = json.loads(world.leader().request("POST", "/api/tokens", {"scope": "operator", "name": "swarm"})[1])
        with Swarm(url, agents=agents, workers_per_agent=1, seed=30, token=token["token"], keep=True) as swarm:
            swarm.wait_running(120)
            before = instances(world.leader())
            for _ in chaos_report.rounds(short=1, long=10):
                leader = world.leader()
                began = time.monotonic()
                leader.send(getattr(signal, harm))
                follower, _ = world.led_by_another(leader, began)
                answered.append(swarm.wait_followed(follower.get("/api/managers")["term"]) - began)
                assert connected(follower) == agents
                if harm == "SIGSTOP":
                    leader.send(signal.SIGCONT)
                leader.ended()
                leader.start()
            assert instances(world.leader()) == before
            events = world.leader().get("/api/events?limit=5000")["events"]
            assert not {event["kind"] for event in events} & {"recovery", "agent_unreachable", "worker_failed"}
    assert max(answered) <= ANSWERED_WITHIN_S + SLACK_S
    chaos_report(
        f"{harm}: {agents} agents behind one address answered again after {max(answered):.1f} s at most, 0 touched"
    )


@pytest.mark.few
@pytest.mark.timeout(300)
@pytest.mark.chaos(30)
def test_both_managers_are_upgraded_one_after_the_other_under_load(
    server: Postgres, tmp_path: Path, chaos_report: ChaosReport
) -> None:
    """Each is stopped and restarted, as in an upgrade, while changes and heartbeats continue."""
    agents = 300 if chaos_report.long else 40
    gaps: list[float] = []
    with SeveralManagers(tmp_path, server) as world, one_address(world) as url:
        token = json.loads(world.leader().request("POST", "/api/tokens", {"scope": "operator", "name": "swarm"})[1])
        with (
            Swarm(url, agents=agents, workers_per_agent=1, seed=31, token=token["token"], keep=True) as swarm,
            declaring(world) as declarer,
        ):
            swarm.wait_running(120)
            before = instances(world.leader())
            for _ in chaos_report.rounds(short=1, long=50):
                for name, one in sorted(world.managers.items()):
                    declarer.longest_gap_s, count = 0.0, len(declarer.acknowledged)
                    one.send(signal.SIGTERM)
                    assert one.ended() == 0
                    one.start()
                    leader = world.leader()
                    wait_until(
                        lambda count=count: len(declarer.acknowledged) > count + 3, 30, f"changes go on without {name}"
                    )
                    swarm.wait_followed(leader.get("/api/managers")["term"])
                    gaps.append(declarer.longest_gap_s)
                    check(world, leader, declarer)
            assert instances(world.leader()) == before
            acknowledged = len(declarer.acknowledged)
    assert max(gaps) <= UNAVAILABLE_AT_MOST_S
    chaos_report(
        f"{len(gaps)} managers stopped and started again under load, {agents} agents: no change was taken for "
        f"{max(gaps):.1f} s at most; 0 of {acknowledged} lost, 0 workers touched"
    )


@pytest.mark.alone
@pytest.mark.chaos(30)
def test_without_a_failure_nobody_takes_over(server: Postgres, tmp_path: Path, chaos_report: ChaosReport) -> None:
    if not chaos_report.long:
        pytest.skip("takes minutes, an hour: invoke chaos --only 30")
    agents = 300
    with SeveralManagers(tmp_path, server) as world, one_address(world) as url:
        token = json.loads(world.leader().request("POST", "/api/tokens", {"scope": "operator", "name": "swarm"})[1])
        with (
            Swarm(url, agents=agents, workers_per_agent=1, seed=32, token=token["token"], keep=True) as swarm,
            declaring(world, pause_s=0.5) as declarer,
        ):
            swarm.wait_running(120)
            before, terms, ends = instances(world.leader()), world.terms(), time.monotonic() + HOUR_S
            while time.monotonic() < ends:
                time.sleep(10)
                assert world.terms() == terms, f"a takeover {ends - time.monotonic():.0f} s before the end"
            assert instances(world.leader()) == before
            declared = len(declarer.acknowledged)
    chaos_report(f"{HOUR_S / 60:.0f} min with {agents} agents and {declared} changes: 0 takeovers, 0 workers touched")


def instances(leader: OneOfSeveral) -> dict[str, tuple[int, int, int]]:
    """(epoch, attempt, pid) of each worker that runs."""
    found = leader.get("/api/remote-workers")["workers"]
    return {one["worker_id"]: (one["epoch"], one["attempt"], one["pid"]) for one in found if one["pid"]}


def connected(leader: OneOfSeveral) -> int:
    return sum(one["agent_state"] == "connected" for one in leader.get("/api/hosts")["hosts"])


@pytest.mark.timeout(300)
@pytest.mark.chaos(31)
@pytest.mark.parametrize("harm", ["restart", "terminate_backend", "SIGSTOP"])
def test_when_the_database_is_away_nobody_leads_and_everything_goes_on_afterwards(
    server: Postgres, tmp_path: Path, chaos_report: ChaosReport, harm: str
) -> None:
    back: list[float] = []
    away_s = 60.0 if chaos_report.long and harm == "SIGSTOP" else 6.0
    with SeveralManagers(tmp_path, server) as world, declaring(world) as declarer:
        for _ in chaos_report.rounds(short=1, long=20):
            before = len(declarer.acknowledged)
            wait_until(lambda before=before: len(declarer.acknowledged) > before + 3, 30, "changes are acknowledged")
            if harm == "restart":
                server.stop(signal.SIGQUIT)
                server.start()
            elif harm == "terminate_backend":
                server.sql(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'procguard%'"
                )
            else:
                leader = world.leader()
                server.signal_all(signal.SIGSTOP)
                try:
                    ends = time.monotonic() + away_s
                    wait_until(lambda leader=leader: leader.role() == "cut", 10, "the leader has no database")
                    assert leader.request("GET", "/healthz")[0] == 200
                    time.sleep(max(0.0, ends - time.monotonic()))
                finally:
                    server.signal_all(signal.SIGCONT)
            began, before = time.monotonic(), len(declarer.acknowledged)
            wait_until(lambda before=before: len(declarer.acknowledged) > before + 3, 60, "changes are taken again")
            back.append(time.monotonic() - began)
            check_nothing_lost(world, world.leader(), declarer)
    chaos_report(
        f"database {harm}: changes taken again after at most {max(back):.1f} s; "
        f"0 of {len(declarer.acknowledged)} acknowledged changes lost"
    )


@pytest.mark.timeout(300)
@pytest.mark.chaos(31)
@pytest.mark.parametrize("kind", ["synchronous", "lagging and asynchronous"])
def test_a_failover_of_the_database_loses_nothing_synchronously_and_is_noticed_otherwise(
    tmp_path: Path, chaos_report: ChaosReport, kind: str
) -> None:
    for _ in chaos_report.rounds(short=1, long=10):
        with postgres_server.cluster() as primary, postgres_server.replica(primary) as replica:
            if kind == "synchronous":
                primary.sql("ALTER SYSTEM SET synchronous_standby_names = 'replica1'")
                primary.sql("SELECT pg_reload_conf()")
            folder = tmp_path / f"round{_}"
            folder.mkdir()
            world = SeveralManagers(folder, primary, ports=f"{primary.port},{replica.port}")
            with world, declaring(world) as declarer:
                wait_until(lambda: len(declarer.acknowledged) > 5, 60, "changes are acknowledged")
                said = world.leader().get("/api/managers")
                if kind == "synchronous":
                    assert said["replication"].startswith("synchronous")
                else:
                    assert "may lose the last acknowledged changes" in " ".join(said["warnings"])
                    replica.sql("SELECT pg_wal_replay_pause()")
                    replica.signal_receiver(signal.SIGSTOP)
                before = len(declarer.acknowledged)
                wait_until(lambda before=before: len(declarer.acknowledged) > before + 5, 60, "more are acknowledged")
                primary.stop(signal.SIGQUIT)
                if kind != "synchronous":
                    replica.signal_receiver(signal.SIGKILL)
                replica.promote()
                before = len(declarer.acknowledged)
                wait_until(lambda before=before: len(declarer.acknowledged) > before + 3, 60, "changes are taken again")
                leader = world.leader()
                if kind == "synchronous":
                    check(world, leader, declarer)
                else:
                    reported = [one["reason"] for one in leader.get("/api/events?limit=1000&kind=state")["events"]]
                    assert any("lost its last commits" in one or "another history" in one for one in reported), reported
                    acknowledged = list(declarer.acknowledged)
                    known = workers_of(leader)
                    if any(
                        "lost its last commits" in one for one in reported
                    ):  # the leader survived: it had them in memory
                        assert [name for name in acknowledged if name not in known] == []
                    assert len(set(known.values())) == len(known)
    chaos_report(f"failover to a {kind} replica: served again; what was lost was noticed and named")
