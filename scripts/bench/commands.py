"""invoke bench commands: from a click to the child, with 1,000 agents connected.

A real agent with a real child runs among simulated ones. The time is from the POST of a restart until the child has
received the signal, which it reports through a pipe. The anchor in the same run is the same child signalled directly by
kill(2). A restart applies to the attempt that the manager knows: before each one, the bench waits until that is the
child's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import select
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from procguard.errors import ProcGuardError
from scripts.bench import common
from scripts.bench.server import ask
from scripts.swarm import Swarm
from tests.long.rig import Rig
from tests.waiting import wait_until

GOAL_P50_MS, GOAL_P99_MS = 10.0, 50.0
WORKER = "clicked"
PAUSE_S = 0.05

# Writes a line with the time to the pipe when it runs and when it receives a signal; ends after SIGTERM.
CHILD = """
import os, signal, sys, time
told = os.open(sys.argv[1], os.O_WRONLY)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM, signal.SIGUSR1])
os.write(told, b"ready 0\\n")
while True:
    number = signal.sigwait([signal.SIGTERM, signal.SIGUSR1])
    os.write(told, b"%d %d\\n" % (number, time.monotonic_ns()))
    if number == signal.SIGTERM:
        os._exit(0)
"""


class Pipe:
    def __init__(self, path: str) -> None:
        os.mkfifo(path)
        self._reading = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._buffer = b""

    def line(self, why: Callable[[], object] = str, timeout_s: float = 30.0) -> tuple[bytes, int]:
        """The child's next line. `why()`: what is known of a child that says nothing."""
        deadline = time.monotonic() + timeout_s
        while b"\n" not in self._buffer:
            if not select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise SystemExit(f"bench: the child said nothing within {timeout_s:g} s; {why()}")
            self._buffer += os.read(self._reading, 4096)
        line, _, self._buffer = self._buffer.partition(b"\n")
        word, at = line.split()
        return word, int(at)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench commands")
    parser.add_argument("--agents", type=int, default=1_000, help="simulated ones beside it (default 1000)")
    parser.add_argument("--clicks", type=int, default=200, help="restarts that are timed (default 200)")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder = Path(common.short_folder())
    try:
        return _measure(folder, options).finish()
    except ProcGuardError as exc:
        sys.exit(f"bench: {exc}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _measure(folder: Path, options: argparse.Namespace) -> common.Report:
    clicks_ms: list[float] = []
    signals_ms: list[float] = []
    accepted_ms: list[float] = []
    pipe = Pipe(str(folder / "told"))
    restart = {"max_attempts": 100_000, "start_secs": 0.0, "policy": "always"}
    spec = {"command": [sys.executable, "-I", "-S", "-c", CHILD, str(folder / "told")], "restart": restart}
    with Rig(folder / "rig") as rig:
        rig.declare({WORKER: spec})
        rig.start_agent()
        assert pipe.line()[0] == b"ready"
        with (
            Swarm(rig.manager.url, options.agents, 1, seed=5, keep=True) as swarm,
            contextlib.closing(http.client.HTTPConnection("127.0.0.1", rig.manager.port, timeout=60)) as connection,
        ):
            swarm.wait_connected(120.0)
            swarm.wait_running(120.0)
            before = swarm.summary()
            for _ in range(options.clicks):
                pid = _known_pid(connection, rig)
                began = time.monotonic_ns()
                os.kill(pid, signal.SIGUSR1)
                signals_ms.append((pipe.line()[1] - began) / 1e6)
                time.sleep(PAUSE_S)
                began = time.monotonic_ns()
                command = ask(connection, "POST", f"/api/workers/{WORKER}/command", {"command": "restart"})
                accepted_ms.append((time.monotonic_ns() - began) / 1e6)
                reported = pipe.line(partial(ask, connection, "GET", f"/api/commands/{command['command_id']}"))
                assert reported[0] == b"15", reported
                clicks_ms.append((reported[1] - began) / 1e6)
                assert pipe.line()[0] == b"ready"
                time.sleep(PAUSE_S)
            after = swarm.summary()
    report = common.Report("commands", raw={"clicks_ms": clicks_ms, "load": os.getloadavg()})
    p50, p99 = statistics.median(clicks_ms), sorted(clicks_ms)[int(0.99 * len(clicks_ms))]
    anchor = statistics.median(signals_ms)
    report.add("click to the child's signal, median", p50, "ms", goal=GOAL_P50_MS)
    report.add("… p99", p99, "ms", goal=GOAL_P99_MS)
    report.add("… beside kill(2) to the same child, median", p50, "ms", anchor=anchor, anchor_name="kill(2)")
    report.add("… of it until its 202: durable", statistics.median(accepted_ms), "ms")
    beats = after.beats_answered - before.beats_answered
    report.add(f"heartbeats of the other {options.agents} agents meanwhile", float(beats), "")
    return report


def _known_pid(connection: http.client.HTTPConnection, rig: Rig) -> int:
    """The pid of the running child, once the manager has the report of this attempt."""

    def known() -> int:
        pid = rig.running_pid(WORKER)
        view = ask(connection, "GET", f"/api/remote-workers/{WORKER}")
        return pid if (view["state"], view["pid"]) == ("running", pid) else 0

    return wait_until(known, 30.0, f"the manager knows that {WORKER} runs")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
