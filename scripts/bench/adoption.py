"""invoke bench adoption: the agent is killed repeatedly while a job prints numbered lines at a steady rate.

The job must not be affected: its pid stays the same, no line is lost or repeated, and every new agent reports the job
to the manager soon after its start.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time
from pathlib import Path

from scripts.bench import common
from tests.agent_host import Host
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

GOAL_ADOPTED_S = 1.0
LINES_PER_S = 1000
JOB = """
import itertools, sys, time
began = time.monotonic()
for number in itertools.count():
    print(number, flush=True)
    time.sleep(max(0.0, began + (number + 1) / float(sys.argv[1]) - time.monotonic()))
"""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench adoption")
    parser.add_argument("--kills", type=int, default=100, help="kill -9 of the agent (default 100)")
    kills = parser.parse_args(arguments).kills
    folder = common.short_folder()
    manager = FakeManager()
    manager.know("h1")
    manager.interval_s = 1.0
    host = Host(Path(folder), manager)
    adopted_s, pids = [], set()
    try:
        manager.assign("w0", [sys.executable, "-c", JOB, str(LINES_PER_S)])
        host.start()
        host.until_running()
        for _ in range(kills):
            host.kill_agent()
            received = len(manager.beats)
            began = time.monotonic()
            host.start()
            wait_until(
                lambda received=received: _reports_a_running_child(manager, received),
                10,
                "the new agent's first report",
            )
            adopted_s.append(time.monotonic() - began)
            pids.add(host.status("w0")["pid"])
        expected = _last_whole_line(manager)
        wait_until(lambda: _last_whole_line(manager) > expected, 20, "lines after the last kill")
        lines = _lines(manager)
    finally:
        host.end()
        manager.close()
        shutil.rmtree(folder, ignore_errors=True)
    numbers = [int(line) for line in lines]
    lost = len(set(range(numbers[-1] + 1)) - set(numbers))
    report = common.Report("adoption", raw={"adopted_s": adopted_s, "lines": len(numbers)})
    report.add(f"pids of the job over {kills} kills of its agent", float(len(pids)), "", goal=1)
    report.add(f"lines lost of {numbers[-1] + 1}", float(lost), "", goal=0)
    report.add("lines doubled", float(len(numbers) - len(set(numbers))), "", goal=0)
    report.add("agent's start to its report of the job, median", statistics.median(adopted_s), "s")
    report.add("the slowest", max(adopted_s), "s", goal=GOAL_ADOPTED_S)
    return report.finish()


def _reports_a_running_child(manager: FakeManager, received: int) -> bool:
    beats = manager.beats[received:]
    return any(one.get("state") == "running" and one.get("pid") for beat in beats for one in beat.get("workers", ()))


def _lines(manager: FakeManager) -> list[bytes]:
    return manager.log("w0").split(b"\n")[:-1]


def _last_whole_line(manager: FakeManager) -> int:
    lines = _lines(manager)
    return int(lines[-1]) if lines else -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
