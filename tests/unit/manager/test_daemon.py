"""One manager per state, and --daemon, --status, --stop by the identity of its process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.config import schema
from procguard.errors import Conflict
from procguard.manager import daemon
from remote_agent.system import processes
from tests.waiting import wait_until

MODULE = "tests.unit.manager_stand_in"


def settings_in(folder: Path) -> tuple[schema.Config, list[str]]:
    argv = [f"state.state_file={folder}/state/fleet.yaml", f"logging.file={folder}/manager.log"]
    return schema.load(None, argv), argv


@pytest.fixture
def background(tmp_path: Path) -> Iterator[schema.Config]:
    settings, argv = settings_in(tmp_path)
    assert daemon.start(["--daemon", *argv], settings, MODULE) == 0
    try:
        yield settings
    finally:
        running = daemon.find(settings)
        if running is not None:
            processes.send_signal(running.identity, signal.SIGKILL)


def test_daemon_is_ready_and_named_when_start_returns(
    background: schema.Config, capfd: pytest.CaptureFixture[str]
) -> None:
    """start returns 0 only once /readyz responds; status then shows the address and exits with 0."""
    running = daemon.find(background)
    assert running is not None and daemon.is_ready(running.url)
    assert Path(background.state_directory, "manager.pid").read_text() == f"{running.pid}\n"
    assert daemon.status(background) == 0
    printed = capfd.readouterr().out
    assert running.url in printed and f"pid {running.pid}" in printed


def test_daemon_has_a_session_of_its_own(background: schema.Config) -> None:
    """Closing the terminal must not reach it."""
    running = daemon.find(background)
    assert running is not None
    assert os.getsid(running.pid) == running.pid != os.getsid(0)


def test_second_manager_on_the_same_state_is_refused_naming_the_first(background: schema.Config) -> None:
    running = daemon.find(background)
    assert running is not None
    with pytest.raises(Conflict, match=f"pid {running.pid}.*--stop") as refused:
        daemon.start([], background, MODULE)
    assert refused.value.code == "already_running"
    with pytest.raises(Conflict, match="already running"):
        daemon.lock_state(background)
    assert daemon.find(background) == running


def test_stop_waits_until_the_manager_is_gone(background: schema.Config, capfd: pytest.CaptureFixture[str]) -> None:
    running = daemon.find(background)
    assert running is not None
    assert daemon.stop(background) == 0
    assert not processes.is_alive(running.identity)
    assert not Path(background.state_directory, "manager.pid").exists()
    assert daemon.status(background) == 3
    assert daemon.stop(background) == 3  # what was asked did not come about
    assert "nothing was stopped" in capfd.readouterr().err


def test_manager_that_ends_at_once_is_reported_with_what_it_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    settings, argv = settings_in(tmp_path)
    assert daemon.start([*argv, "--crash"], settings, MODULE) == 1
    assert "the disk is on holiday" in capfd.readouterr().err
    assert daemon.find(settings) is None


def test_lock_of_a_killed_manager_is_free_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The lock file stays behind after SIGKILL; it holds nothing."""
    settings, argv = settings_in(tmp_path)
    assert daemon.start(argv, settings, MODULE) == 0
    running = daemon.find(settings)
    assert running is not None
    assert f"manager running at {running.url} (pid {running.pid})" in capfd.readouterr().out
    assert processes.send_signal(running.identity, signal.SIGKILL)
    wait_until(lambda: not processes.is_alive(running.identity), 5, "the killed manager is gone")
    assert daemon.find(settings) is None
    daemon.lock_state(settings).release()


def test_stop_never_signals_a_stranger_with_the_managers_old_pid(tmp_path: Path) -> None:
    """The lock is held, but its text names a process whose start time does not match: a reused pid."""
    settings, _ = settings_in(tmp_path)
    lock = daemon.lock_state(settings)
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        path = Path(settings.state_directory, "manager.lock")
        record = json.loads(path.read_text())
        path.write_text(json.dumps({**record, "pid": stranger.pid}))
        with pytest.raises(Exception, match="cannot be signalled"):
            daemon.stop(settings)
        time.sleep(0.05)  # a signal sent would have arrived
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()
        lock.release()


def test_lock_is_not_inherited_by_programs_the_manager_starts(tmp_path: Path) -> None:
    """Otherwise an SSH helper that outlives the manager would block the next manager."""
    settings, _ = settings_in(tmp_path)
    lock = daemon.lock_state(settings)
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
    try:
        lock.release()
        daemon.lock_state(settings).release()
        assert child.poll() is None, "the program that might have it still runs"
    finally:
        child.kill()
        child.wait()


@pytest.mark.parametrize(
    ("host", "expected"),
    [("0.0.0.0", "http://localhost:5055"), ("127.0.0.2", "http://127.0.0.2:5055"), ("::1", "http://[::1]:5055")],
)
def test_address_is_one_that_this_machine_can_open(host: str, expected: str) -> None:
    assert daemon.address(schema.load(None, host=host, port=5055)) == expected
