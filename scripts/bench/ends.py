"""invoke bench ends: from the end of a worker to the arrival of its message `finished`, with the last lines of its log.

A manager with a webhook on loopback, with the default `group_wait` and without it, and workers that end one after
another; each writes the time as its last act.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from scripts.bench import common
from scripts.bench.server import Manager

GOAL_S = 2.0
AT_ONCE = 5
APART_S = 2.5  # further apart than any message takes: each end is a message of its own
WITHIN_S = 120.0


class Arrivals:
    """Messages of both targets: (path, worker id) -> (when, its last lines)."""

    def __init__(self) -> None:
        self.url = ""
        self.found: dict[tuple[str, str], tuple[float, list[str]]] = {}

    def take(self, path: str, message: dict[str, Any], at: float) -> None:
        for one in message.get("ended") or []:
            self.found.setdefault((path, one["worker_id"]), (at, one["last_lines"]))


@contextlib.contextmanager
def webhook() -> Iterator[Arrivals]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            at = time.time()
            arrivals.take(self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"]))), at)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    arrivals = Arrivals()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    arrivals.url = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield arrivals
    finally:
        server.shutdown()
        server.server_close()


def launch(manager: Manager, worker: str, after_s: float) -> subprocess.Popen[bytes]:
    script = f"sleep {after_s}; echo {worker} is over; date +%s.%N > {manager.folder}/{worker}.end"
    words = [sys.executable, "-m", "procguard.worker_launcher", "--worker-id", worker, "--manager-url", manager.url]
    return subprocess.Popen(
        [*words, "--command", script, "--shell"], cwd=common.ROOT,
        env={**os.environ, "PROCGUARD_HOME": f"{manager.folder}/home-{worker}"},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def _round(manager: Manager, arrivals: Arrivals, workers: list[str]) -> None:
    launchers = [launch(manager, worker, 3.0 + number * APART_S) for number, worker in enumerate(workers)]
    deadline = time.monotonic() + WITHIN_S
    try:
        while any((path, worker) not in arrivals.found for path in ("/waits", "/at-once") for worker in workers):
            if time.monotonic() > deadline:
                sys.exit(f"bench: no message about {', '.join(workers)} within {WITHIN_S:g} s; see {manager.folder}")
            time.sleep(0.05)
    finally:
        for one in launchers:
            one.terminate()
        for one in launchers:
            one.wait(20)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench ends")
    parser.add_argument("--ends", type=int, default=20, help="workers that end (default 20)")
    workers = [f"w{number:02}" for number in range(parser.parse_args(arguments).ends)]
    folder = common.short_folder()
    with webhook() as arrivals:
        common_keys = {"type": "webhook", "events": ["finished"], "min_interval": 0}
        targets = [
            {"name": "waits", "url": f"{arrivals.url}/waits", **common_keys},
            {"name": "at-once", "url": f"{arrivals.url}/at-once", "group_wait": 0, **common_keys},
        ]
        manager = Manager(folder, [f"notifications={json.dumps(targets)}", "recovery.max_recovery_attempts=0"])
        try:
            manager.start()
            for first in range(0, len(workers), AT_ONCE):
                _round(manager, arrivals, workers[first : first + AT_ONCE])
        finally:
            manager.end()
        ended = {}
        for worker in workers:
            with open(f"{folder}/{worker}.end", encoding="ascii") as file:
                ended[worker] = float(file.read())
    shutil.rmtree(folder, ignore_errors=True)  # a run that failed leaves it
    late = {path: [arrivals.found[path, one][0] - ended[one] for one in workers] for path in ("/waits", "/at-once")}
    complete = sum(lines == [f"{worker} is over"] for (_, worker), (_, lines) in arrivals.found.items())
    report = common.Report("ends", raw=late)
    report.add(f"the end to its message, median of {len(workers)}", statistics.median(late["/waits"]), "s", goal=GOAL_S)
    report.add("the slowest", max(late["/waits"]), "s", goal=GOAL_S)
    report.add("with group_wait: 0, median", statistics.median(late["/at-once"]), "s")
    report.add("the slowest", max(late["/at-once"]), "s")
    report.add("messages with the last line", complete / len(arrivals.found), "", goal=1.0, at_least=True)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
