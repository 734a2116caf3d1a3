"""invoke bench saves: a manager with thousands of simulated agents. Measures the cost of a heartbeat, the time until a
command is durable, and the delay of responses while the state is written; then the same on PostgreSQL, if it is
installed.

Anchors in the same run: a bare fdatasync in the state's folder, and GET /healthz over the same kind of connection; for
PostgreSQL, on a private server of this machine, the figures of SQLite.
"""

from __future__ import annotations

import argparse
import http.client
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from dataclasses import replace

import psutil

from procguard.errors import ProcGuardError
from scripts.bench import common
from scripts.bench.server import Manager, ask
from scripts.swarm import Swarm
from tests import postgres_server

GOAL_DELAY_MS = 50.0
GOAL_DURABLE_MS = 1.5
GOAL_POSTGRESQL, GOAL_HEARTBEATS = 2.0, 0.95  # relative to SQLite: time until durable, and heartbeats answered
SAVER = "procguard.fleet.store"  # in the command line of the process that writes the snapshot
HEARTBEATS, CPU = "heartbeats answered", "manager's CPU for a heartbeat, all else included"
DELAY, POST = "delay of a heartbeat's reply, median", "a command's POST to its 202, median"
DURABLE = "… beyond a bare request: so long until durable"
COMPARED = (HEARTBEATS, CPU, DELAY, POST, DURABLE)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench saves")
    parser.add_argument("--agents", type=int, default=2000)
    parser.add_argument("--workers-per-agent", type=int, default=2)
    parser.add_argument(
        "--for", dest="for_s", type=float, default=60.0, help="seconds watched (default 60: several saves)"
    )
    parser.add_argument("--commands", type=int, default=300)
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="of the manager's configuration"
    )
    parser.add_argument(
        "--rounds", type=int, default=1, help="of each store, in turns; the figures are the medians (default 1)"
    )
    parser.add_argument("--sqlite-only", action="store_true", help="leave PostgreSQL out")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the manager and the swarm end with this program
    folder = common.short_folder()
    report = common.Report("saves")
    stores = {"sqlite": _on_sqlite, "postgresql": _on_postgresql}
    if options.sqlite_only or not postgres_server.programs():
        del stores["postgresql"]
    rounds: dict[str, list[common.Report]] = {name: [] for name in stores}
    try:
        for number in range(options.rounds):
            for name in sorted(stores, reverse=number % 2 == 0):
                rounds[name].append(stores[name](options, folder))
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    report.figures = _medians(rounds["sqlite"])
    report.raw = {name: [one.raw for one in reports] for name, reports in rounds.items()}
    if "postgresql" in rounds:
        _compare(report, _medians(rounds["postgresql"]))
    return report.finish()


def _on_sqlite(options: argparse.Namespace, folder: str) -> common.Report:
    return _run(options, tempfile.mkdtemp(dir=folder), [])


def _on_postgresql(options: argparse.Namespace, folder: str) -> common.Report:
    with postgres_server.cluster() as server:
        place = [f"state.database={server.url(server.database())}"]
        place.append(f"state.database_password_file={server.password}")
        return _run(options, tempfile.mkdtemp(dir=folder), place)


def _run(options: argparse.Namespace, folder: str, settings: list[str]) -> common.Report:
    report = common.Report("saves")
    manager = Manager(folder, [*settings, *options.set])
    manager.start()
    try:
        _measure(report, options, manager, folder)
    finally:
        manager.end()
    return report


def _medians(rounds: list[common.Report]) -> list[common.Figure]:
    """Each figure with the median of its value and of its anchor over the rounds."""
    found = []
    for one in rounds[0].figures:
        same = [other for report in rounds for other in report.figures if other.name == one.name]
        values = [other.value for other in same if other.value is not None]
        anchors = [other.anchor for other in same if other.anchor is not None]
        value, anchor = (statistics.median(some) if some else None for some in (values, anchors))
        found.append(replace(one, value=value, anchor=anchor))
    return found


def _compare(report: common.Report, postgresql: list[common.Figure]) -> None:
    """Add PostgreSQL's figures, each with SQLite's figure of the same run as its anchor."""
    sqlite = {one.name: one.value for one in report.figures}
    goals = {DURABLE: (GOAL_POSTGRESQL, False), HEARTBEATS: (GOAL_HEARTBEATS, True)}
    for one in postgresql:
        if one.value is not None and sqlite.get(one.name) and one.name in COMPARED:
            goal, at_least = goals.get(one.name, (None, False))
            more = {"anchor": sqlite[one.name], "anchor_name": "SQLite", "goal": goal, "at_least": at_least}
            report.add(f"PostgreSQL: {one.name}", one.value, one.unit, **more)


def _measure(report: common.Report, options: argparse.Namespace, manager: Manager, folder: str) -> None:
    agents = options.agents
    empty_mb = manager.resident_mb()
    with Swarm(manager.url, agents, options.workers_per_agent, seed=2, keep=True) as swarm:
        began = time.monotonic()
        swarm.wait_running(300.0)
        up_s = time.monotonic() - began
        before, cpu_before, since = swarm.summary(), manager.cpu_s(), time.monotonic()
        watch = _SaveWatch(manager.pid)
        watch.start()
        # With a token, because recognising a local forwarder reads all connections, which should not be measured here.
        secret = str(manager.ask("POST", "/api/tokens", {"scope": "operator", "name": "bench"})["token"])
        posts, asks, syncs = _command(swarm, manager.port, folder, options.commands, secret)
        time.sleep(max(0.0, since + options.for_s - time.monotonic()))
        after, cpu_s, took_s = swarm.summary(), manager.cpu_s() - cpu_before, time.monotonic() - since
        watch.end()
        delays = swarm.samples()["beats"]
        full_mb = manager.resident_mb()
    beats = after.beats_answered - before.beats_answered
    pairs = [(sent, delay) for sent, delay in zip(delays[::2], delays[1::2], strict=True) if sent >= since]
    report.raw = {
        "saves": watch.saves,
        "posts_s": posts,
        "healthz_s": asks,
        "fdatasync_s": syncs,
        "load": os.getloadavg(),
        "interval_s": agents * took_s / max(1, beats),
    }
    report.add("hosts declared, with their secrets", agents / swarm.declared_in_s, "/s")
    report.add("agents up with all workers running", agents / up_s, "/s")
    report.add(HEARTBEATS, beats / took_s, "/s")
    report.add(CPU, 1e6 * cpu_s / max(1, beats), "µs")
    report.add("manager's CPU for 1,000 agents, of one core", 100 * cpu_s / took_s / agents * 1000, "%")
    report.add("manager's memory for 1,000 agents", (full_mb - empty_mb) / agents * 1000, "MB")
    report.add("swarm's CPU for a heartbeat", 1e6 * (after.cpu_s - before.cpu_s) / max(1, beats), "µs")
    report.add("swarm late itself at worst", 1000 * after.worst_lag_s, "ms", note="its own part of the delays")
    values = sorted(delay for _, delay in pairs)
    report.add(DELAY, 1000 * statistics.median(values), "ms")
    report.add("… p99", 1000 * values[int(0.99 * len(values))], "ms")
    _saves(report, pairs, watch.saves)
    post, ask, sync = (1000 * statistics.median(one) for one in (posts, asks, syncs))
    report.add(POST, post, "ms", anchor=ask, anchor_name="GET /healthz")
    report.add(DURABLE, post - ask, "ms", goal=GOAL_DURABLE_MS)
    report.add("… bare fdatasync of one line, median", sync, "ms")


def _saves(report: common.Report, pairs: list[tuple[float, float]], saves: list[tuple[float, float]]) -> None:
    """Report the slowest reply while the state is written, and the slowest one in as many periods of the same length
    without a write."""
    if not saves:
        report.add(
            "worst reply while the state is written", None, "ms", note="no save within the time: watch longer, --for"
        )
        return
    during = [_worst(pairs, begin, end) for begin, end in saves]
    length = statistics.mean(end - begin for begin, end in saves)
    outside = []
    at = pairs[0][0]
    while at + length < pairs[-1][0]:
        if all(at + length < begin or at > end for begin, end in saves):
            outside.append(_worst(pairs, at, at + length))
        at += length
    chance, many = random.Random(1), min(len(saves), len(outside))
    usual = statistics.median(max(chance.sample(outside, many)) for _ in range(1000)) if outside else 0.0
    report.add("worst reply in a save's time", 1000 * max(during), "ms", note=f"{len(saves)} saves, {length:.1f} s")
    report.add("… in as many such times without one, median", 1000 * usual, "ms")
    report.add("… worst of all times without one", 1000 * max(outside, default=0.0), "ms")
    report.add("… what the save adds", 1000 * max(0.0, max(during) - usual), "ms", goal=GOAL_DELAY_MS)


def _worst(pairs: list[tuple[float, float]], begin: float, end: float) -> float:
    """The longest delay of the replies that were pending in that time."""
    return max((delay for sent, delay in pairs if sent + delay >= begin and sent <= end), default=0.0)


class _SaveWatch(threading.Thread):
    """The times at which the manager's state was written: (begin, end) in monotonic seconds, slightly extended on both
    sides."""

    def __init__(self, manager_pid: int) -> None:
        super().__init__(daemon=True)
        self._manager = psutil.Process(manager_pid)
        self._over = threading.Event()
        self.saves: list[tuple[float, float]] = []

    def run(self) -> None:
        began: float | None = None
        while not self._over.wait(0.1):
            running = self._saver_runs()
            now = time.monotonic()
            if running and began is None:
                began = now - 0.25
            elif not running and began is not None:
                self.saves.append((began, now + 0.05))
                began = None

    def _saver_runs(self) -> bool:
        for child in self._manager.children():
            try:
                if child.status() != psutil.STATUS_ZOMBIE and any(SAVER in word for word in child.cmdline()):
                    return True
            except psutil.Error:
                continue
        return False

    def end(self) -> None:
        self._over.set()
        self.join(2)


def _command(
    swarm: Swarm, port: int, folder: str, count: int, secret: str
) -> tuple[list[float], list[float], list[float]]:
    """Seconds of each POST of a command, each bare request and each bare fdatasync, which alternate."""
    chance = random.Random(5)
    workers = [worker_id for ids in swarm.workers.values() for worker_id in ids]
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    posts, asks, syncs = [], [], []
    with open(os.path.join(folder, "anchor"), "ab", buffering=0) as file:
        for number in range(count):
            began = time.perf_counter()
            ask(connection, "GET", "/healthz")
            asks.append(time.perf_counter() - began)
            began = time.perf_counter()
            verb = ("restart", "stop")[number % 2]
            ask(connection, "POST", f"/api/workers/{chance.choice(workers)}/command", {"command": verb}, secret)
            posts.append(time.perf_counter() - began)
            began = time.perf_counter()
            file.write(b"x" * 400 + b"\n")
            os.fdatasync(file.fileno())
            syncs.append(time.perf_counter() - began)
            time.sleep(0.05)
    connection.close()
    return posts, asks, syncs


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
