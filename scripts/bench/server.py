"""The manager of a benchmark, and the anchors that serve HTTP: starts them, pins them to one core, measures and ends
them."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

from scripts.bench import common
from scripts.bench.quota import Quota

READY_WITHIN_S = 60.0
ENDS_WITHIN_S = 20.0
# On a busy machine, thousands of agents that connect at once authenticate late.
CROWD = ("web.limits.unproven_connections=30000",)
OTHER_DESCRIPTORS = 200  # descriptors of a manager in addition to its agents' connections


def cores() -> tuple[int, int]:
    """(core of the server, core of the load), which differ if this process may use two."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def agents_possible() -> int:
    """The number of agents for which the descriptors of one process suffice, at two connections each; a few connections
    are still closing while their successors are opened."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 10**6 if hard == resource.RLIM_INFINITY else max(1, int(0.95 * (hard - OTHER_DESCRIPTORS)) // 2)


def fitting(agents: int) -> tuple[int, str]:
    """(number of agents that one process can serve on this machine, the reason if fewer than requested)."""
    most = agents_possible()
    return (
        (agents, "") if agents <= most else (most, f"{most} agents: more need more descriptors than a process has here")
    )


def on_core(core: int | None) -> list[str]:
    return [] if core is None else ["taskset", "-c", str(core)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A process that serves HTTP on 127.0.0.1:`port`. `output`: the file that receives its output."""

    quota: Quota | None = None  # share of the processor; set before `start`
    root = common.ROOT  # folder of its modules, which differs if it runs from a wheel

    def __init__(self, name: str, words: Sequence[str], port: int, output: str, core: int | None = None) -> None:
        self.name, self.port = name, port
        self.url = f"http://127.0.0.1:{port}"
        self._words = [*on_core(core), *words]
        self._output = output
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> float:
        """Start the process. Returns the seconds until it listened. Exits the benchmark if it does not."""
        began = time.monotonic()
        with open(self._output, "ab") as output:
            self._process = subprocess.Popen(self._words, cwd=self.root, stdout=output, stderr=output)
        if self.quota is not None:
            self.quota.add(self._process.pid)
        while time.monotonic() - began < READY_WITHIN_S and self._process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1.0).close()
                return time.monotonic() - began
            except OSError:
                time.sleep(0.02)
        self.kill()
        with open(self._output, encoding="utf-8", errors="replace") as file:
            sys.exit(f"bench: {self.name} did not start: {file.read()[-2000:]}")

    def end(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(ENDS_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """SIGKILL."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def cpu_s(self) -> float:
        """Processor seconds of the process, without those of its ended children, which write the state."""
        times = psutil.Process(self.pid).cpu_times()
        return float(times.user + times.system)

    def resident_mb(self) -> float:
        return common.resident_kb(self.pid) / 1024


class Manager(Server):
    """`python -m procguard.main` with its state in `folder`, which is used again by a start after `kill`."""

    def __init__(self, folder: str, settings: Sequence[str] = (), core: int | None = None) -> None:
        self.folder, port = folder, free_port()
        words = [sys.executable, "-m", "procguard.main", "--host", "127.0.0.1", "--port", str(port)]
        for one in (f"state.state_file={folder}/state.yaml", f"logging.file={folder}/manager.log", *settings):
            words += ["--set", one]
        super().__init__("the manager", words, port, os.path.join(folder, "out"), core)

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Send one request as this machine's operator, over a separate connection."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)) as connection:
            return ask(connection, method, path, body)


def ask(
    connection: http.client.HTTPConnection, method: str, path: str, body: Any = None, secret: str = ""
) -> dict[str, Any]:
    """As above; exits the benchmark if the status is not 2xx."""
    headers = {"Content-Type": "application/json"} if body is not None else {}
    if secret:
        headers["Authorization"] = f"Bearer {secret}"
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    reply = connection.getresponse()
    data = reply.read()
    if reply.status >= 300:
        sys.exit(f"bench: {method} {path}: HTTP {reply.status} {data[:300]!r}")
    found: dict[str, Any] = json.loads(data) if data else {}
    return found
