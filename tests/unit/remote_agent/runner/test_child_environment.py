"""The base environment of a host's workers is the one recorded at deployment, however the agent is started later."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from remote_agent.install import process, removal
from remote_agent.install.installer import Installer, recorded_environment
from remote_agent.protocol import messages
from remote_agent.system import paths, processes
from tests.fake_manager import FakeManager
from tests.unit.remote_agent.install.test_install import installer, manager, put  # noqa: F401 - fixtures
from tests.waiting import wait_until

BARE = {"PATH": "/usr/bin:/bin", "HOME": "/", "SHELL": "/bin/sh", "LOGNAME": "root", "FROM_CRON": "1"}  # as cron gives
COMMAND = "cd {directory}; n=$PROCGUARD_ATTEMPT; env -0 > $n.tmp; mv $n.tmp $n; cd /; exec sleep 600"


def variables(directory: Path, attempt: int) -> dict[str, str]:
    path = directory / str(attempt)
    wait_until(path.exists, what=f"the environment of attempt {attempt}")
    pairs = dict(one.partition("=")[::2] for one in path.read_text().split("\0") if one)
    return {name: value for name, value in pairs.items() if not name.startswith("PROCGUARD_")}


def by_cron(one: Installer) -> None:
    """The crontab entry's command, which runs every minute and at reboot."""
    program = os.path.join(paths.current_release(one.dir), "remote_agent", "install", "__main__.py")
    argv = [sys.executable, "-I", "-S", program, "ensure", "--dir", one.dir]
    subprocess.run(argv, env=BARE, check=True, capture_output=True, cwd="/")


def by_systemd(one: Installer) -> None:
    """The unit's ExecStart command."""
    config = one.config()
    subprocess.Popen(
        process.arguments(config["python"], one.dir),
        env={"FROM_SYSTEMD": "1", "PATH": "/usr/bin"},
        cwd=os.path.realpath(paths.current_release(one.dir)),
        start_new_session=True,
    )
    assert process.await_running(config["runtime_dir"], one.dir)


@pytest.mark.slow
@pytest.mark.parametrize("starter", [by_cron, by_systemd])
def test_child_has_the_deployed_environment_whoever_starts_the_agent_later(
    starter: Callable[[Installer], None],
    installer: Installer,  # noqa: F811
    manager: FakeManager,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Agent, runner and child die at once, as at a power cut; cron's or systemd's bare environment changes nothing."""
    monkeypatch.setenv("SITE_LICENSE", "7 floating")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 1 10.0.0.2 22")
    spec = messages.WorkerSpec(command=COMMAND.format(directory=tmp_path), shell=True, stop_grace_s=2.0)
    manager.assignments["w1"] = messages.Assignment("w1", spec)
    put(installer, manager, secret="s3cret")
    try:
        deployed = variables(tmp_path, 1)
        assert deployed["SITE_LICENSE"] == "7 floating" and "SSH_CONNECTION" not in deployed
        assert deployed["PYTHONUNBUFFERED"] == "1"
        directory = paths.worker_dir(installer.dir, "w1")
        state = paths.read_json(paths.state_file(directory))
        assert isinstance(state, dict)
        process.stop(installer.config()["runtime_dir"], installer.dir)
        os.kill(state["runner_pid"], signal.SIGKILL)
        for member in processes.members_left_behind(None, state["cookie"]):
            processes.send_signal(member, signal.SIGKILL)
        os.unlink(paths.base_env_file(directory))
        starter(installer)
        assert variables(tmp_path, 2) == deployed
    finally:
        removal.uninstall(installer)


def test_recorded_environment_leaves_out_the_virtual_environment_of_who_deploys() -> None:
    environ = {"PATH": "/home/a/pg/.venv/bin:/usr/bin", "VIRTUAL_ENV": "/home/a/pg/.venv", "LANG": "C.UTF-8"}
    assert recorded_environment(environ) == {"PATH": "/usr/bin", "LANG": "C.UTF-8"}
