"""The steps of playbooks/deploy.yaml on this machine, run as the playbook runs them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from procguard.deploy.session import bundle
from remote_agent.install import process
from remote_agent.install.installer import Installer
from remote_agent.protocol import messages
from tests import fake_manager
from tests.fake_manager import FLEET, KEY, FakeManager

ROOT = Path(bundle.__file__).parent.parent.parent.parent


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        secrets = {"h1": ""}

        def deployed(body: dict[str, Any]) -> tuple[int, Any]:
            mine = {"agent_id": "h1", "proof_key": KEY, "secret_sha256": secrets["h1"], "workers": {}}
            return 200, {"fleet_id": FLEET, "hosts": {"h1": mine}, "manager_urls": [one.url]}

        def credentials(body: dict[str, Any]) -> tuple[int, Any]:
            secrets["h1"] = body["secret_sha256"]
            return 200, {}

        one.routes["POST /api/deployments"] = deployed
        one.routes["PUT /api/agents/h1/credentials"] = credentials
        yield one


def step(manager: FakeManager, *words: str, text: str = "") -> dict[str, Any]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PROCGUARD_MANAGER_URL": manager.url}
    argv = [sys.executable, "-m", "procguard.deploy.install.ansible", *words]
    done = subprocess.run(argv, input=text, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def on_host(directory: Path, home: Path, op: str, *words: str, text: str = "") -> dict[str, Any]:
    argv = [sys.executable, "-I", str(directory / "install.pyz"), op]
    argv += ["--home", str(home), "--host", "h1", "--fleet", FLEET, *words]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
def test_the_playbooks_steps_install_an_agent_and_change_nothing_the_second_time(
    manager: FakeManager, tmp_path: Path
) -> None:
    inventory, directory, home = tmp_path / "i.yaml", tmp_path / "run", tmp_path / "home"
    inventory.write_text("all: {hosts: {h1: {ansible_connection: local, procguard_service: none}}}")

    def once() -> dict[str, Any]:
        assert step(manager, "begin", "--hosts", str(inventory), "--dir", str(directory))["hosts"] == ["h1"]
        found = json.dumps(on_host(directory, home, "status"))
        wanted = step(manager, "request", "--host", "h1", "--dir", str(directory), text=found)
        plan = step(manager, "plan", "--host", "h1", "--dir", str(directory), text=found)
        bundle_file = str(directory / plan["bundle"])
        return on_host(directory, home, "install", "--bundle", bundle_file, text=json.dumps(wanted))

    installer = Installer(str(home), FLEET, "h1")
    try:
        first, again = once(), once()
        assert first["changed"] and first["running"] and again["changed"] is False and again["pid"] == first["pid"]
        secret = installer.config()["secret"]
        put = manager.asked("PUT", "/api/agents/h1/credentials")
        assert [one[2]["secret_sha256"] for one in put] == [messages.secret_sha256(secret)]
        assert oct((directory / "deployment.json").stat().st_mode & 0o777) == "0o600"
    finally:
        runtime_dir = installer.config().get("runtime_dir")
        if runtime_dir:
            process.stop(runtime_dir, installer.dir)
            shutil.rmtree(runtime_dir, ignore_errors=True)


def test_playbooks_log_no_secret_and_say_of_each_command_when_it_changes() -> None:
    tasks = [
        task for path in sorted((ROOT / "playbooks").rglob("*.yaml")) for task in flat(yaml.safe_load(path.read_text()))
    ]
    assert [task["name"] for task in tasks if task.get("no_log")] == [
        "Write the request",
        "Run the installer",
    ]
    commands = [task for task in tasks if {"ansible.builtin.command", "ansible.builtin.raw"} & set(task)]
    assert len(commands) > 10 and all(task.get("changed_when") is not None for task in commands)


def flat(value: Any) -> list[dict[str, Any]]:
    """Every task of a playbook or task file, those in blocks too."""
    if not isinstance(value, list):
        return []
    found = []
    for one in value:
        inside = [flat(one.get(key)) for key in ("tasks", "block", "rescue", "always")]
        found += [task for tasks in inside for task in tasks] or [one]
    return found
