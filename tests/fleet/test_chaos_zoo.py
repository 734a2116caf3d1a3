"""One hostile connection of every kind, one after the other; the manager's agents are not affected (tests/zoo.py).

Agents are simulated with the real protocol (scripts/swarm); each attack is a separate process, and so is a bare pywsgi,
asked as often as the agents speak, that says what this machine can do meanwhile. Needs no root.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from scripts.swarm import Swarm
from scripts.swarm.swarm import default_spec
from tests.chaos import ChaosReport
from tests.fleet.hosts import REPOSITORY
from tests.fleet.manager import END_WITH_US, Manager, own_environment
from tests.zoo import ALL, ATTACKS

AGENTS = 20
P99_S = 0.25
BARE_MAY_S = 0.05  # where a bare server is slower than that, this machine is busy with something else
ASK_EVERY_S = 0.025


def fenced_spec(host: int, number: int) -> dict[str, Any]:
    return {**default_spec(host, number), "on_partition": "fence", "lease_s": 15.0}


class Asker:
    """Requests one address repeatedly on one connection and records the duration of each response."""

    def __init__(self, port: int, path: str) -> None:
        self.delays_s: list[float] = []
        self._port, self._path = port, path
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop)
        self._thread.start()

    def _loop(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        while not self._ended.wait(ASK_EVERY_S):
            began = time.monotonic()
            try:
                connection.request("GET", self._path)
                connection.getresponse().read()
            except (OSError, http.client.HTTPException):
                connection.close()  # opened again by the next request
                continue
            self.delays_s.append(time.monotonic() - began)
        connection.close()

    def end(self) -> None:
        self._ended.set()
        self._thread.join()


@contextlib.contextmanager
def bare_pywsgi() -> Iterator[int]:
    words = [*END_WITH_US, sys.executable, "-m", "tests.bare_pywsgi"]
    with subprocess.Popen(words, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield int(process.stdout.readline())
        process.kill()


def attacks(
    port: int, seconds: float, names: list[str], tokens: dict[str, str]
) -> Iterator[tuple[str, dict[str, int]]]:
    """(name, what it did) after each."""
    words = [*END_WITH_US, sys.executable, "-m", "tests.zoo", str(port), str(seconds), ",".join(names)]
    with subprocess.Popen([*words, json.dumps(tokens)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            done = json.loads(line)
            yield done["name"], done["counts"]
    assert process.returncode == 0


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def credentials(manager: Manager) -> dict[str, str]:
    """A viewer's token and an agent's secret, with a worker that has a log."""
    worker = {"worker_id": "zoo", "spec": {"command": "x"}}
    declared = {"hosts": [{"host": "zoo", "ssh": {"hostname": "zoo"}, "workers": [worker]}]}
    assert manager.request("POST", "/api/deployments", declared)[0] == 200
    secret = "secret-of-zoo"
    digest = {"secret_sha256": messages.secret_sha256(secret)}
    assert manager.request("PUT", "/api/agents/zoo/credentials", digest)[0] == 200
    made = json.loads(manager.request("POST", "/api/tokens", {"scope": "viewer", "name": "zoo"})[1])
    return {"stranger": "", "viewer": str(made["token"]), "agent": secret}


@pytest.mark.alone
@pytest.mark.chaos(27)
@pytest.mark.timeout(240)
def test_agents_notice_nothing_of_one_hostile_connection(tmp_path: Path, chaos_report: ChaosReport) -> None:
    seconds = 20.0 if chaos_report.long else 0.4
    names = [*ATTACKS, ALL]
    slow: dict[str, tuple[float, float]] = {}
    with (
        Manager(tmp_path, own_environment(tmp_path), ["web.host=127.0.0.1"]) as manager,
        Swarm(manager.url, agents=AGENTS, workers_per_agent=4, seed=27, spec=fenced_spec) as swarm,
        bare_pywsgi() as bare_port,
    ):
        tokens = credentials(manager)
        swarm.wait_running(60)
        began, before = time.monotonic(), swarm.summary()
        health, bare = Asker(manager.port, "/healthz"), Asker(bare_port, "/")
        try:
            for _round in chaos_report.rounds(short=1, long=1):
                at = len(health.delays_s)
                for name, counts in attacks(manager.port, seconds, names, tokens):
                    assert counts["connections"], (name, counts)
                    meanwhile, at = health.delays_s[at:], len(health.delays_s)
                    assert meanwhile, f"{name}: /healthz was not answered at all"
                    slow[name] = (quantile(meanwhile, 0.99), max(meanwhile))
                    chaos_report.progress(f"{name}: /healthz p99 {1000 * slow[name][0]:.0f} ms {counts}")
        finally:
            health.end()
            bare.end()
        ended, after = time.monotonic(), swarm.summary()
        flat = swarm.samples()["beats"]
        beats = [delay for sent, delay in zip(flat[::2], flat[1::2], strict=True) if began <= sent <= ended]
        lost = [one for one in manager.get("/api/events?limit=5000")["events"] if "suspect" in one["kind"]]
        workers = manager.get("/api/remote-workers?select=!zoo")["workers"]
        stopped = [view for view in workers if view["state"] != "running"]
    bare_p99, health_p99, beats_p99 = (quantile(one, 0.99) for one in (bare.delays_s, health.delays_s, beats))
    allowed_s = P99_S * max(1.0, bare_p99 / BARE_MAY_S)
    assert beats_p99 < allowed_s and health_p99 < allowed_s, (beats_p99, health_p99, bare_p99, slow)
    assert (after.connects, after.losses, after.failures) == (before.connects, before.losses, before.failures)
    assert not lost and not stopped, "a lease ended, or an agent was missed"
    assert "Traceback" not in manager.console()
    worst = max(slow, key=lambda name: slow[name][1])
    chaos_report(
        f"{len(names)} attacks of {seconds:g} s: {len(beats)} heartbeats, p99 {1000 * beats_p99:.0f} ms (slowest "
        f"{1000 * max(beats):.0f} ms); /healthz p99 {1000 * health_p99:.0f} ms (slowest {1000 * slow[worst][1]:.0f} "
        f"ms, by {worst}); bare pywsgi beside it p99 {1000 * bare_p99:.0f} ms; no lease ended"
    )
