"""invoke bench memory: memory of idle agent and runners, compared with supervisord and the same job in the same run."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from scripts.bench import common
from tests.agent_host import Host
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

SUPERVISOR = "supervisor==4.3.0"
GOAL_RATIO = 1.1
GOAL_EACH_MB = 12.0
GOAL_CPU_PERCENT = 1.0
WARM_UP_S = 12.0  # by then usage was measured twice, heartbeats were sent, and memory of the imports was returned
JOB = ["sleep", "100000"]


class Supervisord:
    def __init__(self, folder: str, program: str) -> None:
        os.makedirs(folder)
        config = os.path.join(folder, "supervisord.conf")
        with open(config, "w", encoding="ascii") as file:
            file.write(
                f"[supervisord]\nnodaemon=true\nlogfile={folder}/log\npidfile={folder}/pid\nchildlogdir={folder}\n"
                f"[unix_http_server]\nfile={folder}/sock\n[rpcinterface:supervisor]\n"
                "supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface\n"
                f"[program:job]\ncommand={' '.join(JOB)}\n"
            )
        self.process = subprocess.Popen(
            [program, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(20)


class Cost:
    """The memory of one agent and its runners at one time."""

    def __init__(self, host: Host) -> None:
        assert host.agent is not None
        self.agent_kb = common.resident_kb(host.agent.pid)
        self.runner_pids = [int(one["runner_pid"]) for one in host.statuses()]
        self.runners_kb = [common.resident_kb(pid) for pid in self.runner_pids]
        self.total_kb = self.agent_kb + sum(self.runners_kb)
        self.cpu_s = sum(common.cpu_s(pid) for pid in (host.agent.pid, *self.runner_pids))
        self.at = time.monotonic()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench memory")
    parser.add_argument("--workers", type=int, default=20, help="idle workers of the second part (default 20)")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long their CPU is watched (default 20)")
    options = parser.parse_args(arguments)
    program, missing = common.python_program(SUPERVISOR, "supervisord")
    folder = common.short_folder()
    manager, anchor = FakeManager(), None
    manager.know("h1")
    manager.interval_s = 5.0
    host = Host(Path(folder), manager)
    try:
        anchor = Supervisord(os.path.join(folder, "s"), program) if program else None
        manager.assign("w0", JOB)
        host.start()
        host.until_running()
        time.sleep(WARM_UP_S)
        one = Cost(host)
        anchor_mb = common.resident_kb(anchor.process.pid) / 1024 if anchor else None
        for number in range(1, options.workers):
            manager.assign(f"w{number}", JOB)
        wait_until(
            lambda: len(os.listdir(os.path.join(host.directory, "workers"))) == options.workers, 60, "the workers"
        )
        host.until_running()
        time.sleep(WARM_UP_S)
        many = Cost(host)
        time.sleep(options.seconds)
        later = Cost(host)
    finally:
        if anchor:
            anchor.end()
        host.end()
        manager.close()
        shutil.rmtree(folder, ignore_errors=True)
    return _report(one, many, later, anchor_mb, missing)


def _report(one: Cost, many: Cost, later: Cost, anchor_mb: float | None, missing: str) -> int:
    more = len(many.runners_kb) - 1
    report = common.Report("memory", raw={"one": vars(one), "many": vars(many), "later": vars(later)})
    report.add(
        "agent + one runner, resident", one.total_kb / 1024, "MB",
        anchor=anchor_mb, anchor_name="supervisord", goal=GOAL_RATIO, note=missing,
    )  # fmt: skip
    report.add("  of it the agent", one.agent_kb / 1024, "MB")
    report.add("  of it the runner", one.runners_kb[0] / 1024, "MB")
    each_mb = (later.total_kb - one.total_kb) / more / 1024
    report.add(f"each further worker (of {more})", each_mb, "MB", goal=GOAL_EACH_MB)
    percent = 100 * (later.cpu_s - many.cpu_s) / (later.at - many.at)
    report.add(f"CPU of agent and {more + 1} idle workers, of a core", percent, "%", goal=GOAL_CPU_PERCENT)
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
