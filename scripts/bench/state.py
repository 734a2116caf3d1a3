"""invoke bench state: time until a change is on disk, and delay of an event loop while the state of 2,000 agents is
saved.

Runs in one process under gevent, as in the manager: the store, committers, and a ticker whose delay is that of a
heartbeat's reply. The anchor is one bare write and fdatasync on the same disk, before and after.
"""

from __future__ import annotations

from gevent import monkey

if __name__ == "__main__":
    monkey.patch_all()

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from typing import Any

import gevent

from procguard.fleet.store import open_store
from procguard.fleet.store.sqlite import SqliteStore
from scripts.bench import common

GOAL_DURABLE_MS = 1.5
GOAL_LATE_MS = 50.0
TICK_S = 0.002
KINDS = (("YAML", ".yaml"), ("SQLite", ".db"))


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench state")
    parser.add_argument("--agents", type=int, default=2000, help="agents in the state, each with two workers")
    parser.add_argument("--commits", type=int, default=300, help="changes whose way to the disk is measured")
    parser.add_argument("--saves", type=int, default=3, help="snapshots while the ticker runs")
    parser.add_argument("--directory", default=None, help="where; default: the system's temporary directory")
    options = parser.parse_args(arguments)
    report = common.Report("state")
    for name, ending in KINDS:
        folder = tempfile.mkdtemp(prefix="pgb", dir=options.directory)
        try:
            _measure(report, name, os.path.join(folder, f"s{ending}"), options)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return report.finish()


def _measure(report: common.Report, name: str, path: str, options: argparse.Namespace) -> None:
    store = open_store(path, run_blocking=_in_thread_pool)
    store.load()
    store.commit(_fleet(options.agents))
    bare = _bare_syncs(os.path.dirname(path), options.commits)
    durable = _commits(store, options.commits)
    bare += _bare_syncs(os.path.dirname(path), options.commits)
    anchor = statistics.median(bare)
    median = statistics.median(durable)
    report.add(f"{name}: a change durable, median", median, "ms", goal=GOAL_DURABLE_MS)
    report.add(f"{name}: the same beside a bare sync", median, "ms", anchor=anchor, anchor_name="write+fdatasync")
    report.add(f"{name}: 99 of 100", sorted(durable)[int(len(durable) * 0.99)], "ms")
    if not store.readable:  # the snapshot is complete
        store.close()
        return
    idle = _lateness(lambda: gevent.sleep(2.0))
    took_s: list[float] = []
    late = _lateness(lambda: took_s.extend(_saves(store, options.saves)))
    report.add(f"{name}: loop late while nothing is saved, worst", max(idle), "ms")
    report.add(f"{name}: loop late while saving, worst", max(late), "ms", goal=GOAL_LATE_MS)
    report.add(f"{name}: loop late while saving, 99 of 100", sorted(late)[int(len(late) * 0.99)], "ms")
    report.add(f"{name}: one save of {options.agents} agents", max(took_s), "s")
    report.raw[name] = {"durable_ms": durable, "bare_ms": bare, "late_ms": sorted(late)[-50:], "save_s": took_s}
    began = time.monotonic()
    store.close()
    again = open_store(path)
    again.load()
    report.add(f"{name}: ending and starting again", time.monotonic() - began, "s")
    again.close()


def _fleet(agents: int) -> list[Any]:
    spec = {"command": "python train.py --epochs 90", "env": {"DATA": "/data/set"}, "restart": {"policy": "on-failure"}}
    changes: list[Any] = [("fleet", "fleet", {"fleet_id": "f-1", "fleet_key": "k" * 64, "term": 1, "n": 0})]
    for n in range(agents):
        agent = {"agent_id": f"h{n}", "host": f"h{n}", "secret_sha256": f"{n:064d}", "ssh": {"hostname": f"h{n}"}}
        changes.append(("agents", f"h{n}", agent))
        for m in range(2):
            worker = {"worker_id": f"w{n}-{m}", "agent_id": f"h{n}", "spec": spec, "epoch": n, "last_state": "running"}
            changes.append(("workers", f"w{n}-{m}", worker))
    return changes


def _commits(store: SqliteStore, count: int) -> list[float]:
    """Commit one change after the other, as for single commands. Returns the milliseconds of each."""
    took = []
    for n in range(count):
        began = time.perf_counter()
        store.commit([("commands", f"c-{n}", {"command_id": f"c-{n}", "command": "stop", "status": "accepted"})])
        took.append((time.perf_counter() - began) * 1000)
    return took


def _bare_syncs(folder: str, count: int) -> list[float]:
    took = []
    descriptor = os.open(os.path.join(folder, "anchor"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        for _ in range(count):
            began = time.perf_counter()
            os.write(descriptor, b"x" * 120)
            os.fdatasync(descriptor)
            took.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(descriptor)
    return took


def _saves(store: SqliteStore, count: int) -> list[float]:
    """Write snapshots one after the other, with continuous changes."""
    took = []
    for n in range(count):
        store.commit([("workers", f"w{n}-0", {"worker_id": f"w{n}-0", "last_state": "stopped"})])
        began = time.monotonic()
        store._save_due = 0.0  # otherwise the store pauses between two snapshots
        store.save()
        while store._saver.running():
            store.commit([("workers", "w1-1", {"worker_id": "w1-1", "attempt": n})])
            gevent.sleep(0.01)
        took.append(time.monotonic() - began)
    return took


def _lateness(during: Any) -> list[float]:
    """The delays of a ticker on this event loop while `during` ran, in milliseconds."""
    late: list[float] = []
    going = [True]

    def tick() -> None:
        while going:
            due = time.perf_counter() + TICK_S
            gevent.sleep(TICK_S)
            late.append(max(0.0, (time.perf_counter() - due) * 1000))

    ticker = gevent.spawn(tick)
    during()
    going.clear()
    ticker.join()
    return late


def _in_thread_pool(task: Any) -> None:
    gevent.get_hub().threadpool.apply(task)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
