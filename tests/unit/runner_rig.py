"""A real runner with a real child for tests: made by `rig`, and everything it started is ended with it."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.runner import control
from remote_agent.runner.leases import boottime_ns
from remote_agent.system import cgroup, paths, processes
from remote_agent.system.locks import lock_held
from remote_agent.system.processes import Identity
from tests.waiting import wait_until

ROOT = str(Path(__file__).resolve().parents[2])
PYTHON = os.environ.get("PROCGUARD_TEST_RUNNER_PYTHON", sys.executable)
QUICK = {"start_secs": 0.05, "backoff_s": [0.0, 0.2], "jitter": 0.0, "max_attempts": 3}

FOREVER = "echo up; exec sleep 1000"
# A daemon in a session of its own, under init or a subreaper, that ignores the polite signals.
STUBBORN_DAEMON = "setsid sh -c 'trap \"\" TERM INT HUP; echo daemon $$; while :; do sleep 0.2; done' & "


class Rig:
    """One worker: its directory, its runner, a connection as an agent has it, and all that was said on it."""

    def __init__(self, directory: str) -> None:
        self.worker_dir = os.path.join(directory, "w1-0123456789")
        self.runtime_dir = os.path.join(directory, "r")
        os.makedirs(self.worker_dir)
        os.makedirs(self.runtime_dir)
        paths.write_json(paths.base_env_file(self.worker_dir), {"PATH": os.environ["PATH"], "HOME": "/tmp"})
        self.assignment: dict[str, Any] = {
            "worker_id": "w1", "desired": "running", "generation": 1, "epoch": 1_000_001, "attempt_base": 0,
            "argv": [], "cwd": directory, "launch_digest": "d1",
            "spec": {"env": {}, "stderr": "merge", "stop_grace_s": 5.0, "restart": dict(QUICK)},
        }  # fmt: skip
        self.lease: tuple[int, int] | None = None  # given to the next runner at its start
        self.seen: list[tuple[int, int]] = []  # what the agent saw of a former runner's tree: likewise
        self.without_groups = False  # runners see no control groups
        self.link: control.RunnerLink | None = None
        self.status: dict[str, Any] = {}
        self.results: dict[str, dict[str, Any]] = {}
        self.said: list[dict[str, Any]] = []

    # ------------------------------------------------------------------------------------------ as the agent

    def shell(self, script: str, **spec: Any) -> Rig:
        """Run `script` by sh; `restart` and other fields of the specification by name."""
        self.assignment["argv"] = ["/bin/sh", "-c", script]
        self.assignment["spec"]["restart"].update(spec.pop("restart", {}))
        self.assignment["spec"].update(spec)
        return self

    def fence(self, lease_s: float, epoch: int = 1_000_001) -> Rig:
        """Fenced from the start, with a lease of so many seconds from now."""
        self.assignment.update(lease_s=60.0, epoch=epoch)
        self.lease = (epoch, boottime_ns() + int(lease_s * 1e9))
        return self

    def grant(self, lease_s: float, epoch: int = 1_000_001) -> None:
        assert self.link
        self.link.lease(epoch, boottime_ns() + int(lease_s * 1e9))

    def write_spec(self, **changes: Any) -> None:
        self.assignment.update(changes)
        paths.write_json(paths.spec_file(self.worker_dir), self.assignment)

    def run(self) -> int:
        """Start a runner and connect to it, as an agent does."""
        self.write_spec()
        return self.start()

    def start(self) -> int:
        """By the specification that is there."""
        argv = control.runner_argv(PYTHON, ROOT, self.worker_dir, self.runtime_dir, self.lease, seen=self.seen)
        if self.without_groups:
            hide = 'mount -t tmpfs -o ro tmpfs /sys/fs/cgroup && exec "$@"'
            argv = ["unshare", "--mount", "sh", "-c", hide, "sh", *argv]
        code = subprocess.run(argv, check=False, stderr=subprocess.DEVNULL, timeout=20).returncode
        if code == control.EXIT_STARTED:
            self.connect()
        return code

    def connect(self) -> None:
        """The runner may have settled already: then there is nobody to talk to and state.json is all."""
        self.status = {}  # what a former runner said counts no more
        try:
            self.link = control.RunnerLink.connect(paths.runner_socket(self.runtime_dir, self.worker_dir))
        except OSError:
            self.link = None

    def pump(self) -> None:
        for message in self.link.receive() if self.link else ():
            self.said.append(message)
            if message["type"] == "status":
                self.status = message
            elif message["type"] == "result":
                self.results[str(message["id"])] = message

    def until(self, state: str, attempt: int = 0, timeout_s: float = 20.0) -> dict[str, Any]:
        """Wait until the runner tells of `state` (of `attempt`), or has left it in state.json."""

        def reached() -> dict[str, Any] | None:
            self.pump()
            reported = self.status
            if self.link is None or self.link.closed:
                reported = self.state()
            return reported if reported.get("state") == state and attempt in (0, reported["attempt"]) else None

        return wait_until(reached, timeout_s, f"{state}, attempt {attempt or 'any'}; last: {self.status}")

    def result(self, command_id: str) -> dict[str, Any]:
        def found() -> dict[str, Any] | None:
            self.pump()
            return self.results.get(command_id)

        return wait_until(found, 10.0, f"result of {command_id}")

    # ------------------------------------------------------------------------------------------ on the disk

    def state(self) -> dict[str, Any]:
        found = paths.read_json(paths.state_file(self.worker_dir))
        return found if isinstance(found, dict) else {}

    def events(self) -> list[dict[str, Any]]:
        try:
            lines = Path(paths.events_file(self.worker_dir)).read_text().splitlines()
        except FileNotFoundError:
            return []
        return [json.loads(line) for line in lines]

    def passed_through(self) -> list[str]:
        return [event["after"] for event in self.events()]

    def exit_record(self, attempt: int) -> dict[str, Any]:
        found = paths.read_json(paths.exit_file(self.worker_dir, attempt))
        assert isinstance(found, dict)
        return found

    def log(self, attempt: int = 1, stream: str = "out") -> str:
        try:
            return Path(paths.log_file(self.worker_dir, attempt, stream)).read_text()
        except FileNotFoundError:
            return ""

    def logged(self, count: int, attempt: int = 1) -> list[str]:
        """Wait for `count` whole lines of the log."""
        wait_until(lambda: self.log(attempt).count("\n") >= count, 10.0, f"{count} lines in log {attempt}")
        return self.log(attempt).splitlines()

    # ------------------------------------------------------------------------------------------ processes

    def runner_identity(self) -> Identity:
        state = self.state()
        return Identity(state.get("runner_pid", 0), state.get("runner_start", 0), state.get("boot_id", ""))

    def kill_runner(self) -> None:
        identity = self.runner_identity()
        assert processes.send_signal(identity, signal.SIGKILL)
        wait_until(lambda: not processes.is_alive(identity), 5.0, "the runner's death")

    def kill_runner_as_known(self, state: dict[str, Any]) -> None:
        """The same where state.json is older than what its runner wrote elsewhere."""
        identity = Identity(state["runner_pid"], state["runner_start"], state["boot_id"])
        assert processes.send_signal(identity, signal.SIGKILL)
        wait_until(lambda: not processes.is_alive(identity), 5.0, "the runner's death")

    def runner_gone(self) -> None:
        """Its lock is free: one that has just been started may not have written its state yet."""
        lock = paths.runner_lock(self.runtime_dir, self.worker_dir)
        wait_until(lambda: not lock_held(lock), 10.0, "the runner's end")
        identity = self.runner_identity()
        wait_until(lambda: not processes.is_alive(identity), 10.0, "the runner's end")

    def survivors(self) -> list[Identity]:
        cookie = str(self.state().get("cookie") or "")
        return processes.members_left_behind(None, cookie) if cookie else []

    def clean_up(self) -> None:
        if self.link:
            self.link.close()
        processes.send_signal(self.runner_identity(), signal.SIGKILL)
        processes.signal_all(self.survivors(), signal.SIGKILL)
        group = str(self.state().get("cgroup") or "")
        if group and os.path.isdir(group):
            cgroup._write(os.path.join(group, "cgroup.kill"), b"1")
            wait_until(lambda: not cgroup._read_pids(group), 10.0, f"the end of all in {group}")
            wait_until(lambda: _removed(group), 10.0, f"{group} is removed")


def _removed(group: str) -> bool:
    """The kernel refuses to remove a group until the last of its dead processes is reaped."""
    try:
        os.rmdir(group)
    except FileNotFoundError:  # by a runner that was ending
        return True
    except OSError:
        return False
    return True


def make_rig() -> tuple[Rig, str]:
    directory = tempfile.mkdtemp(prefix="pgr")  # tmp_path can be too long for a unix socket
    return Rig(directory), directory


def remove(directory: str) -> None:
    shutil.rmtree(directory, ignore_errors=True)


def alive(pid: int) -> bool:
    found = processes.read_process(pid)
    return found is not None and found.state not in ("Z", "X")


@pytest.fixture
def rig() -> Iterator[Rig]:
    made, directory = make_rig()
    yield made
    made.clean_up()
    remove(directory)
