"""invoke bench container: starts of a worker in a container, beside plain `podman run` of the same image in turns.

From the command until the job has written its first line, which is before `podman run --detach` exits: elapsed seconds,
and processor time of everything that was started for it (podman, conmon, runtime, the runner and its Python). On a busy
machine, only the processor time is meaningful.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from remote_agent.runner import control
from remote_agent.system import paths, processes
from scripts.bench import common, processor
from tests.unit.podman_host import IMAGE, PodmanHost, usable
from tests.waiting import wait_until

GOAL_RATIO = 1.2
JOB = 'trap "exit 0" TERM; echo up; while :; do sleep 1; done'
OPTIONS = ("--network=none",)


@dataclass
class Cost:
    wall_s: float
    cpu_s: float


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="invoke bench container")
    parser.add_argument("--rounds", type=int, default=20, help="of each (default 20)")
    rounds = parser.parse_args(arguments).rounds
    if not usable():
        sys.exit(
            "bench: needs root and podman, conmon, runc: apt-get install --no-install-recommends podman conmon runc"
        )
    processes.become_subreaper()
    podman = PodmanHost(Path(tempfile.mkdtemp(prefix="pgp")))
    os.environ.update(podman.env)
    report = common.Report("container")
    costs: dict[str, list[Cost]] = {"plain": [], "worker": [], "runner": []}
    try:
        podman.import_image()
        for number in range(rounds + 1):
            folder = Path(common.short_folder())
            try:
                for name, measure in (("plain", _plain), ("worker", _worker), ("runner", _runner_alone)):
                    cost = measure(folder)
                    if number:  # the first start of each reads everything from the disk, and compiles
                        costs[name].append(cost)
                    podman.remove_all()
                    _reap()
            finally:
                shutil.rmtree(folder, ignore_errors=True)
    finally:
        podman.close()
    for what, label in (("wall_s", "by the clock"), ("cpu_s", "processor time")):
        plain, worker, bare = (1000 * statistics.median(getattr(one, what) for one in each) for each in costs.values())
        anchor = {"anchor": plain, "anchor_name": "podman run", "goal": GOAL_RATIO}
        report.add(f"start of a container worker, {label}", worker, "ms", **anchor)
        report.add(f"a worker without a container, {label}", bare, "ms", note="its runner and /bin/sh")
    report.raw = {name: [vars(one) for one in each] for name, each in costs.items()}
    return report.finish()


def _plain(folder: Path) -> Cost:
    out = folder / "plain.log"
    words = ["podman", "run", "--detach", "--name=plain", "--log-driver=passthrough", "--pull=never", *OPTIONS]
    clients: list[subprocess.Popen[bytes]] = []

    def start() -> None:
        with out.open("wb") as log:
            clients.append(subprocess.Popen([*words, IMAGE, "/bin/sh", "-c", JOB], stdout=log, stderr=log))

    return _measured(start, out, lambda: clients[0].wait() == 0)


def _worker(folder: Path) -> Cost:
    container = {
        "image": IMAGE,
        "command": ["/bin/sh", "-c", JOB],
        "options": [*OPTIONS],
        "pull": "never",
        "worker": "w1",
    }
    return _of_runner(folder / "boxed", [], {"container": container})


def _runner_alone(folder: Path) -> Cost:
    return _of_runner(folder / "bare", ["/bin/sh", "-c", JOB], {})


def _of_runner(folder: Path, argv: list[str], start: dict[str, Any]) -> Cost:
    worker_dir, runtime_dir = str(folder / "w1-0123456789"), str(folder / "r")
    os.makedirs(worker_dir)
    os.makedirs(runtime_dir)
    given = ("PATH", "CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF")
    env = {"HOME": str(folder), **{name: os.environ[name] for name in given}}
    paths.write_json(paths.base_env_file(worker_dir), env)
    assignment = {
        "worker_id": "w1", "desired": "running", "generation": 1, "epoch": 1_000_001, "attempt_base": 0,
        "argv": argv, "start": start, "cwd": str(folder), "launch_digest": "d1",
        "spec": {"env": {}, "stderr": "merge", "stop_grace_s": 5.0, "restart": {"start_secs": 0.01}},
    }  # fmt: skip
    paths.write_json(paths.spec_file(worker_dir), assignment)
    words = control.runner_argv(sys.executable, common.ROOT, worker_dir, runtime_dir, None, seen=[])

    def until_running() -> None:
        subprocess.run(words, check=True, start_new_session=True)  # as an agent does

    cost = _measured(until_running, Path(paths.log_file(worker_dir, 1)), lambda: _is_running(worker_dir))
    for name in os.listdir("/proc"):
        if name.isdigit() and worker_dir in " ".join(processor.command_line(int(name))):
            _kill(int(name))
    for one in processes.descendants({os.getpid()}, processes.all_processes()):
        _kill(one.pid)
    return cost


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _is_running(worker_dir: str) -> bool:
    try:
        found = paths.read_json(paths.state_file(worker_dir))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("state") == "running"


def _measured(start: Callable[[], None], log: Path, also: Callable[[], bool] = lambda: True) -> Cost:
    _reap()
    before, began = _reaped_s(), time.monotonic()
    start()
    while not (log.exists() and b"up\n" in log.read_bytes()):
        time.sleep(0.001)
    wall_s = time.monotonic() - began
    wait_until(also, 10, "it is running")
    living = processes.descendants({os.getpid()}, processes.all_processes())
    spent_s = sum(processor.spent_s(one.pid) + _waited_for_s(one.pid) for one in living)
    _reap()
    return Cost(wall_s, spent_s + _reaped_s() - before)


def _reaped_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _waited_for_s(pid: int) -> float:
    """Processor seconds of the children that a running process has waited for, with a resolution of 10 ms."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b") ")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


def _reap() -> None:
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
