"""invoke bench curve: the cost of one more agent for the manager, from 10 agents to 10,000.

For each size, a new manager runs on one core and the swarm on another. Measured are processor time, memory and bytes on
the wire, each divided by the number of agents. The results are drawn in docs/performance-agents.svg and
docs/performance-workers.svg (the same agents with 1 to 32 workers each); docs/performance-logs.svg shows the cost of a
megabyte of logs at different rates.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import time
from typing import NamedTuple

from procguard.errors import ProcGuardError
from scripts.bench import common
from scripts.bench.chart import Panel, svg
from scripts.bench.server import CROWD, Manager, agents_possible, cores
from scripts.swarm import Behaviour, Swarm

GOAL_FLAT = 1.5
FROM = 100  # for fewer agents, the cost of a manager without agents dominates
UP_WITHIN_S = 300.0
SETTLE_S = 4.0
LOGGING_AGENTS = 20


class Cost(NamedTuple):
    agents: int
    workers: int  # of each
    cpu_percent: float  # of a core, of the manager, all agents together
    beat_us: float  # of the manager per heartbeat, including all other work
    memory_kb: float  # per agent, without that of a manager without agents
    wire_bytes_s: float  # per agent, in both directions
    log_bytes_s: float  # stored per agent


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench curve")
    parser.add_argument("--agents", default="10,100,1000,10000", help="sizes (default 10,100,1000,10000)")
    parser.add_argument("--workers", default="1,8,32", help="workers of each of 100 agents (default 1,8,32)")
    parser.add_argument(
        "--log-lines", default="1,10,100,1000", help=f"a second of each of {LOGGING_AGENTS} agents (default 1 to 1000)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="watched at each size (default 30)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    sizes = sorted({min(int(one), agents_possible()) for one in options.agents.split(",")})
    try:
        by_agents = [_cost(agents, 1, options.seconds) for agents in sizes]
        by_workers = [_cost(FROM, int(workers), options.seconds) for workers in options.workers.split(",")]
        silent, *by_logs = (
            _cost(LOGGING_AGENTS, 1, options.seconds, float(one)) for one in ["0", *options.log_lines.split(",")]
        )
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    return _report(by_agents, by_workers, silent, by_logs).finish()


def _cost(agents: int, workers: int, seconds: float, log_lines_per_s: float = 0.0) -> Cost:
    folder = common.short_folder()
    server_core, load_core = cores()
    manager = Manager(folder, CROWD, server_core)
    try:
        manager.start()
        manager.ask("GET", "/healthz")
        empty_mb = manager.resident_mb()
        os.sched_setaffinity(0, {load_core})
        behaviour = Behaviour(log_lines_per_s=log_lines_per_s)
        with Swarm(manager.url, agents, workers, seed=6, behaviour=behaviour, keep=True) as swarm:
            swarm.wait_connected(UP_WITHIN_S)
            swarm.wait_running(UP_WITHIN_S)
            time.sleep(SETTLE_S)
            before, cpu_s, began = swarm.summary(), manager.cpu_s(), time.monotonic()
            time.sleep(seconds)
            after, cpu_s, took_s = swarm.summary(), manager.cpu_s() - cpu_s, time.monotonic() - began
            memory_kb = 1024 * (manager.resident_mb() - empty_mb) / agents
    finally:
        manager.end()
        shutil.rmtree(folder, ignore_errors=True)
    beats = max(1, after.beats_answered - before.beats_answered)
    wire = after.bytes_sent + after.bytes_received - before.bytes_sent - before.bytes_received
    log_bytes_s = (after.log_bytes - before.log_bytes) / took_s / agents
    found = Cost(
        agents, workers, 100 * cpu_s / took_s, 1e6 * cpu_s / beats, memory_kb, wire / took_s / agents, log_bytes_s
    )  # fmt: skip
    print(
        f"{agents:6} agents, {workers:2} workers each: {found.cpu_percent:.1f} % of a core, {found.beat_us:.0f} µs a "
        f"heartbeat, {found.memory_kb:.0f} KB and {found.wire_bytes_s:.0f} bytes/s an agent, "
        f"of these {found.log_bytes_s:.0f} of logs",
        flush=True,
    )
    return found


def _report(by_agents: list[Cost], by_workers: list[Cost], silent: Cost, by_logs: list[Cost]) -> common.Report:
    report = common.Report("curve")
    report.raw = {
        "logs": [one._asdict() for one in (silent, *by_logs)],
        "agents": [one._asdict() for one in by_agents], "workers": [one._asdict() for one in by_workers],
        "load": os.getloadavg(),
    }  # fmt: skip
    few = next((one for one in by_agents if one.agents >= FROM), by_agents[0])
    many, name = by_agents[-1], f"{few.agents} agents"
    for what, value, anchor, unit in (
        ("CPU of an agent, of a core", many.cpu_percent / many.agents, few.cpu_percent / few.agents, "%"),
        ("CPU of a heartbeat, all else included", many.beat_us, few.beat_us, "µs"),
        ("memory of an agent", many.memory_kb, few.memory_kb, "KB"),
        ("on the wire, of an agent", many.wire_bytes_s, few.wire_bytes_s, "B/s"),
    ):
        report.add(f"{what}, {many.agents} agents", value, unit, anchor=anchor, anchor_name=name, goal=GOAL_FLAT)
    of_logs = [(one.log_bytes_s, max(0.0, one.cpu_percent - silent.cpu_percent)) for one in by_logs]
    per_mb = [(rate, percent / 100 / (rate * LOGGING_AGENTS / 1e6)) for rate, percent in of_logs]
    report.add(f"CPU of a megabyte of logs, {per_mb[-1][0] / 1e3:.1f} KB/s from each agent", 1000 * per_mb[-1][1], "ms")
    report.add(f"… {per_mb[0][0] / 1e3:.2f} KB/s from each", 1000 * per_mb[0][1], "ms")
    _draw(
        "performance-logs.svg",
        f"bytes of logs a second from each of {LOGGING_AGENTS} agents",
        [
            Panel("Manager's CPU for a megabyte of logs", "ms", [(rate, 1000 * cost) for rate, cost in per_mb]),
            Panel("Manager's CPU for the logs of all", "% of a core", of_logs),
        ],
    )
    _picture(
        "performance-agents.svg",
        "agents, one worker each",
        [(float(one.agents), one) for one in by_agents],
    )
    _picture(
        "performance-workers.svg",
        f"workers of each of {FROM} agents",
        [(float(one.workers), one) for one in by_workers],
    )
    return report


def _picture(file_name: str, x_name: str, points: list[tuple[float, Cost]]) -> None:
    panels = [
        Panel(
            "Manager's CPU for 1,000 agents", "% of a core", [(x, 1e3 * c.cpu_percent / c.agents) for x, c in points]
        ),
        Panel("Manager's CPU for a heartbeat, all else included", "µs", [(x, c.beat_us) for x, c in points]),
        Panel("Manager's memory for an agent", "KB", [(x, c.memory_kb) for x, c in points]),
        Panel("On the wire for an agent", "bytes/s", [(x, c.wire_bytes_s) for x, c in points]),
    ]
    _draw(file_name, x_name, panels)


def _draw(file_name: str, x_name: str, panels: list[Panel]) -> None:
    with open(os.path.join(common.ROOT, "docs", file_name), "w", encoding="utf-8") as file:
        file.write(svg(panels, x_name))
    print(f"docs/{file_name} written")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
