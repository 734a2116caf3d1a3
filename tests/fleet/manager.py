"""The manager and the operator's command line as processes of their own, forked from one that has imported what they
need (tests/forked.py); where a test measures or changes a start, as people start them.

Owns their directories, ports and ends; asks the manager only over its documented HTTP.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests import forked
from tests.fleet.hosts import REPOSITORY
from tests.ports import free_port
from tests.waiting import wait_until

# The kernel ends what is started with this when the tests die: no fixture runs after a SIGKILL.
END_WITH_US = ("setpriv", "--pdeathsig", "KILL")
CONFIG = REPOSITORY / "configs" / "procguard_config.yaml"


def own_environment(home: Path) -> dict[str, str]:
    """This process's environment with another home, and nothing of a ProcGuard that the developer may run."""
    kept_out = ("PROCGUARD_", "SSH_", "XDG_", "VIRTUAL_ENV", "PYTEST_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(kept_out)}
    if "PROCGUARD_CI_MARK" in os.environ:  # by it a run of all tests knows what it left behind
        kept["PROCGUARD_CI_MARK"] = os.environ["PROCGUARD_CI_MARK"]
    for name in [*kept]:
        if name in ("WORKER_ID", "MANAGER_URL", "COMMAND", "WORKING_DIR", "CI") or name.lower().endswith("_proxy"):
            del kept[name]
    kept["HOME"] = str(home)
    kept["PYTHONPATH"] = str(REPOSITORY)
    kept["PATH"] = f"{Path(sys.executable).parent}:{kept.get('PATH', '')}"
    kept["COLUMNS"] = "200"  # tables keep their lines whole
    return kept


def remove_runtime_dirs(home: Path) -> None:
    """Locks and sockets that agents of this home keep under /tmp for their next start; after a test there is none."""
    for record in home.glob(".procguard/**/agent.json"):
        runtime_dir = Path(json.loads(record.read_text())["runtime_dir"])
        shutil.rmtree(runtime_dir, ignore_errors=True)
        with contextlib.suppress(OSError):  # others still have theirs
            runtime_dir.parent.rmdir()


class Manager:
    """`python -m procguard.main` with its own state, on 0.0.0.0 and a port that stays the same over restarts."""

    def __init__(
        self, directory: Path, environment: dict[str, str], settings: Sequence[str] = (), *, from_nothing: bool = False
    ) -> None:
        """`from_nothing`: as people start it, for who measures how long that takes."""
        self.from_nothing = from_nothing
        self.directory = directory
        self.environment = environment
        self.settings = list(settings)
        self.config = CONFIG
        self.port = free_port()
        secure = any(setting.startswith("web.tls") for setting in settings)
        self.url = f"{'https' if secure else 'http'}://127.0.0.1:{self.port}"
        # Whose certificate it shows is what the agents ask; these requests only look.
        self._tls = ssl._create_unverified_context() if secure else None
        self.process: subprocess.Popen[bytes] | forked.Process | None = None
        self.token = ""  # for a test that listens for other machines itself: then it is no local operator

    def __enter__(self) -> Manager:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self, timeout_s: float = 30) -> None:
        words = ["--config", str(self.config), "--port", str(self.port)]
        for setting in self.settings:
            words += ["--set", setting]
        with open(self.directory / "console.log", "ab") as console:
            if not self.from_nothing and forked.can_run(self.environment):
                said = console.fileno()
                self.process = forked.start("procguard.main", words, self.environment, self.directory, said, said)
            else:
                words = [*END_WITH_US, sys.executable, "-m", "procguard.main", *words]
                self.process = subprocess.Popen(
                    words,
                    cwd=self.directory,
                    env=self.environment,
                    stdout=console,
                    stderr=console,
                    start_new_session=True,
                )
        try:
            wait_until(self._is_ready, timeout_s, "the manager answering")
        except BaseException:
            self.kill()
            print(self.console()[-4000:])
            raise

    def _is_ready(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the manager ended with {self.process.returncode}: {self.console()[-4000:]}")
        with contextlib.suppress(OSError):  # not listening yet
            return self.request("GET", "/readyz")[0] == 200
        return False

    def stop(self, timeout_s: float = 15) -> None:
        """SIGTERM, as a person's Ctrl-C; SIGKILL only when it doesn't listen, and then the test fails."""
        if self.process is None:
            return
        process, self.process = self.process, None
        process.terminate()
        try:
            process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the manager ignored SIGTERM for {timeout_s} s") from None

    def kill(self) -> None:
        """SIGKILL: it gets no word out and saves nothing."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.process = None

    def console(self) -> str:
        return (self.directory / "console.log").read_text(errors="replace")

    # --------------------------------------------------------------------------------------------------- HTTP

    def request(self, method: str, path: str, body: Any = None, timeout_s: float = 10) -> tuple[int, bytes]:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, method=method)
        request.add_header("Content-Type", "application/json")
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout_s, context=self._tls) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def get(self, path: str) -> Any:
        status, body = self.request("GET", path)
        assert status == 200, f"GET {path}: {status} {body.decode(errors='replace')}"
        return json.loads(body)

    def command(self, worker_id: str, verb: str) -> dict[str, Any]:
        status, body = self.request("POST", f"/api/workers/{worker_id}/command", {"command": verb})
        assert status == 202, f"{verb} {worker_id}: {status} {body.decode(errors='replace')}"
        return dict(json.loads(body))

    def worker(self, worker_id: str) -> dict[str, Any]:
        status, body = self.request("GET", f"/api/remote-workers/{worker_id}")
        return dict(json.loads(body)) if status == 200 else {}

    def host(self, name: str) -> dict[str, Any]:
        found = [host for host in self.get("/api/hosts")["hosts"] if host["host"] == name]
        return dict(found[0]) if found else {}

    def wait_worker(self, worker_id: str, state: str, timeout_s: float = 15) -> dict[str, Any]:
        def arrived() -> dict[str, Any]:
            now = self.worker(worker_id)
            return now if now.get("state") == state else {}

        try:
            return wait_until(arrived, timeout_s, f"{worker_id} {state}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}; the manager says {self.worker(worker_id)}") from None

    def log_text(self, worker_id: str, query: str = "") -> str:
        """The manager's copy of this worker's log, as far back as it hands out at once."""
        status, body = self.request("GET", f"/api/remote-workers/{worker_id}/logs?tail=100000{query}")
        assert status == 200, body
        return body.decode(errors="replace")


@dataclass
class Operator:
    """A person at the command line, with a home of their own."""

    home: Path
    environment: dict[str, str]
    manager_url: str = ""

    @classmethod
    def with_keys(cls, home: Path, private_key: Path | None, known_hosts: Path | None) -> Operator:
        ssh = home / ".ssh"
        ssh.mkdir(mode=0o700, parents=True)
        if private_key is not None:
            shutil.copy(private_key, ssh / "id_ed25519")
        if known_hosts is not None:
            shutil.copy(known_hosts, ssh / "known_hosts")
        return cls(home, own_environment(home))

    def invoke(
        self, *words: str, timeout_s: float = 60, checkout: Path = REPOSITORY
    ) -> subprocess.CompletedProcess[str]:
        """`invoke <words>` in the checkout."""
        environment = self.environment | {"PROCGUARD_MANAGER_URL": self.manager_url, "PYTHONPATH": str(checkout)}
        if checkout == REPOSITORY:
            return forked.run([*words], environment, program=forked.INVOKE, timeout_s=timeout_s)
        return subprocess.run(
            [sys.executable, "-m", "invoke", *words],
            cwd=checkout,
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
