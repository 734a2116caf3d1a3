"""invoke bench recovery: time from SIGKILL of a child to the first line of the next one, compared with runit's runsv.

Both supervisors run the same script at the same time, and their children are killed in turn. The child writes its pid
to a pipe; the time ends when that line is read. runsv waits a second after a child that lived for less than a second,
so kills are further apart.
"""

from __future__ import annotations

import argparse
import os
import select
import shutil
import signal
import statistics
import subprocess
import sys
import time

from remote_agent.runner import control
from remote_agent.system import paths, processes
from scripts.bench import common

GOAL = 1.0
BETWEEN_KILLS_S = 1.2  # runsv restarts a child at once only if it has run for a second


class Subject:
    """A supervisor under test: its child writes its pid as a line into `fifo`."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        os.makedirs(folder)
        self.fifo = os.path.join(folder, "said")
        os.mkfifo(self.fifo)
        self.reading = os.open(self.fifo, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.script = os.path.join(folder, "run")
        with open(self.script, "w", encoding="ascii") as file:
            file.write(f"#!/bin/sh\necho $$ >{self.fifo}\nexec sleep 100000\n")
        os.chmod(self.script, 0o700)
        self.pid = 0
        self.times_ms: list[float] = []

    def next_pid(self, timeout_s: float = 20.0) -> int:
        if not select.select([self.reading], [], [], timeout_s)[0]:
            raise SystemExit(f"{type(self).__name__}: no child within {timeout_s} s; see {self.folder}")
        return int(os.read(self.reading, 100).split()[0])

    def start(self) -> None:
        raise NotImplementedError

    def settle(self) -> None:
        """Wait between two kills, outside of the measured time."""

    def stop(self) -> None:
        raise NotImplementedError

    def kill_once(self) -> None:
        began = time.perf_counter()
        os.kill(self.pid, signal.SIGKILL)
        self.pid = self.next_pid()
        self.times_ms.append((time.perf_counter() - began) * 1000)
        self.settle()


class Runsv(Subject):
    def __init__(self, folder: str, runsv: str) -> None:
        super().__init__(folder)
        self._runsv = runsv

    def start(self) -> None:
        self._process = subprocess.Popen(
            [self._runsv, self.folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        self.pid = self.next_pid()

    def stop(self) -> None:
        self._process.terminate()
        self._process.wait(10)


class ProcGuard(Subject):
    """A runner as an agent starts it, with one agent connected to it."""

    def start(self) -> None:
        worker_dir, self._runtime = os.path.join(self.folder, "w-0123456789"), os.path.join(self.folder, "r")
        os.makedirs(worker_dir)
        os.makedirs(self._runtime)
        self._worker_dir = worker_dir
        restart = {"start_secs": 1, "max_attempts": 100_000, "backoff_s": [0.0]}
        self._assignment = {
            "worker_id": "w", "desired": "running", "generation": 1, "epoch": 1, "attempt_base": 0,
            "argv": [self.script], "cwd": self.folder, "launch_digest": "d",
            "spec": {"env": {}, "stop_grace_s": 5.0, "restart": restart},
        }  # fmt: skip
        paths.write_json(paths.base_env_file(worker_dir), {"PATH": os.environ["PATH"]})
        paths.write_json(paths.spec_file(worker_dir), self._assignment)
        subprocess.run(control.runner_argv(sys.executable, common.ROOT, worker_dir, self._runtime), check=True)
        self._link = control.RunnerLink.connect(paths.runner_socket(self._runtime, worker_dir))
        self.pid = self.next_pid()

    def settle(self) -> None:
        self._link.receive()

    def stop(self) -> None:
        state = paths.read_json(paths.state_file(self._worker_dir))
        assert isinstance(state, dict)
        runner = processes.Identity(state["runner_pid"], state["runner_start"], state["boot_id"])
        processes.send_signal(runner, signal.SIGTERM)
        deadline = time.monotonic() + 10
        while processes.is_alive(runner) and time.monotonic() < deadline:
            time.sleep(0.01)
        self._link.close()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench recovery")
    parser.add_argument("--kills", type=int, default=12, help="kills of each supervisor's child (default 12)")
    kills = parser.parse_args(arguments).kills
    runsv, missing = common.program("runsv", "runit")
    folder = common.short_folder()
    subjects: list[Subject] = [ProcGuard(os.path.join(folder, "p"))]
    if runsv:
        subjects.append(Runsv(os.path.join(folder, "r"), runsv))
    started: list[Subject] = []
    try:
        for subject in subjects:
            started.append(subject)
            subject.start()
        for _ in range(kills):
            for subject in subjects:
                time.sleep(BETWEEN_KILLS_S / len(subjects))
                subject.kill_once()
    finally:
        for subject in started:
            subject.stop()
        shutil.rmtree(folder, ignore_errors=True)
    ours = subjects[0].times_ms
    anchor = statistics.median(subjects[1].times_ms) if runsv else None
    report = common.Report("recovery", raw={type(one).__name__.lower(): one.times_ms for one in subjects})
    report.add(
        "SIGKILL to the next child's first line, median", statistics.median(ours), "ms",
        anchor=anchor, anchor_name="runsv", goal=GOAL, note=missing,
    )  # fmt: skip
    slowest = max(subjects[1].times_ms) if runsv else None
    report.add(f"the slowest of {kills}", max(ours), "ms", anchor=slowest, anchor_name="runsv")
    return report.finish()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
