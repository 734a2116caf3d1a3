"""Servers of tests come from a fork server: they start, end and fail as separate processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import forked
from tests.server_process import RunningServer
from tests.waiting import wait_until


def test_a_server_that_is_killed_says_how_it_ended_and_others_go_on(tmp_path: Path) -> None:
    first, second = (tmp_path / name for name in ("first", "second"))
    first.mkdir()
    second.mkdir()
    killed, other = RunningServer(first), RunningServer(second)
    assert killed.process.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        killed.process.wait(0.01)
    killed.process.kill()
    assert killed.process.wait(10) == -signal.SIGKILL == killed.process.poll()
    killed.process.kill()  # as often as one likes: the pid is not used again
    assert other.ask("GET", "/readyz").status == 200
    other.close()
    assert other.process.returncode == 0
    wait_until(lambda: not os.path.exists(f"/proc/{other.process.pid}"), 10, "nothing of it is left")


def test_what_keeps_a_server_from_starting_is_said(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"did not start: [\s\S]*web\.nonsense"):
        RunningServer(tmp_path, "web.nonsense=1")


def test_an_interpreter_that_would_start_otherwise_is_not_forked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert forked.can_run({**os.environ, "HOME": "/elsewhere"})
    assert not forked.can_run({**os.environ, "LD_PRELOAD": "/elsewhere/clock.so"})
    monkeypatch.setenv("PYTHONPATH", "/elsewhere")
    assert not forked.can_run(os.environ)


KILLED = """
import os, pathlib, signal, sys
from tests.server_process import RunningServer
print(RunningServer(pathlib.Path(sys.argv[1])).process.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow  # starts a fork server of its own
def test_servers_end_when_the_tests_are_killed(tmp_path: Path) -> None:
    died = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], cwd=forked.ROOT, capture_output=True, text=True, check=False
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    pid = int(died.stdout)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 10, "its server has ended with it")


ONE_OF_SEVERAL = """
import pathlib, sys
from tests.server_process import RunningServer
print(RunningServer(pathlib.Path(sys.argv[1])).process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.slow  # starts a fork server of its own
def test_processes_side_by_side_share_a_fork_server_and_what_is_one_s_ends_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_servers", {})
    monkeypatch.setenv(forked.SHARED, "")  # put back afterwards, as it was
    forked.share()
    clients = []
    try:
        for name in ("first", "second"):
            (tmp_path / name).mkdir()
            command = [sys.executable, "-c", ONE_OF_SEVERAL, str(tmp_path / name)]
            clients.append(subprocess.Popen(command, cwd=forked.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE))
        first, second = (int(one.stdout.readline()) for one in clients if one.stdout)
        assert len(forked.pids()) == 1
        clients[0].kill()
        wait_until(lambda: not os.path.exists(f"/proc/{first}"), 10, "its server has ended with it")
        assert os.path.exists(f"/proc/{second}")
    finally:
        for one in clients:
            one.kill()
            one.communicate()
        forked.unshare()
    wait_until(lambda: not os.path.exists(f"/proc/{second}"), 10, "nothing of them is left")


def test_a_command_in_the_words_of_a_checkout_is_what_invoke_would_do() -> None:
    wrong = forked.run(["nonsense-of-agents"], os.environ, program=forked.INVOKE)
    assert wrong.returncode == 1 and "a developer's task" in wrong.stderr
    shown = forked.run(["agents.list", "--help"], os.environ, program=forked.INVOKE)
    assert shown.returncode == 0 and "usage: invoke agents.list" in shown.stdout, shown.stdout + shown.stderr
