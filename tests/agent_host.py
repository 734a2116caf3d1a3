"""One deployed agent as a process, against a fake manager, for the agent's tests and benchmarks.

The conftest.py files of tests/unit and tests/long import the fixtures `manager` and `host`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings
from remote_agent.install import process
from remote_agent.system import locks, paths
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

ROOT = str(Path(__file__).resolve().parents[1])


class Host:
    """One agent's directory, and the agent as a process that its user starts and kills."""

    def __init__(self, tmp_path: Path, manager: FakeManager, python: str = sys.executable) -> None:
        self.manager = manager
        self.python = python  # of the agent and its runners
        home = str(tmp_path / "home")
        self.directory = paths.agent_dir(home, "fleet-1", "h1")
        os.makedirs(self.directory)
        self.runtime_dir = paths.choose_runtime_dir(home, "fleet-1", "h1")
        settings.save(
            self.directory,
            settings.AgentSettings(
                "fleet-1", "h1", "h1", [manager.url], self.runtime_dir, "s3cret", "key", python=python
            ),
        )
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> subprocess.Popen[bytes]:
        command = process.arguments(self.python, self.directory)
        self.agent = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
        return self.agent

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    def status(self, worker_id: str) -> dict[str, Any]:
        value = paths.read_json(paths.state_file(paths.worker_dir(self.directory, worker_id)))
        return value if isinstance(value, dict) else {}

    def statuses(self) -> list[dict[str, Any]]:
        return [self.status(worker_id) for worker_id in self.manager.assignments]

    def until_running(self) -> None:
        wait_until(lambda: all(one.get("state") == "running" for one in self.statuses()), 60, "every worker running")

    def end(self) -> None:
        """End the agent, then every runner with its child."""
        if self.agent is not None and self.agent.poll() is None:
            self.kill_agent()
        end_runners(self.directory, self.runtime_dir)
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


def end_runners(agent_dir: str, runtime_dir: str) -> None:
    """End every runner of an ended agent, each with its child."""
    workers = paths.workers_dir(agent_dir)
    for name in os.listdir(workers) if os.path.isdir(workers) else []:
        lock = paths.runner_lock(runtime_dir, os.path.join(workers, name))
        state = paths.read_json(paths.state_file(os.path.join(workers, name)))
        if locks.lock_held(lock) and isinstance(state, dict):
            with contextlib.suppress(ProcessLookupError):  # it has ended by itself
                os.kill(state["runner_pid"], signal.SIGTERM)
            wait_until(lambda lock=lock: not locks.lock_held(lock), 20, f"the end of the runner of {name}")


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    fake.know("h1")
    yield fake
    fake.close()


@pytest.fixture
def host(tmp_path: Path, manager: FakeManager) -> Iterator[Host]:
    one = Host(tmp_path, manager)
    yield one
    one.end()


def running(manager: FakeManager, worker_id: str = "w1") -> int:
    """Wait until the worker runs. Returns its pid."""
    wait_until(lambda: manager.state(worker_id) == "running", 30, f"{worker_id} running")
    return int(manager.report(worker_id)["pid"])


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
