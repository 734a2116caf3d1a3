"""A real manager and a real agent of this machine, without SSH: started, killed and started again by a test or bench.

Owns their directories and processes; everything it started is ended with it. Asks the manager only over its HTTP.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from remote_agent.agent import settings
from remote_agent.install import process
from remote_agent.protocol import messages
from remote_agent.system import paths
from tests.agent_host import end_runners
from tests.fleet.manager import Manager, own_environment
from tests.waiting import wait_until

ROOT = str(Path(__file__).resolve().parents[2])
HOST = "h1"
SECRET = "secret-of-h1"
QUIET = ("logging.level=WARNING", "recovery.enable_auto_recovery=true")


class Rig:
    """`with Rig(tmp_path, "logs.keep_local=8 MiB") as rig: rig.declare({"w1": {"command": …}}); rig.start_agent()`"""

    def __init__(self, directory: Path, *overrides: str) -> None:
        self.directory = directory
        home = directory / "home"
        home.mkdir(parents=True)
        (directory / "manager").mkdir()
        self.manager = Manager(directory / "manager", own_environment(home), [*QUIET, *overrides])
        self._home = str(home / ".procguard")
        self.agent_dir = ""
        self.runtime_dir = ""
        self.agent: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Rig:
        self.manager.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None
    ) -> None:
        try:
            self.kill_agent()
            if self.agent_dir:
                end_runners(self.agent_dir, self.runtime_dir)
        finally:
            self.manager.stop()
            if self.runtime_dir:
                shutil.rmtree(self.runtime_dir, ignore_errors=True)
                with contextlib.suppress(OSError):  # others still have theirs
                    os.rmdir(os.path.dirname(self.runtime_dir))

    # ------------------------------------------------------------------------------------------ the fleet

    def declare(self, workers: dict[str, dict[str, Any]]) -> None:
        """Make the manager know this host and these workers, as a deploy does, and write the agent's settings."""
        declared = {
            "hosts": [
                {
                    "host": HOST,
                    "ssh": {"hostname": "127.0.0.1", "port": 9},  # nobody there: recovery over SSH finds nothing
                    "workers": [{"worker_id": name, "spec": spec} for name, spec in workers.items()],
                }
            ]
        }
        status, body = self.manager.request("POST", "/api/deployments", declared)
        assert status == 200, body
        answer = json.loads(body)
        digest = {"secret_sha256": hashlib.sha256(SECRET.encode()).hexdigest()}
        assert self.manager.request("PUT", f"/api/agents/{HOST}/credentials", digest)[0] == 200
        self.agent_dir = paths.agent_dir(self._home, answer["fleet_id"], HOST)
        os.makedirs(self.agent_dir, exist_ok=True)
        self.runtime_dir = paths.choose_runtime_dir(self._home, answer["fleet_id"], HOST)
        proof_key = answer["hosts"][HOST]["proof_key"]
        settings.save(
            self.agent_dir,
            settings.AgentSettings(
                answer["fleet_id"], HOST, HOST, [self.manager.url], self.runtime_dir, SECRET, proof_key,
                base_env={"PATH": os.environ["PATH"], "HOME": str(self.directory / "home")},
            ),
        )  # fmt: skip

    def start_agent(self) -> None:
        with open(self.directory / "agent.console", "ab") as console:
            self.agent = subprocess.Popen(process.arguments(sys.executable, self.agent_dir), cwd=ROOT, stderr=console)

    def kill_agent(self) -> None:
        """SIGKILL: it gets no word out and saves nothing."""
        if self.agent is not None:
            self.agent.kill()
            self.agent.wait()
            self.agent = None

    # ------------------------------------------------------------------------------------------ what is

    def worker_dir(self, worker_id: str) -> str:
        return paths.worker_dir(self.agent_dir, worker_id)

    def status(self, worker_id: str) -> dict[str, Any]:
        """What the runner wrote last."""
        found = paths.read_json(paths.state_file(self.worker_dir(worker_id)))
        return found if isinstance(found, dict) else {}

    def running_pid(self, worker_id: str, timeout_s: float = 30) -> int:
        wait_until(lambda: self.status(worker_id).get("state") == "running", timeout_s, f"{worker_id} running")
        return int(self.status(worker_id)["pid"])

    def host_log(self, worker_id: str, stream: str = "out", attempt: int = 1) -> str:
        return paths.log_file(self.worker_dir(worker_id), attempt, stream)

    def disk_bytes(self, worker_id: str) -> int:
        """What the worker's logs take of the host's disk."""
        folder = paths.attempts_dir(self.worker_dir(worker_id))
        found = 0
        for name in os.listdir(folder):
            try:
                found += os.stat(os.path.join(folder, name)).st_blocks * 512
            except FileNotFoundError:
                continue
        return found

    def stored(self, worker_id: str, stream: str = "out", attempt: int = 1) -> Path:
        """The manager's file of this log."""
        name = f"logs/{messages.directory_name(worker_id)}/{attempt}.{stream}.log"
        return next((self.directory / "manager").rglob(name), self.directory / "none")

    def stored_bytes(self, worker_id: str, stream: str = "out", attempt: int = 1) -> int:
        path = self.stored(worker_id, stream, attempt)
        return path.stat().st_size if path.exists() else 0

    def download(self, worker_id: str, query: str = "") -> bytes:
        path = f"/api/remote-workers/{worker_id}/logs?download=1{query}"
        status, body = self.manager.request("GET", path, timeout_s=120)
        assert status == 200, body
        return body

    def adopted_within_s(self, began: float, log_bytes: int, timeout_s: float = 20) -> float:
        """Seconds from `began` (monotonic) until the agent's log says "runner adopted" behind byte `log_bytes`."""
        path = os.path.join(self.agent_dir, "agent.log")

        def adopted() -> bool:
            with open(path, "rb") as file:
                file.seek(log_bytes)
                return b"runner adopted" in file.read()

        wait_until(adopted, timeout_s, "the runner adopted", every_s=0.005)
        return time.monotonic() - began

    def agent_log_bytes(self) -> int:
        path = os.path.join(self.agent_dir, "agent.log")
        return os.path.getsize(path) if os.path.exists(path) else 0
