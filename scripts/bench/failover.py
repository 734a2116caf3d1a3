"""invoke bench failover: two managers on one PostgreSQL, simulated agents behind one address, with continuous changes.
The leader is lost in several ways. Measured are the time until the other manager serves, the time until it has answered
every agent, and what was lost.

The anchor in the same run is a single manager of the same database that is killed and restarted on the same machine.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import time
from pathlib import Path

from procguard.errors import ProcGuardError
from scripts.bench import common
from scripts.bench.server import CROWD, agents_possible
from scripts.swarm import Swarm
from tests import postgres_server
from tests.fleet.several_world import (
    Declarer,
    OneOfSeveral,
    SeveralManagers,
    declaring,
    one_address,
    workers_of,
)
from tests.waiting import wait_until

GOAL_SERVING_S, GOAL_ANSWERED_S = 5.0, 10.0  # the goal for several managers: at 10,000 agents, on idle machines
GOAL_ORDERLY_S = 2.0
HARMS = ("SIGKILL", "SIGSTOP", "cut from the database", "SIGTERM", "promote")
ORDERLY = ("SIGTERM", "promote")
BEGUN_BY_FAILURE = {"recovery", "agent_unreachable", "worker_failed"}
PROMISE = "of changes acknowledged, lost"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench failover")
    parser.add_argument("--agents", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3, help="of each way to lose the leader")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the managers' configuration"
    )
    options = parser.parse_args(arguments)
    if not postgres_server.programs():
        sys.exit("bench: PostgreSQL is not installed; apt-get install postgresql")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(common.short_folder())
    report = common.Report("failover")
    most = agents_possible() // 2  # the common address needs a second connection for each of an agent's
    if options.agents > most:
        print(f"{most} agents: more need more descriptors than a process has here (ulimit -n)", flush=True)
        options.agents = most
    names, settings = ("m1", "m2"), [*CROWD, *options.set]
    try:
        with (
            postgres_server.cluster() as server,
            SeveralManagers(folder, server, names, *settings) as world,
            one_address(world) as url,
        ):
            _measure(report, world, url, options)
    except (ProcGuardError, AssertionError) as exc:
        sys.exit(f"bench: {exc}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _measure(report: common.Report, world: SeveralManagers, url: str, options: argparse.Namespace) -> None:
    body = {"scope": "operator", "name": "swarm"}
    token = json.loads(world.leader().request("POST", "/api/tokens", body)[1])["token"]
    with Swarm(url, agents=options.agents, workers_per_agent=1, seed=30, token=token, keep=True) as swarm:
        swarm.wait_running(300)
        before = _instances(world.leader(), swarm_only=True)
        with declaring(world, pause_s=0.2) as declarer:
            anchor = _restarted(world, swarm)
            for harm in HARMS:
                took = [_round(world, declarer, swarm, harm, number) for number in range(options.rounds)]
                goal = GOAL_ORDERLY_S if harm in ORDERLY else GOAL_SERVING_S
                serving, answered = max(one[0] for one in took), max(one[1] for one in took)
                report.add(f"{harm}: the other one serves, longest", serving, "s", goal=goal)
                report.add(f"{harm}: every agent answered, longest", answered, "s", goal=GOAL_ANSWERED_S)
                report.raw[harm] = took
        report.add("anchor: one manager killed and started", anchor, "s", note="until every agent is answered")
        leader = world.leader()
        known = workers_of(leader)
        kinds = [one["kind"] for one in leader.get("/api/events?limit=5000")["events"]]
        lost = [name for name in declarer.acknowledged if name not in known]
        after = _instances(leader, swarm_only=True)
        report.add(f"{len(declarer.acknowledged)} {PROMISE}", len(lost), "", goal=0)
        report.add("epochs granted twice", len(known) - len(set(known.values())), "", goal=0)
        report.add(
            "workers with another epoch, attempt or pid", sum(after[one] != before[one] for one in before), "", goal=0
        )
        report.add(
            "recoveries and failures begun because of it", sum(one in BEGUN_BY_FAILURE for one in kinds), "", goal=0
        )


def _restarted(world: SeveralManagers, swarm: Swarm) -> float:
    """Seconds from SIGKILL of the only manager until the restarted one has answered every agent."""
    leader = world.leader()
    [other] = world.others(leader)
    other.kill()
    began = time.monotonic()
    leader.kill()
    leader.start()
    took_s = _all_answered(world.leader(60.0), swarm) - began
    other.start()
    return took_s


def _round(world: SeveralManagers, declarer: Declarer, swarm: Swarm, harm: str, number: int) -> tuple[float, float]:
    """Seconds until another manager serves, and until it has answered every agent."""
    leader = world.leader()
    [standby] = world.others(leader)
    wait_until(lambda: _stands_by(leader, standby), 60, f"{standby.name} stands by")
    acknowledged = len(declarer.acknowledged)
    wait_until(lambda: len(declarer.acknowledged) > acknowledged + 3, 60, "changes are acknowledged")
    began = time.monotonic()
    _lose(leader, standby, harm)
    follower, serving_s = world.led_by_another(leader, began, 60.0)
    answered_s = _all_answered(follower, swarm) - began
    print(
        f"{harm}, round {number + 1}: serves after {serving_s:.1f} s, all answered after {answered_s:.1f} s", flush=True
    )
    _restore(leader, harm)
    return serving_s, answered_s


def _lose(leader: OneOfSeveral, standby: OneOfSeveral, harm: str) -> None:
    if harm == "promote":
        status, body = leader.request("POST", "/api/managers/promote", {"name": standby.name})
        assert status == 200, body
    elif harm == "cut from the database":
        assert leader.relay is not None
        leader.relay.cut()
    else:
        leader.send(getattr(signal, harm))


def _restore(leader: OneOfSeveral, harm: str) -> None:
    """Start the former leader again, as a standby."""
    if harm == "SIGSTOP":
        leader.send(signal.SIGCONT)
    elif harm == "cut from the database":
        assert leader.relay is not None
        leader.relay.restore()
    if harm != "promote":
        leader.ended()
        leader.start()


def _stands_by(leader: OneOfSeveral, standby: OneOfSeveral) -> bool:
    seen = {one["name"]: one["role"] for one in leader.get("/api/managers")["managers"]}
    return seen.get(standby.name) == "standby" and standby.role() == "standby"


def _all_answered(leader: OneOfSeveral, swarm: Swarm) -> float:
    """When this leader first answered the last agent (monotonic). The agents tell, because listing thousands of hosts
    would occupy the leader meanwhile."""
    return swarm.wait_followed(leader.get("/api/managers")["term"], 120.0)


def _instances(leader: OneOfSeveral, *, swarm_only: bool) -> dict[str, tuple[int, int, int]]:
    """(epoch, attempt, pid) by worker, without workers that are declared but run nowhere."""
    found = leader.get("/api/remote-workers")["workers"]
    return {
        one["worker_id"]: (one["epoch"], one["attempt"], one["pid"])
        for one in found
        if one["pid"] is not None or not swarm_only
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
