"""invoke bench restart: the manager of 10,000 simulated agents is killed and restarted on the same state.

Measured are the time until the manager is ready, the time until all agents are connected again, and how evenly they
reconnect (the busiest second compared with the mean); no agent may be reported as lost. The manager has one core, the
swarm another.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import shutil
import signal
import sys
import time
from collections import Counter

from procguard.errors import ProcGuardError
from scripts.bench import common
from scripts.bench.heartbeats import bare_request_us
from scripts.bench.quota import SLOW_TO, Quota, slowed
from scripts.bench.server import CROWD, Manager, cores, fitting
from scripts.swarm import Swarm

GOAL_READY_S, GOAL_BACK_S, GOAL_PEAK = 3.0, 15.0, 3.0
GOAL_CPU_BESIDE_BARE = 1000 / 135  # 1 ms of processor time where a bare request takes 135 µs
UP_WITHIN_S = 300.0
BACK_WITHIN_S = 120.0
WATCH_S = 40.0  # after all are back: longer than the start grace, after which silent agents are recovered
TROUBLE = "agent_suspect,agent_unreachable,recovery,recovery_gave_up,circuit_breaker_open"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench restart")
    parser.add_argument("--agents", type=int, default=10_000)
    parser.add_argument("--down", type=float, default=3.0, help="seconds that the manager is away (default 3)")
    parser.add_argument("--slow-to", type=float, default=0.0, metavar="US", help=SLOW_TO)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = common.short_folder()
    report = common.Report("restart")
    server_core, load_core = cores()
    manager = Manager(folder, CROWD, server_core)
    quota = None
    try:
        bare_us = bare_request_us(folder, server_core, load_core)
        manager.start()
        quota = slowed(bare_us, options.slow_to)
        _measure(report, options, manager, load_core, bare_us, quota)
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    finally:
        manager.end()
        if quota is not None:
            quota.close()
        shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _measure(
    report: common.Report,
    options: argparse.Namespace,
    manager: Manager,
    load_core: int,
    bare_us: float,
    quota: Quota | None,
) -> None:
    agents, fewer = fitting(options.agents)
    os.sched_setaffinity(0, {load_core})
    with Swarm(manager.url, agents, 1, seed=4, keep=True) as swarm:
        swarm.wait_connected(UP_WITHIN_S)
        swarm.wait_running(UP_WITHIN_S)
        time.sleep(5.0)
        before = manager.ask("GET", "/api/events?limit=1")["events"][-1]["seq"]  # on a slow machine agents arrive late
        manager.kill()
        time.sleep(options.down)
        manager.quota = quota  # time limit of the measurement, without the preparation
        began = time.monotonic()
        manager.start()
        while not _is_ready(manager):
            time.sleep(0.02)
        ready_s, ready_cpu_s = time.monotonic() - began, manager.cpu_s()
        swarm.wait_connected(BACK_WITHIN_S)
        back_s = time.monotonic() - began
        cpu_s = manager.cpu_s()
        time.sleep(max(0.0, began + WATCH_S - time.monotonic()))
        trouble = manager.ask("GET", f"/api/events?limit=5000&after={before}&kind={TROUBLE}")["events"]
        connects = [at - began for at in swarm.samples()["connects"] if at >= began]
    connects = [at for at in connects if at <= back_s]
    per_s = Counter(int(at) for at in connects)
    first, last = int(min(connects)), int(max(connects))
    mean = len(connects) / (last - first + 1)
    report.raw = {
        "load": os.getloadavg(), "trouble": trouble[:20],
        "connects_per_s": [per_s[second] for second in range(first, last + 1)],
    }  # fmt: skip
    note = (quota.why_not or f"with {quota.share:.0%} of a core") if quota is not None else ""
    report.add("start to ready (GET /readyz answers 200)", ready_s, "s", goal=GOAL_READY_S, note=note)
    report.add(f"all of {agents} agents back and answered", back_s, "s", goal=GOAL_BACK_S, note=fewer)
    report.add("connections opened meanwhile", float(len(connects)), "")
    report.add("busiest second beside the mean", max(per_s.values()) / mean, "", goal=GOAL_PEAK)
    report.add("manager's CPU from its start until then", cpu_s, "s")
    report.add("… until it was ready", ready_cpu_s, "s")
    report.add(
        "… since then, for an agent", 1e6 * (cpu_s - ready_cpu_s) / agents, "µs", anchor=bare_us,
        anchor_name="bare pywsgi", goal=GOAL_CPU_BESIDE_BARE,
    )  # fmt: skip
    report.add("agents taken for lost, recoveries begun", float(len(trouble)), "", goal=0)


def _is_ready(manager: Manager) -> bool:
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", manager.port, timeout=5)) as connection:
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().status == 200
        except OSError:
            return False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
