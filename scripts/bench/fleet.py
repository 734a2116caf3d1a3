"""invoke bench fleet: 10,000 simulated agents at the interval that the manager assigns, on one core, the portal open.

Meanwhile, children crash, agents die and return, connections break, and operators send commands. At the end, 1 % of the
agents are lost at the same time: one half is killed, the other falls silent without closing connections, as after a
power failure. The manager has one core, the swarm another. The table includes the swarm's own CPU usage and lag, to
show that the swarm is not the bottleneck. `--for 3600` is the long form.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from datetime import datetime
from typing import Any, NamedTuple

from procguard.errors import ProcGuardError
from scripts.bench import common, paced
from scripts.bench.heartbeats import bare_request_us, bare_server
from scripts.bench.portal_client import PortalClient
from scripts.bench.quota import SLOW_TO, Quota, slowed
from scripts.bench.server import CROWD, Manager, ask, cores, fitting
from scripts.swarm import Behaviour, Swarm

HEARTBEAT_TIMEOUT_S = 10.0  # the manager's default
GOAL_CPU_PERCENT, GOAL_RESIDENT_MB, GOAL_P99_MS = 70.0, 1024.0, 50.0
BARE_THEN_US = 106.0  # a bare request of pywsgi on the machine for which the goal of CPU was set
GOAL_BESIDE_BARE, BARE_FOR_S = 5.0, 20.0
GOAL_NOTICED_S = HEARTBEAT_TIMEOUT_S + 2.0
GOAL_SWARM_PERCENT = 90.0
UP_WITHIN_S = 300.0
CRASHES_PER_S = 2.0
KILLED_PER_S = 1.0  # agents that die, and return after AWAY_S
AWAY_S = 5.0
BREAKS_EVERY_S = 10.0  # interval at which the connections of BREAKS agents break
BREAKS = 5
COMMANDS_PER_S = 2.0
AWAY_KINDS = ("agent_suspect", "agent_unreachable")
FALSE_KINDS = (*AWAY_KINDS, "recovery", "circuit_breaker_open")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench fleet")
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--workers-per-agent", type=int, default=1)
    parser.add_argument("--for", dest="for_s", type=float, default=180.0, help="seconds of churn (default 180)")
    parser.add_argument("--no-portal", action="store_true", help="nobody looks")
    parser.add_argument("--slow-to", type=float, default=0.0, metavar="US", help=SLOW_TO)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of the configuration")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the manager and the swarm end with this program
    folder = common.short_folder()
    report = common.Report("fleet")
    server_core, load_core = cores()
    manager = Manager(folder, [*CROWD, *options.set], server_core)
    quota = None
    try:
        bare_us = bare_request_us(folder, server_core, load_core)
        quota = manager.quota = slowed(bare_us, options.slow_to)
        manager.start()
        beside = _measure(report, options, manager, load_core, bare_us)
        manager.end()
        _beside_bare(report, folder, beside, quota, (server_core, load_core))
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    finally:
        manager.end()
        if quota is not None:
            quota.close()
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _beside_bare(
    report: common.Report, folder: str, beside: Beside, quota: Quota | None, cores: tuple[int, int]
) -> None:
    """Bare pywsgi at the same rate and with the same number of connections and share of the processor."""
    server = bare_server(folder, cores[0])
    server.quota = quota
    server.start()
    try:
        paced.run(server.port, beside.agents, beside.per_s, 3.0, cores[1])  # every agent has connected once
        bare = paced.run(server.port, beside.agents, beside.per_s, BARE_FOR_S, cores[1])
    finally:
        server.end()
    report.raw["bare"] = vars(bare)
    note = quota.why_not if quota is not None else ""
    report.add(
        "p99 beside bare pywsgi at the same rate", beside.p99_ms, "ms", anchor=bare.p99_ms, anchor_name="bare pywsgi",
        goal=GOAL_BESIDE_BARE, note=note or (f"with {quota.share:.0%} of a core" if quota is not None else ""),
    )  # fmt: skip


class Beside(NamedTuple):
    """The load for bare pywsgi, and the result that it is compared with."""

    agents: int
    per_s: float
    p99_ms: float


def _measure(
    report: common.Report, options: argparse.Namespace, manager: Manager, load_core: int, bare_us: float
) -> Beside:
    agents, fewer = fitting(options.agents)
    os.sched_setaffinity(0, {load_core})  # the swarm inherits it
    behaviour = Behaviour(crashes_per_s=CRASHES_PER_S)
    with (
        Swarm(manager.url, agents, options.workers_per_agent, seed=3, behaviour=behaviour, keep=True) as swarm,
        contextlib.ExitStack() as stack,
    ):
        swarm.wait_connected(UP_WITHIN_S)
        swarm.wait_running(UP_WITHIN_S)
        portal = None if options.no_portal else PortalClient(manager.port)
        if portal is not None:
            portal.start()
            stack.callback(portal.end)
        time.sleep(5.0)
        churn = Churn(swarm, manager.port)
        newest = _newest_event(manager)
        before, cpu_before, began = swarm.summary(), manager.cpu_s(), time.monotonic()
        page_before = portal.counts() if portal is not None else Counter()
        churn.run(options.for_s)
        after, took_s = swarm.summary(), time.monotonic() - began
        cpu_s, resident_mb = manager.cpu_s() - cpu_before, manager.resident_mb()
        page = (portal.counts() if portal is not None else Counter()) - page_before
        delays = _delays(swarm, began)
        away = _events(manager, newest, FALSE_KINDS)
        wrong = [one for one in away if one["host"] not in churn.changed]
        noticed, wrong_then = _one_percent(swarm, manager, churn)
        closed = portal.closed if portal is not None else ""
    beats = after.beats_answered - before.beats_answered
    report.raw = {
        "interval_s": agents * took_s / max(1, beats), "load": os.getloadavg(), "noticed_s": noticed,
        "wrong": [*wrong, *wrong_then][:20], "touched": len(churn.changed), "commands": churn.commands,
        "page": page, "page_closed": closed,
    }  # fmt: skip
    report.add("heartbeats answered", beats / took_s, "/s", note=fewer)
    share = 100 * cpu_s / took_s
    report.add("manager's CPU, of one core, portal open", share, "%", goal=GOAL_CPU_PERCENT)
    report.add("… where a bare request takes 106 µs", share * BARE_THEN_US / bare_us, "%", goal=GOAL_CPU_PERCENT)
    report.add(
        "… for a heartbeat, all else included",
        1e6 * cpu_s / max(1, beats),
        "µs",
        anchor=bare_us,
        anchor_name="bare pywsgi",
    )
    report.add("manager's memory, resident", resident_mb, "MB", goal=GOAL_RESIDENT_MB)
    report.add("delay of a heartbeat's reply, median", 1000 * delays[len(delays) // 2], "ms")
    report.add("… p99", 1000 * delays[int(0.99 * len(delays))], "ms", goal=GOAL_P99_MS)
    report.add("false failures", float(len(wrong) + len(wrong_then)), "", goal=0)
    slowest = max(noticed.values(), default=float("inf"))
    report.add(f"{len(noticed)} agents gone at once: the last noticed after", slowest, "s", goal=GOAL_NOTICED_S)
    report.add("portal: sent to one page", page["bytes"] / took_s / 1024, "KB/s", note=closed)
    frames = page["rows"] + page["measures"]
    report.add("… frames of its lists", frames / took_s, "/s", note=f"{page['gap']} gaps")
    swarm_share = 100 * (after.cpu_s - before.cpu_s) / took_s
    report.add("swarm's CPU, of its one core", swarm_share, "%", goal=GOAL_SWARM_PERCENT)
    report.add("… for a heartbeat", 1e6 * (after.cpu_s - before.cpu_s) / max(1, beats), "µs")
    report.add("swarm late itself at worst", 1000 * after.worst_lag_s, "ms", note="its own part of the delays")
    return Beside(agents, beats / took_s, 1000 * delays[int(0.99 * len(delays))])


def _delays(swarm: Swarm, since: float) -> list[float]:
    """The delays of replies to requests sent after `since`, in seconds, sorted."""
    flat = swarm.samples()["beats"]
    return sorted(delay for sent, delay in zip(flat[::2], flat[1::2], strict=True) if sent >= since)


class Churn:
    """Causes failures in the fleet during the measurement. `changed`: the hosts that the manager may report as lost."""

    def __init__(self, swarm: Swarm, port: int) -> None:
        self._swarm = swarm
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._chance = random.Random(9)
        self._returning: list[tuple[float, list[str]]] = []
        self.changed: set[str] = set()
        self.commands = 0

    def run(self, for_s: float) -> None:
        began = time.monotonic()
        killed = commanded = broken = 0
        while (now := time.monotonic()) < began + for_s:
            if killed < (now - began) * KILLED_PER_S and now < began + for_s - 2 * AWAY_S:
                killed += 1
                gone = self._swarm.kill(1)
                self.changed.update(gone)
                self._returning.append((now + AWAY_S, gone))
            while self._returning and self._returning[0][0] <= now:
                self._swarm.bring_back(self._returning.pop(0)[1])
            if broken < (now - began) / BREAKS_EVERY_S:
                broken += 1
                self.changed.update(self._swarm.storm(BREAKS))
            if commanded < (now - began) * COMMANDS_PER_S:
                commanded += 1
                self._command()
            time.sleep(0.05)
        self._swarm.bring_back()
        self._connection.close()

    def _command(self) -> None:
        agent_id = self._chance.choice(self._swarm.agent_ids)
        workers = self._swarm.workers[agent_id]
        if workers:
            verb = ("restart", "stop", "start")[self.commands % 3]
            ask(self._connection, "POST", f"/api/workers/{self._chance.choice(workers)}/command", {"command": verb})
            self.commands += 1


# ------------------------------------------------------------------------------------------- failures that the manager
# detected


def _newest_event(manager: Manager) -> int:
    events = manager.ask("GET", "/api/events?limit=1")["events"]
    return int(events[-1]["seq"]) if events else 0


def _events(manager: Manager, after: int, kinds: tuple[str, ...]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = manager.ask("GET", f"/api/events?limit=5000&after={after}&kind={','.join(kinds)}")[
        "events"
    ]
    return found


def _one_percent(swarm: Swarm, manager: Manager, churn: Churn) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """({lost agent: seconds until the manager reported it as suspect or unreachable}, reports about other agents)."""
    time.sleep(2 * HEARTBEAT_TIMEOUT_S / 3)  # the agents that returned last have sent a heartbeat
    newest, began = _newest_event(manager), time.time()
    count = max(2, round(0.01 * len(swarm.agent_ids)))
    gone = swarm.kill(count // 2)
    gone += swarm.silence(count - count // 2)
    noticed: dict[str, float] = {}
    deadline = time.monotonic() + 2 * GOAL_NOTICED_S
    while len(noticed) < len(gone) and time.monotonic() < deadline:
        time.sleep(0.25)
        for event in _events(manager, newest, AWAY_KINDS):
            if event["host"] in gone:
                at = datetime.fromisoformat(event["at"]).timestamp()
                noticed.setdefault(event["host"], max(0.0, at - began))
    noticed.update({one: float("inf") for one in gone if one not in noticed})
    others = [one for one in _events(manager, newest, FALSE_KINDS) if one["host"] not in {*gone, *churn.changed}]
    return noticed, others


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
