"""The user's own document: every command line of it works as printed, on one machine, without any token.

Only the port is another (5000 may be taken), and the paths of what the document calls /path/to/project.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.fleet.hosts import REPOSITORY
from tests.fleet.manager import END_WITH_US, own_environment, remove_runtime_dirs
from tests.ports import free_port
from tests.waiting import wait_until

pytestmark = pytest.mark.skipif(shutil.which("curl") is None and os.environ.get("CI") != "true", reason="needs curl")

# What the document calls its complete configuration.
SEED_CONFIG = """\
# ProcGuard 配置文件示例

# 日志配置
logging:
  level: INFO
  file: logs/procguard.log
  format: "%(asctime)s - %(name)s - %(levelname)s - %(message)s"

# 状态管理
state:
  state_file: data/procguard_state.yaml
  auto_save: true

# 通信配置
communication:
  adapter_type: mock  # mock 或 zmq
  adapter_config:
    host: 0.0.0.0
    port_base: 5550
    timeout: 1000

# 监控配置
monitoring:
  interval: 1.0
  heartbeat_timeout: 10.0
  zombie_detection: true
  cpu_threshold: 0.1
  memory_threshold: 0.1

# 故障恢复配置
recovery:
  enable_auto_recovery: true
  stop_all_on_failure: false
  task_reassignment: false
  recovery_timeout: 30.0
  max_recovery_attempts: 3

# Web 界面配置
web:
  enabled: true
  host: 0.0.0.0
  port: 5000
"""

TRAIN = """\
import sys, time
for epoch in range(1, 100000):
    print(f"epoch {epoch} loss {1 / epoch:.4f} {sys.argv[1:]}", flush=True)
    time.sleep(0.1)
"""

MANAGER_WAYS = {
    "way 1, python": "python -m procguard.main --config configs/procguard_config.yaml",
    "way 2, script": "./start_manager.sh --config configs/procguard_config.yaml",
}
DAEMON = "./start_manager.sh --config configs/procguard_config.yaml --daemon"

WORKER_WAYS = {
    "way 1, arguments": """
./start_worker.sh \\
    --worker-id worker1 \\
    --manager-url http://localhost:5000 \\
    --command "python train.py --epochs 100"
""",
    "way 2, environment": """
export WORKER_ID=worker1
export MANAGER_URL=http://localhost:5000
export COMMAND="python train.py --epochs 100"
export WORKING_DIR=/path/to/project
./start_worker.sh
""",
    "way 3, python": """
python -m procguard.worker_launcher \\
    --worker-id worker1 \\
    --manager-url http://localhost:5000 \\
    --command "python train.py"
""",
}

COMMAND_LINE = (
    "curl -X POST http://localhost:5000/api/workers/worker1/command"
    ' -H "Content-Type: application/json" -d \'{"command": "%s"}\''
)


class Checkout:
    """A folder that looks like a checkout; what runs in it writes its data/ and logs/ here."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.project = directory / "project"
        for name in ("procguard", "remote_agent", "web", "start_manager.sh", "start_worker.sh"):
            (directory / name).symlink_to(REPOSITORY / name)
        (directory / "configs").mkdir()
        (directory / "configs/procguard_config.yaml").write_text(
            SEED_CONFIG.replace("port: 5000", f"port: {self.port}")
        )
        self.project.mkdir()
        for place in (directory, self.project):
            (place / "train.py").write_text(TRAIN)
        home = directory / "home"
        home.mkdir()
        self.environment = own_environment(home)
        del self.environment["PYTHONPATH"]  # the lines are typed in the checkout's folder: that is enough

    def typed(self, line: str) -> str:
        return line.replace("localhost:5000", f"localhost:{self.port}").replace("/path/to/project", str(self.project))

    def start(self, line: str, log_name: str) -> subprocess.Popen[bytes]:
        """Type a line that stays in the foreground. `exec` so that signals reach what it starts, as Ctrl-C would."""
        text = self.typed(line).strip()
        head, _, last = text.rpartition("\n./") if "\n./" in text else ("", "", text)
        script = f"{head}\nexec ./{last}" if head else f"exec {text}"
        with open(self.directory / log_name, "ab") as log:
            return subprocess.Popen(
                [*END_WITH_US, "bash", "-c", script],
                cwd=self.directory,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, line: str, timeout_s: float = 60) -> str:
        done = subprocess.run(
            ["bash", "-c", self.typed(line)],
            cwd=self.directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"{line}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout

    def said(self, log_name: str) -> str:
        return (self.directory / log_name).read_text(errors="replace")

    def curl(self, line: str) -> Any:
        return json.loads(self.run(line))

    def answers(self) -> bool:
        return (
            subprocess.run(
                ["curl", "-sf", f"http://localhost:{self.port}/readyz"], capture_output=True, check=False
            ).returncode
            == 0
        )

    def worker(self) -> dict[str, Any]:
        found = self.curl("curl http://localhost:5000/api/remote-workers")["workers"]
        return dict(next((one for one in found if one["worker_id"] == "worker1"), {}))

    def wait_state(self, state: str, timeout_s: float = 20) -> dict[str, Any]:
        wait_until(lambda: self.worker().get("state") == state, timeout_s, f"worker1 {state}", every_s=0.1)
        return self.worker()


def finish(process: subprocess.Popen[bytes], timeout_s: float = 20) -> int:
    """SIGTERM and wait; SIGKILL only to leave nothing behind when that fails."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
    try:
        return process.wait(timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise


def make_checkout(directory: Path) -> Checkout:
    if shutil.which("curl") is None:
        pytest.fail("needs curl")
    return Checkout(directory)


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return make_checkout(tmp_path)


@pytest.mark.parametrize("line", MANAGER_WAYS.values(), ids=MANAGER_WAYS)
def test_each_way_of_starting_the_manager_works_as_printed(checkout: Checkout, line: str) -> None:
    """State and log appear where the configuration says, relative to where it was started."""
    manager = checkout.start(line, "manager.out")
    try:
        wait_until(checkout.answers, 60, f"the manager: {line}", every_s=0.1)
        page = checkout.run("curl -s http://localhost:5000/")
        assert "<html" in page.lower()
    finally:
        status = finish(manager)
    assert status in (0, -signal.SIGTERM, 128 + signal.SIGTERM), checkout.said("manager.out")
    assert (checkout.directory / "logs/procguard.log").stat().st_size > 0
    assert (checkout.directory / "data/procguard_state.yaml").exists()


def test_the_manager_as_a_daemon_works_as_printed(checkout: Checkout) -> None:
    """It returns at once, serves, refuses a second one on the same state, and --stop ends it."""
    try:
        checkout.run(DAEMON)
        wait_until(checkout.answers, 30, "the daemon", every_s=0.1)
        second = subprocess.run(
            ["bash", "-c", DAEMON], cwd=checkout.directory, env=checkout.environment, capture_output=True, check=False
        )
        assert second.returncode != 0
        checkout.run(DAEMON.replace("--daemon", "--status"))
    finally:
        checkout.run(DAEMON.replace("--daemon", "--stop"))
    assert not checkout.answers()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A manager that runs while workers are started and controlled."""
    checkout = make_checkout(tmp_path_factory.mktemp("seed"))
    manager = checkout.start(MANAGER_WAYS["way 1, python"], "manager.out")
    try:
        wait_until(checkout.answers, 60, "the manager", every_s=0.1)
        yield checkout
    finally:
        finish(manager)
        remove_runtime_dirs(checkout.directory / "home")


@pytest.mark.parametrize("way", WORKER_WAYS)
def test_each_way_of_starting_a_worker_works_as_printed(served: Checkout, way: str) -> None:
    """The launcher's log lies in logs/ of its folder; SIGTERM to the launcher ends the child too."""
    began = time.monotonic()
    launcher = served.start(WORKER_WAYS[way], "launcher.out")
    try:
        view = served.wait_state("running")
        print(f"\n{way}: running after {time.monotonic() - began:.2f} s")
        child = psutil.Process(view["pid"])
        assert child.cmdline()[1] == "train.py"
        expected = served.project if "WORKING_DIR" in WORKER_WAYS[way] else served.directory
        assert Path(child.cwd()) == expected
        wait_until(
            lambda: "epoch 3" in served.run("curl http://localhost:5000/api/remote-workers/worker1/logs"), 15, "log"
        )
        assert [*(served.directory / "logs").glob("*worker1*")], os.listdir(served.directory / "logs")
    finally:
        status = finish(launcher)
    assert status == 0, served.said("launcher.out")
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE
    assert served.wait_state("stopped")["pid"] is None


def test_every_control_line_works_as_printed(served: Checkout) -> None:
    """start, stop, restart, kill, status and log, by the document's own curl lines."""
    launcher = served.start(WORKER_WAYS["way 1, arguments"], "launcher.out")
    try:
        first = served.wait_state("running")["pid"]

        assert served.curl(COMMAND_LINE % "restart")["command"] == "restart"
        wait_until(lambda: served.worker()["pid"] not in (None, first), 20, "another pid", every_s=0.1)
        second = served.wait_state("running")["pid"]
        assert not psutil.pid_exists(first)

        assert served.curl(COMMAND_LINE % "stop")["status"]
        served.wait_state("stopped")
        assert not psutil.pid_exists(second)

        served.curl(COMMAND_LINE % "start")
        third = served.wait_state("running")["pid"]

        served.curl(COMMAND_LINE % "kill")
        served.wait_state("stopped")
        assert not psutil.pid_exists(third)
        assert launcher.poll() is None, served.said("launcher.out")

        log = served.run("curl http://localhost:5000/api/remote-workers/worker1/logs")
        assert "epoch 1 " in log
        assert served.curl("curl http://localhost:5000/api/remote-workers")["total"] == 1
    finally:
        finish(launcher)
