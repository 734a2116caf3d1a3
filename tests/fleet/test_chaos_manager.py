"""The manager dies, or is absent for long: children keep running, and acknowledged changes stay valid."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos import ChaosReport
from tests.fleet import jobs, stamps
from tests.fleet.chaos_world import HEARTBEAT_TIMEOUT_S, World, agent_journal
from tests.waiting import kept_waiting_s, wait_until

pytestmark = pytest.mark.fleet

READY_WITHIN_S = 5.0
DESIRED = {"start": "running", "stop": "stopped"}
FLIPPED = ("flip-1", "flip-2", "flip-3", "flip-4")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with World(tmp_path_factory.mktemp("manager"), hosts=2) as one:
        one.manager.from_nothing = True  # a start from now on is measured
        one.deploy(
            {
                "node1": [stamps.stamping(name) for name in ("keeps-1", "again", "flip-1", "flip-2")],
                "node2": [
                    stamps.stamping(
                        "fenced-2", on_partition="fence"
                    ),  # by a lease of 60 s: no restart of the manager harms it
                    *(stamps.stamping(name) for name in ("flip-3", "flip-4")),
                ],
            }
        )
        yield one


class Sender(threading.Thread):
    """Sends one worker's commands one after the other until the manager ends. Records acknowledgements."""

    def __init__(self, world: World, worker_id: str, verbs: tuple[str, ...], pause_s: float) -> None:
        super().__init__(daemon=True)
        self._world, self._worker_id, self._verbs, self._pause_s = world, worker_id, verbs, pause_s
        self.acknowledged: list[dict[str, Any]] = []
        self.in_doubt: list[str] = []  # sent, and its answer lost: both outcomes are right

    def run(self) -> None:
        for number in range(100_000):
            verb = self._verbs[number % len(self._verbs)]
            self.in_doubt.append(verb)
            try:
                status, body = self._world.manager.request(
                    "POST", f"/api/workers/{self._worker_id}/command", {"command": verb}
                )
            except (OSError, http.client.HTTPException):
                return
            if status == 202:
                self.acknowledged.append(json.loads(body))
            self.in_doubt.clear()
            time.sleep(self._pause_s)


@pytest.mark.alone
@pytest.mark.chaos(4)
def test_a_manager_killed_at_any_moment_keeps_what_it_acknowledged(world: World, chaos_report: ChaosReport) -> None:
    """start and stop are sent continuously while it is killed; each restart is carried out once."""
    quiet = {name: stamps.only_child(world.host(f"node{name[-1]}"), name) for name in ("keeps-1", "fenced-2")}
    ready_s, acknowledged, restarts, lost = [], 0, [], []
    for _round in chaos_report.rounds(short=3, long=30):
        flips = [Sender(world, name, ("stop", "start"), random.uniform(0.0, 0.03)) for name in FLIPPED]
        again = Sender(world, "again", ("restart",), 0.2)
        for sender in (*flips, again):
            sender.start()
        time.sleep(random.uniform(0.05, 1.2))
        world.manager.kill()
        for sender in (*flips, again):
            sender.join(60)
            assert not sender.is_alive()
            acknowledged += len(sender.acknowledged)
        restarts += [one["command_id"] for one in again.acknowledged]
        began = time.monotonic()
        world.manager.start()
        took_s = time.monotonic() - began
        assert world.manager.process is not None
        ready_s.append(took_s - kept_waiting_s(world.manager.process.pid))
        for sender, name in zip(flips, FLIPPED):
            right = {DESIRED[verb] for verb in sender.in_doubt}
            right |= {DESIRED[sender.acknowledged[-1]["command"]]} if sender.acknowledged else {"running"}
            if world.manager.worker(name)["desired"] not in right:
                lost.append((name, right, world.manager.worker(name)["desired"]))
        for name in FLIPPED:
            world.manager.command(name, "start")
        for name in (*FLIPPED, "again"):
            world.settled(name)
        assert {name: stamps.only_child(world.host(f"node{name[-1]}"), name) for name in quiet} == quiet
    assert lost == []
    done = outcomes(world, restarts)
    # By the number of the attempt: a child that the next restart ended at once has left no stamp.
    attempts = [one.attempt for one in stamps.instances(world.stamps("again"))]
    restarted = int(world.manager.worker("again")["attempt"]) - min(attempts)
    # The id of a command is unknown if its response was lost: it may have been carried out.
    rounds = len(ready_s)
    assert len(done) <= restarted <= len(done) + rounds, (done, attempts)
    assert stamps.overlap_ms(stamps.instances(world.stamps("again", *FLIPPED, *quiet))) == 0
    # Without the time in which other work had the processors. The disk is shared too: of many the typical
    # one counts, of three the best.
    typical = statistics.median if chaos_report.long else min
    assert typical(ready_s) <= READY_WITHIN_S, ready_s
    chaos_report(
        measured=f"0 of {acknowledged} acknowledged commands lost, 0 restarts of {len(quiet)} untouched children; "
        f"{rounds} kills; ready after {statistics.median(ready_s):.1f} s (worst {max(ready_s):.1f} s)"
    )


def outcomes(world: World, command_ids: list[str]) -> list[str]:
    """Those that were carried out. All of them must have come to an end, on their host or visibly as expired."""

    def unanswered() -> list[str]:
        ended = agent_journal(world.host("node1")).ended
        return [one for one in command_ids if one not in ended and not expired(world, one)]

    wait_until(lambda: not unanswered(), 75, "every acknowledged restart answered", every_s=0.2)
    journal = agent_journal(world.host("node1"))
    assert all(journal.begun.count(one) <= 1 for one in command_ids)
    return [one for one in command_ids if journal.ended.get(one) == "done"]


def expired(world: World, command_id: str) -> bool:
    status, body = world.manager.request("GET", f"/api/commands/{command_id}")
    return status == 200 and json.loads(body)["status"] in ("expired", "failed")


@pytest.mark.chaos(15)
def test_children_outlive_a_manager_that_is_away_and_nobody_is_started_when_it_returns(
    world: World, chaos_report: ChaosReport
) -> None:
    """Absent for almost five times heartbeat_timeout (long: ten minutes); sshd's own log counts the logins."""
    names = ("keeps-1", "again", *FLIPPED)
    for name in names:
        world.settled(name)
    down_s = 600 if chaos_report.long else 12
    hosts = {name: world.host(world.manager.worker(name)["host"]) for name in names}
    before = {name: stamps.only_child(host, name) for name, host in hosts.items()}
    agents = {host.name: jobs.agents(host) for host in world.fleet.hosts}
    for _round in chaos_report.rounds(short=1, long=1):
        checks = sum(logged_in(host.console()) for host in world.fleet.hosts)
        world.manager.kill()
        world.stays(lambda: all(child.is_alive() for child in before.values()), down_s)
        world.manager.start()
        for name in names:
            world.settled(name)
        # Its grace for returning agents is three heartbeat timeouts: what it would start, it would start after that.
        world.stays(lambda: all(child.is_alive() for child in before.values()), 3 * HEARTBEAT_TIMEOUT_S + 1)
        assert {name: stamps.only_child(host, name) for name, host in hosts.items()} == before
        # The same processes: it may have looked at an agent that takes longer to return, and left it alone.
        assert {host.name: jobs.agents(host) for host in world.fleet.hosts} == agents
        checks = sum(logged_in(host.console()) for host in world.fleet.hosts) - checks
    chaos_report(
        measured=f"0 of {len(before)} children killed in {down_s} s; 0 agents started ({checks} looks over SSH)"
    )


def logged_in(console: str) -> int:
    return console.count("Accepted publickey")
