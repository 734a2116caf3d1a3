"""Agents of one release and managers of another: real processes of both, over both channels.

`later` is this tree with an unknown field in every object of every message, both ways. `before` is the tree from which
0.2.0 was made, as its commit stands in this repository's history.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import forked
from tests.fleet.hosts import REPOSITORY
from tests.fleet.manager import END_WITH_US, Manager, own_environment, remove_runtime_dirs
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

BEFORE = "b91b0e23dc80d8372e19ac42f748ac7ba1e61d20"
PARTS = ("configs", "inventory", "procguard", "remote_agent", "web")
# What a later release does: a field that this one does not know, in each message and in each object within.
LATER = {
    "remote_agent/protocol/messages.py": """

_encode_now = encode


def encode(message: Any) -> "dict[str, Any]":
    return {**_encode_now(message), "from_a_later_release": {"x": [1]}}
""",
    "procguard/agent_api/decode.py": """

def dumps(message: Any) -> bytes:
    if type(message) is bytes:
        return message
    if type(message) is not dict:
        message = protocol.encode(message)
    return http_io.dumps({**message, "from_a_later_release": {"x": [1]}})
""",
}
INVENTORY = f"""\
all:
  hosts:
    this-machine:
      ansible_connection: local
      ansible_python_interpreter: {sys.executable}  # which has pyzmq
  vars:
    procguard_service: none
    procguard_workers:
      - id: counter
        shell: true
        command: 'i=0; while :; do echo "line $i"; i=$((i+1)); sleep 0.1; done'
        env: {{FROM: inventory}}
        restart: {{policy: always, backoff_s: [0]}}
"""


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("releases")
    later = base / "later"
    for part in PARTS:
        shutil.copytree(REPOSITORY / part, later / part, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in LATER.items():
        with open(later / name, "a", encoding="utf-8") as file:
            file.write(text)
    version = later / "procguard" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "0.2.0"', '__version__ = "0.3.0"'))
    made = {"now": REPOSITORY, "later": later}
    packed = subprocess.run(["git", "archive", BEFORE, *PARTS], cwd=REPOSITORY, capture_output=True, check=False)
    if packed.returncode == 0:
        with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as archive:
            archive.extractall(base / "before", filter="data")
        made["before"] = base / "before"
    return made


@dataclass
class Meeting:
    """A manager of one tree; commands and agents are of the other."""

    manager: Manager
    environment: dict[str, str]
    folder: Path

    def types(self, *words: str) -> str:
        if self.environment["PYTHONPATH"] == str(REPOSITORY):
            done = forked.run([*words], self.environment, timeout_s=120, folder=self.folder)
        else:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "procguard", *words], cwd=self.folder, env=self.environment,
                stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False,
            )  # fmt: skip
        assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def launcher(self) -> subprocess.Popen[str]:
        words = [*END_WITH_US, sys.executable, "-P", "-m", "procguard.worker_launcher", "--worker-id", "by-hand"]
        words += ["--manager-url", self.manager.url, "--command", "sleep 1000"]
        return subprocess.Popen(
            words, cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


@pytest.fixture(params=["now-later", "later-now", "now-before", "before-now", "now-later-zmq", "later-now-zmq"])
def meeting(request: pytest.FixtureRequest, trees: dict[str, Path], tmp_path: Path) -> Iterator[Meeting]:
    of_manager, of_agent, *zmq = str(request.param).split("-")
    if "before" in (of_manager, of_agent) and "before" not in trees:
        pytest.skip("the clone is too shallow: it lacks the commit before 0.2.0")
    home = tmp_path / "home"
    home.mkdir()
    settings = ["web.host=127.0.0.1"]
    if zmq:
        port = free_port()
        settings += ["communication.adapter_type=zmq", f"communication.adapter_config.port_base={port}"]
        settings += ["communication.adapter_config.host=127.0.0.1"]
    environment = own_environment(home)
    manager = Manager(tmp_path, environment | {"PYTHONPATH": str(trees[of_manager])}, settings)
    manager.config = trees[of_manager] / "configs" / "procguard_config.yaml"
    own = environment | {"PYTHONPATH": str(trees[of_agent]), "PROCGUARD_MANAGER_URL": manager.url}
    (tmp_path / "inventory.yaml").write_text(INVENTORY)
    with manager:
        made = Meeting(manager, own, tmp_path)
        yield made
        made.types("undeploy", "--hosts", "inventory.yaml")
    remove_runtime_dirs(home)


def test_they_understand_each_other(meeting: Meeting, request: pytest.FixtureRequest) -> None:
    manager = meeting.manager
    meeting.types("deploy", "--hosts", "inventory.yaml")
    first = manager.wait_worker("counter", "running")
    wait_until(lambda: "line 5\n" in manager.log_text("counter"), 20, "the first lines of its log")
    if str(request.node.callspec.id).endswith("zmq"):
        wait_until(lambda: manager.host("this-machine")["channel"] == "zmq", 20, "the agent on zmq")
    assert "counter" in meeting.types("ps", "-o", "name")
    assert "counter" in meeting.types("describe", "counter")

    manager.command("counter", "restart")
    wait_until(lambda: manager.worker("counter")["attempt"] == 2, 20, "the restart")
    second = manager.wait_worker("counter", "running")
    assert second["pid"] != first["pid"]
    os.kill(second["pid"], signal.SIGKILL)
    wait_until(lambda: manager.worker("counter")["attempt"] == 3, 20, "the restart after a crash")
    third = manager.wait_worker("counter", "running")
    said = manager.get("/api/events?worker_id=counter&limit=50")
    assert any("SIGKILL" in json.dumps(event) or "signal 9" in json.dumps(event) for event in said["events"]), said

    manager.stop()
    manager.start()
    wait_until(lambda: manager.worker("counter").get("state") == "running", 30, "the agent's next heartbeat")
    assert manager.worker("counter")["pid"] == third["pid"]
    manager.command("counter", "stop")
    manager.wait_worker("counter", "stopped")

    by_hand = meeting.launcher()
    try:
        manager.wait_worker("by-hand", "running", 30)
    finally:
        by_hand.send_signal(signal.SIGINT)
        said_by_it = by_hand.communicate(timeout=30)[0]
    assert by_hand.returncode == 0, said_by_it
    manager.wait_worker("by-hand", "stopped")
