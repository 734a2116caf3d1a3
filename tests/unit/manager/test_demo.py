"""The demo: three example workers with the real manager, deployer and installer, and nothing left afterwards."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from procguard import main
from procguard.errors import Conflict, UsageError
from procguard.manager import daemon, demo, demo_database
from remote_agent.system import processes
from tests import postgres_server
from tests.waiting import wait_until

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[3]


def start(home: Path, *more: str) -> subprocess.Popen[str]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("XDG_")}
    return subprocess.Popen(
        [sys.executable, "-m", "procguard.main", "--demo", "--port", "0", *more],
        env=environment | {"HOME": str(home), "PYTHONPATH": str(REPOSITORY)},
        cwd=home,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def processes_in(folder: Path) -> list[str]:
    """Everything that runs with `folder` in its command line or its environment's HOME."""
    found = []
    for pid in (name for name in os.listdir("/proc") if name.isdigit()):
        try:
            seen = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in seen:
            found.append(f"{pid} {seen[:200]!r}")
    return found


def get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.loads(answer.read())


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    for line in processes_in(tmp_path):
        found = processes.identity_of(int(line.split()[0]))
        if found is not None:
            processes.send_signal(found, signal.SIGKILL)


@pytest.fixture
def running(home: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = start(home)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.startswith("Ctrl-C stops"):
            break
    url = next((line.split()[-1] for line in lines if line.startswith("ProcGuard demo: ")), "")
    assert url, "".join(lines)
    try:
        yield process, url
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_ctrl_c_ends_everything_that_the_demo_started(home: Path, running: tuple[subprocess.Popen[str], str]) -> None:
    """Three workers run when the address is printed; after Ctrl-C no process and no file of it is left."""
    process, url = running
    workers = {worker["worker_id"]: worker for worker in get(f"{url}/api/remote-workers")["workers"]}
    assert {name: worker["state"] for name, worker in workers.items()} == dict.fromkeys(demo.WHAT_THEY_DO, "running")
    children = [processes.identity_of(worker["pid"]) for worker in workers.values()]
    assert not (home / ".procguard").exists()

    refused = start(home)  # a second one, while the first runs
    output, _ = refused.communicate(timeout=60)
    assert refused.returncode == 1 and "already running" in output

    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0
    assert not any(processes.is_alive(child) for child in children if child)
    wait_until(lambda: not processes_in(home), 5, f"no process left: {processes_in(home)}")
    assert [path for path in home.rglob("*") if path.name != ".cache"] == []


def end_by_the_next_demo(home: Path) -> None:
    """Start a demo and terminate it at once: it cleans up after the previous one."""
    again = start(home)
    try:
        assert again.stdout is not None
        assert "an earlier demo" in again.stdout.readline()
        again.send_signal(signal.SIGTERM)
        assert "stopped; nothing is left" in again.stdout.read()
        again.wait(60)
    finally:
        again.kill()
        again.wait()


def test_next_demo_ends_what_a_killed_one_left(home: Path, running: tuple[subprocess.Popen[str], str]) -> None:
    """kill -9 of the demo leaves manager, agent and workers; the next start removes them, even if it is ended at
    once."""
    process, url = running
    left = [processes.identity_of(worker["pid"]) for worker in get(f"{url}/api/remote-workers")["workers"]]
    process.kill()
    process.wait()
    end_by_the_next_demo(home)
    assert not any(processes.is_alive(child) for child in left if child)
    wait_until(lambda: not processes_in(home), 5, f"no process left: {processes_in(home)}")


def test_of_two_managers_one_takes_over_and_the_next_demo_ends_what_a_killed_one_left(home: Path) -> None:
    """The database, too, which as root runs as another user and outside of the demo's folder."""
    postgres_server.need()
    process = start(home, "--managers", "2")
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("Ctrl-C stops"):
            break
    try:
        leader, standby = (line.split() for line in said if line.startswith("  manager m"))
        before = {one["worker_id"]: one["pid"] for one in get(f"{leader[-1]}/api/remote-workers")["workers"]}
        assert set(before) == set(demo.WHAT_THEY_DO), "".join(said)
        os.kill(int(leader[-2]), signal.SIGKILL)
        wait_until(lambda: daemon.readiness(standby[-1]) == "ready", 20, "m2 leads")
        wait_until(lambda: daemon.readiness(leader[-1]) == "standby", 40, "m1 stands by")
        steady = {(name, before[name]) for name in ("train-tiny", "web-api")}

        def untouched() -> bool:
            workers = get(f"{standby[-1]}/api/remote-workers")["workers"]
            return steady <= {(one["worker_id"], one["pid"]) for one in workers}

        wait_until(untouched, 20, "m2 has heard of the workers, and they are the same processes")
        [place] = home.rglob("database.place")
        files = Path(place.read_text().strip())
        server = processes.identity_of(int((files / "data" / "postmaster.pid").read_text().split()[0]))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    end_by_the_next_demo(home)
    assert server is not None and not processes.is_alive(server) and not files.exists()
    wait_until(lambda: not processes_in(home), 20, f"no process left: {processes_in(home)}")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--managers", "2"], "--managers is an option of --demo"),
        (["--demo", "--managers", "9"], "--managers 9: expected 1 to 3"),
    ],
)
def test_a_number_of_managers_that_cannot_be_is_refused(words: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        main.run(words)


def test_without_a_database_server_nothing_is_started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo_database, "DEBIAN", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="none is installed"):
        demo.run(0, None, 2)


def test_taken_default_port_moves_on_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        monkeypatch.setattr(demo, "DEFAULT_PORT", port)
        chosen = demo.choose_port("127.0.0.1", None)
        assert chosen != port
        assert f"port {port} is taken; using {chosen}" in capfd.readouterr().out
        with pytest.raises(Conflict, match="is in use"):
            demo.choose_port("127.0.0.1", port)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--port", "99999"], "'99999' is not a port (0 to 65535; 0: any free port); its options: "),
        (["--port", "abc"], "'abc' is not a port"),
        (["--host", "nosuch.invalid"], "cannot listen on nosuch.invalid ("),
        (["--host", "192.0.2.1"], "cannot listen on 192.0.2.1 ("),
        (["--hots", "x"], "unrecognized arguments: --hots x"),
    ],
)
def test_a_wrong_address_or_port_is_one_line_and_starts_nothing(tmp_path: Path, words: list[str], said: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "procguard.main", "--demo", *words], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(REPOSITORY)}, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("procguard: ") and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
