"""invoke bench adoption: the agent killed again and again under a job that prints numbered lines at a steady pace.

The job must not notice: the same pid all the time, no line lost, none doubled, and soon after its start each new agent
has told the manager of it.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import time

from scripts.bench import common
from scripts.bench.agent_host import AgentHost, until

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
    host = AgentHost(folder, interval_s=1.0)
    adopted_s, pids = [], set()
    try:
        host.manager.assign("w0", [sys.executable, "-c", JOB, str(LINES_PER_S)])
        host.start()
        host.until_running()
        for _ in range(kills):
            host.kill_agent()
            heard = len(host.manager.beats)
            began = time.monotonic()
            host.start()
            until(lambda heard=heard: _tells_of_a_running_child(host, heard), 10, "the new agent's first report")
            adopted_s.append(time.monotonic() - began)
            pids.add(host.status("w0")["pid"])
        expected = _last_whole_line(host)
        until(lambda: _last_whole_line(host) > expected, 20, "lines after the last kill")
        lines = _lines(host)
    finally:
        host.end()
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


def _tells_of_a_running_child(host: AgentHost, heard: int) -> bool:
    beats = host.manager.beats[heard:]
    return any(one.get("state") == "running" and one.get("pid") for beat in beats for one in beat.get("workers", ()))


def _lines(host: AgentHost) -> list[bytes]:
    return host.manager.log("w0").split(b"\n")[:-1]


def _last_whole_line(host: AgentHost) -> int:
    lines = _lines(host)
    return int(lines[-1]) if lines else -1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
