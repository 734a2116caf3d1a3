"""One agent's directory with a stand-in for the manager, for benchmarks: start, assign, kill, end everything."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from remote_agent import agent_process, locks, paths, settings
from scripts.bench import common
from tests.fake_manager import FakeManager

FLEET, HOST = "bench", "h1"


class AgentHost:
    def __init__(self, folder: str, interval_s: float = 5.0) -> None:
        self.manager = FakeManager(FLEET)
        self.manager.know(HOST)
        self.manager.interval_s = interval_s
        home = os.path.join(folder, "home")
        self.directory = paths.agent_dir(home, FLEET, HOST)
        os.makedirs(self.directory)
        self.runtime_dir = paths.choose_runtime_dir(home, FLEET, HOST)
        settings.save(
            self.directory,
            settings.AgentSettings(FLEET, HOST, HOST, [self.manager.url], self.runtime_dir, "s3cret", "key"),
        )
        self.agent: subprocess.Popen[bytes] | None = None

    def start(self) -> int:
        """The agent's pid."""
        command = agent_process.arguments(sys.executable, self.directory)
        self.agent = subprocess.Popen(command, cwd=common.ROOT, stderr=subprocess.DEVNULL)
        return self.agent.pid

    def kill_agent(self) -> None:
        assert self.agent is not None
        self.agent.kill()
        self.agent.wait()

    def status(self, worker_id: str) -> dict[str, Any]:
        value = paths.read_json(paths.state_file(paths.worker_dir(self.directory, worker_id)))
        return value if isinstance(value, dict) else {}

    def statuses(self) -> list[dict[str, Any]]:
        return [self.status(worker_id) for worker_id in self.manager.assignments]

    def until_running(self, timeout_s: float = 60.0) -> None:
        until(lambda: all(one.get("state") == "running" for one in self.statuses()), timeout_s, "every worker running")

    def end(self) -> None:
        """The agent, then every runner (which takes its child along)."""
        if self.agent is not None and self.agent.poll() is None:
            self.kill_agent()
        for worker_id in self.manager.assignments:
            lock = paths.runner_lock(self.runtime_dir, paths.worker_dir(self.directory, worker_id))
            if locks.lock_held(lock):
                os.kill(self.status(worker_id)["runner_pid"], signal.SIGTERM)
        for worker_id in self.manager.assignments:
            lock = paths.runner_lock(self.runtime_dir, paths.worker_dir(self.directory, worker_id))
            until(lambda lock=lock: not locks.lock_held(lock), 15, f"the end of {worker_id}")
        self.manager.close()
        shutil.rmtree(self.runtime_dir, ignore_errors=True)


def until(predicate: Callable[[], bool], timeout_s: float, what: str) -> None:
    deadline = time.monotonic() + timeout_s
    while not predicate():
        if time.monotonic() > deadline:
            raise SystemExit(f"not within {timeout_s:g} s: {what}")
        time.sleep(0.02)
