"""The agent's side on Debian's pypy3, a Python 3.9 without pytest.

A real agent and a real runner under that interpreter, against the fake manager.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from remote_agent.protocol import messages
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.unit.remote_agent.agent import test_agent
from tests.waiting import wait_until

PYPY = shutil.which("pypy3")
REPOSITORY = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PYPY is None and os.environ.get("CI") != "true", reason="needs pypy3"),
]


def processes_naming(text: str) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if text.encode() in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
            except OSError:
                continue
    return found


def test_every_module_of_the_agent_can_be_imported(tmp_path: Path) -> None:
    assert PYPY is not None, "needs pypy3"
    paths = sorted((REPOSITORY / "remote_agent").rglob("*.py"))
    names = [".".join(path.relative_to(REPOSITORY).with_suffix("").parts) for path in paths if path.stem != "__main__"]
    code = "import importlib, sys\nfor name in sys.argv[1:]: importlib.import_module(name)"
    done = subprocess.run(
        [PYPY, "-S", "-c", code, *names], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def test_agent_and_runner_start_watch_restart_and_stop_a_child(pypy_host: Host, manager: FakeManager) -> None:
    """kill -9 of the child: a second attempt, counted; kill -9 of the agent: the next one adopts the same child."""
    manager.assign("job", "sleep 1000", restart=messages.RestartPolicy(start_secs=0.1, max_attempts=3))
    pypy_host.start()
    first = running(manager, "job")
    os.kill(first, signal.SIGKILL)
    began = time.monotonic()
    wait_until(
        lambda: manager.report("job").get("attempt") == 2 and manager.state("job") == "running", 20, "the restart"
    )
    print(f"\npypy: restarted and reported after {time.monotonic() - began:.2f} s")
    report = manager.report("job")
    assert report["restarts"] == 1 and report["last_exit"]["signal"] == 9

    second = report["pid"]
    pypy_host.kill_agent()
    assert second != first and alive(second)
    manager.beats.clear()
    pypy_host.start()
    assert running(manager, "job") == second and manager.report("job")["attempt"] == 2

    manager.set_desired("job", "stopped")
    wait_until(lambda: manager.state("job") == "stopped", 20, "stopped")
    assert not alive(second)
    assert {event["after"] for event in manager.events} >= {"starting", "running", "stopped"}
    wait_until(lambda: not processes_naming(f"--worker-dir\0{pypy_host.directory}"), 10, "the runner's end")


# What test_agent says of CPython holds here word for word: agent and runners are PyPy's, the test itself is not.
BEHAVIOURS = [
    test_agent.test_killed_agent_touches_no_child_and_no_line_is_lost_or_doubled,
    test_agent.test_killed_runner_gives_a_new_attempt_after_its_tree_is_swept,
    test_agent.test_stop_and_start_converge_and_settled_stays_settled,
]


@pytest.fixture
def manager() -> Iterator[FakeManager]:
    fake = FakeManager()
    fake.know("h1")
    yield fake
    fake.close()


@pytest.fixture
def pypy_host(tmp_path: Path, manager: FakeManager) -> Iterator[Host]:
    assert PYPY is not None, "needs pypy3"
    one = Host(tmp_path, manager, python=PYPY)
    yield one
    one.end()


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda one: one.__name__[5:])
def test_on_pypy(behaviour: Callable[[Host, FakeManager], None], pypy_host: Host, manager: FakeManager) -> None:
    """Log bytes exactly once, adoption, sweeping, convergence: the same guarantees as on CPython."""
    behaviour(pypy_host, manager)


def test_logs_of_several_attempts_travel_whole(pypy_host: Host, manager: FakeManager) -> None:
    """Binary bytes without a final newline, of each attempt, across a kill -9 of the agent."""
    script = "printf 'attempt %s \\377\\000 ' $PROCGUARD_ATTEMPT; head -c 300000 /dev/zero; printf end; sleep 600"
    manager.assign("w1", ["/bin/sh", "-c", script], stop_grace_s=1)
    pypy_host.start()

    def log_is_whole(attempt: int) -> bool:
        whole = b"attempt %d \xff\0 " % attempt + bytes(300_000) + b"end"
        return manager.log("w1", f"{attempt}.out") == whole and manager.report("w1").get("attempt") == attempt

    wait_until(lambda: log_is_whole(1), 30, "the log of attempt 1")
    pypy_host.kill_agent()
    pypy_host.start()
    os.kill(int(manager.report("w1")["pid"]), signal.SIGKILL)
    wait_until(lambda: log_is_whole(2), 30, "the log of attempt 2")
    assert not manager.gaps
