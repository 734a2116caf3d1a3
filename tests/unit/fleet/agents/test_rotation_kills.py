"""Rotation of agents' secrets with real managers, agents and launchers, and `invoke agents.rotate`."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent import settings
from remote_agent.protocol import messages
from remote_agent.system import paths
from tests.agent_host import end_runners
from tests.ports import free_ports
from tests.server_process import ROOT, RunningManager
from tests.waiting import wait_until

OLD = "the-first-secret"
SETTINGS = ("monitoring.heartbeat_timeout=2",)

pytestmark = pytest.mark.slow


def digest(secret: str) -> str:
    return messages.secret_sha256(secret)


def invoke(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "invoke", *words],
        cwd=ROOT,
        env={**os.environ, "PROCGUARD_MANAGER_URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


class Process:
    """One real agent of a real manager."""

    def __init__(self, manager: RunningManager, directory: Path, host: str) -> None:
        answer = manager.ask("POST", "/api/deployments", {"hosts": [{"host": host}]}).json
        self.old = f"{OLD} of {host}"
        manager.ask("PUT", f"/api/agents/{host}/credentials", {"secret_sha256": digest(self.old)})
        home = str(directory / f"home-{host}")
        self.dir = paths.agent_dir(home, answer["fleet_id"], host)
        os.makedirs(self.dir)
        self.runtime_dir = paths.choose_runtime_dir(home, answer["fleet_id"], host)
        key, urls = answer["hosts"][host]["proof_key"], [f"http://127.0.0.1:{manager.port}"]
        config = settings.AgentSettings(answer["fleet_id"], host, host, urls, self.runtime_dir, self.old, key)
        config.python = sys.executable
        settings.save(self.dir, config)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [sys.executable, "-s", "-E", "-S", "-m", "remote_agent", "run", "--dir", self.dir]
        self.process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def secret(self) -> str:
        return settings.load(self.dir).secret


@contextlib.contextmanager
def agents(manager: RunningManager, directory: Path, *hosts: str) -> Iterator[list[Process]]:
    found = [Process(manager, directory, host) for host in hosts]
    try:
        yield found
    finally:
        for one in found:
            one.kill()
            end_runners(one.dir, one.runtime_dir)
            shutil.rmtree(one.runtime_dir, ignore_errors=True)


def state_of(manager: RunningManager, host: str) -> dict[str, Any]:
    return next(view for view in manager.ask("GET", "/api/agents").json["agents"] if view["agent"] == host)


def test_invoke_agents_rotate(tmp_path: Path) -> None:
    """Connected agents have a new secret when the command returns, others rotate when they return; the exit code tells
    whether all have."""
    manager = RunningManager(tmp_path, *SETTINGS)
    url = f"http://127.0.0.1:{manager.port}"
    try:
        with agents(manager, tmp_path, "gpu01", "gpu02", "cpu01") as (one, two, away):
            one.start()
            two.start()
            for host in ("gpu01", "gpu02"):
                wait_until(lambda host=host: state_of(manager, host)["agent_state"] == "connected", 40, host)
            done = invoke(url, "agents.rotate", "gpu*")
            assert done.returncode == 0, done.stdout + done.stderr
            assert "gpu01: rotated" in done.stdout and "2 of 2 agents rotated" in done.stdout
            assert one.secret() not in (one.old, two.secret()) and away.secret() == away.old
            first = one.secret()
            everybody = invoke(url, "agents.rotate", "*", "--limit", "!gpu02", "--json")
            assert everybody.returncode == 2 and "1 of 2 agents have no new secret: cpu01" in everybody.stderr
            reported = json.loads(everybody.stdout)["agents"]
            assert reported["gpu01"]["status"] == "rotated" and reported["cpu01"]["status"] == "asked"
            assert one.secret() != first
            listed = invoke(url, "agents").stdout
            assert "new secret asked" in listed
            assert invoke(url, "agents.rotate", "cpu01", "--no-wait").returncode == 0
            away.start()
            wait_until(
                lambda: state_of(manager, "cpu01")["rotation"] is None and away.secret() != away.old, 20, "cpu01"
            )
            assert invoke(url, "agents.rotate", "tpu*").returncode == 1
            entries = manager.ask("GET", "/api/audit").json["audit"]
            assert any("rotate" in json.dumps(entry) and "gpu01" in json.dumps(entry) for entry in entries)
        assert "Traceback" not in manager.log()
    finally:
        manager.close()


def test_over_zmq_the_curve_key_is_replaced_as_well(tmp_path: Path) -> None:
    """The agent stays on its channel, and no request fails because of the rotation."""
    zmq = pytest.importorskip("zmq")
    assert zmq.has("curve")
    settings_ = (f"communication.adapter_config.port_base={free_ports(2)}", "communication.adapter_type=zmq")
    manager = RunningManager(tmp_path, *SETTINGS, "communication.adapter_config.host=127.0.0.1", *settings_)
    try:
        with agents(manager, tmp_path, "gpu01") as [one]:
            one.start()
            wait_until(lambda: state_of(manager, "gpu01")["channel"] == "zmq", 40, "zmq", every_s=0.05)
            done = invoke(f"http://127.0.0.1:{manager.port}", "agents.rotate", "gpu01")
            assert done.returncode == 0, done.stdout + done.stderr
            assert one.secret() != one.old
            time.sleep(1.5)  # long enough for a fall back to HTTP to show
            view = state_of(manager, "gpu01")
            assert (view["channel"], view["channel_trouble"], view["agent_state"]) == ("zmq", "", "connected")
            said = (Path(one.dir) / "agent.log").read_text()
            assert "secret replaced" in said and 'is_now="http' not in said.partition("secret replaced")[2]
        assert "Traceback" not in manager.log()
    finally:
        manager.close()


def test_a_launcher_has_its_secret_replaced_too_and_comes_back_with_it(tmp_path: Path) -> None:
    """It continues with the new secret, and so does the next launcher of the same worker."""
    manager = RunningManager(tmp_path, *SETTINGS)
    url, home = f"http://127.0.0.1:{manager.port}", tmp_path / "home"
    (tmp_path / "desk").mkdir()
    words = ["--worker-id", "w1", "--manager-url", url, "--command", "sleep 600"]

    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "procguard.worker_launcher", *words],
            cwd=tmp_path / "desk",
            env={**os.environ, "PROCGUARD_HOME": str(home), "PYTHONPATH": str(ROOT)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def state() -> str:
        return str(manager.ask("GET", "/api/remote-workers/w1").json.get("state"))

    launcher = launch()
    try:
        wait_until(lambda: state() == "running", 40, "the worker", every_s=0.1)
        [file] = home.rglob("agent.json")
        before = json.loads(file.read_text())
        done = invoke(url, "agents.rotate", "launcher:w1")
        assert done.returncode == 0, done.stdout + done.stderr
        after = json.loads(file.read_text())
        assert after["secret"] != before["secret"] and after["proof_key"] == before["proof_key"]
        pid = manager.ask("GET", "/api/remote-workers/w1").json["pid"]
        launcher.kill()
        launcher.wait()
        launcher = launch()  # registers with the new secret, and adopts the child
        wait_until(lambda: "registered with" in (tmp_path / "desk/logs/launcher-w1.log").read_text(), 40, "registered")
        wait_until(lambda: state() == "running", 40, "the worker again", every_s=0.1)
        assert manager.ask("GET", "/api/remote-workers/w1").json["pid"] == pid
        assert json.loads(file.read_text())["secret"] == after["secret"]
        wait_until(lambda: state_of(manager, "launcher:w1")["agent_state"] == "connected", 40, "connected")
    finally:
        launcher.kill()
        launcher.wait()
        for record in home.rglob("agent.json"):
            runtime_dir = settings.load(str(record.parent)).runtime_dir
            end_runners(str(record.parent), runtime_dir)
            shutil.rmtree(runtime_dir, ignore_errors=True)
        manager.close()


class Rounds:
    """A manager that may be a different process after each round."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.manager = RunningManager(directory, *SETTINGS)

    def kill(self) -> None:
        self.manager.process.kill()
        self.manager.process.wait()

    def start(self) -> None:
        self.manager = RunningManager(self._directory, *SETTINGS, port=self.manager.port)

    def view(self) -> dict[str, Any]:
        return state_of(self.manager, "h1")

    def wait_connected(self) -> None:
        wait_until(lambda: self.view()["agent_state"] == "connected", 40, "connected", every_s=0.05)


def test_agents_killed_in_the_midst_of_it_are_never_locked_out(tmp_path: Path) -> None:
    """kill -9 at random moments of several rotations, of the manager too: the agent always comes back."""
    rng, rounds = random.Random(7), Rounds(tmp_path)
    try:
        with agents(rounds.manager, tmp_path, "h1") as [agent]:
            seen = {agent.old}
            for number in range(6):
                agent.start()
                rounds.wait_connected()
                asked = rounds.manager.ask("POST", "/api/agents/rotate", {"agents": ["h1"]})
                assert asked.json["agents"]["h1"]["status"] == "asked", asked.json
                time.sleep(rng.uniform(0.0, 0.6))
                if number % 3 == 2:
                    rounds.kill()
                agent.kill()
                if number % 3 == 2:
                    rounds.start()
                seen.add(agent.secret())
            agent.start()
            wait_until(lambda: rounds.view()["rotation"] is None, 20, "the last rotation's end", every_s=0.05)
            rounds.wait_connected()
            assert len(seen | {agent.secret()}) > 2
    finally:
        rounds.manager.close()
