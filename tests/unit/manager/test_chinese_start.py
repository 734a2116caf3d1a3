"""Starts of the manager, the demo and a launcher, in Chinese: no English sentence of ProcGuard remains."""

from __future__ import annotations

import fcntl
import os
import re
import shlex
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.console import language
from procguard.fleet.store.database import APPLICATION_ID
from procguard.runtime import interpreter
from tests import forked
from tests.unit.cli.test_chinese_mistakes import HAN, english_in

MANAGER = "procguard.main"
LAUNCHER = "procguard.worker_launcher"
STATE = "--set state.state_file={dir}/s/fleet.yaml --set logging.file={dir}/s/log --host 127.0.0.1"
WORKER = "--worker-id w1 --manager-url http://127.0.0.1:1 --command 'sleep 1'"
FILES = {
    "unknown.yaml": "webb: 1\n",
    "broken.yaml": "web: [\n",
    "list.yaml": "- a\n",
    "s2/fleet.yaml": "x: 1\n",
    "s3/fleet.db": "garbage\n",
    "s5/fleet.yaml": "format: 99\n",
    "s7/manager.lock": '{"pid": 7, "start": 1, "boot_id": "b", "url": "http://127.0.0.1:5999"}',
    "text": "hello\n",
}
# Names of ProcGuard's own, options' examples and the operating system's words.
KEPT = re.compile(r"ip addr|PEM lib|The state|\[Errno[^）]*|ProcGuard \d\S*|pip install|\[[^\]\n]*\]")
STARTS = f"""
{MANAGER} --help
{MANAGER} --prot 3
{MANAGER} --port 99999
{MANAGER} --managers 2
{MANAGER} --demo --managers 9
{MANAGER} --demo --host 192.0.2.1
{MANAGER} --demo --port {{taken}}
{MANAGER} --config /nowhere.yaml
{MANAGER} --config
{MANAGER} --config {{dir}}
{MANAGER} --config unknown.yaml
{MANAGER} --config broken.yaml
{MANAGER} --config list.yaml
{MANAGER} --status --stop
{MANAGER} --set webb.port=3
{MANAGER} --set web.port
{MANAGER} --set web.port=abc
{MANAGER} --set web=3
{MANAGER} --set web.tls.mode=files
{MANAGER} --set web.tls.mode=sometimes
{MANAGER} --set logs.archive=s3://
{MANAGER} --set logs.archive=foo
{MANAGER} --set state.database=foo
{MANAGER} --set state.state_file=x.json
{MANAGER} --set notifications=3
{MANAGER} {STATE} --status
{MANAGER} {STATE} --stop
{MANAGER} {STATE} --port {{taken}}
{MANAGER} {STATE} --port {{taken}} --daemon
{MANAGER} {STATE} --host 192.0.2.1 --port 5992
{MANAGER} {STATE} --host nohost.invalid --port 5992
{MANAGER} {STATE} --set web.tls.mode=files --set web.tls.cert=/nowhere.pem --set web.tls.key=/nowhere.key
{MANAGER} {STATE} --set web.tls.mode=files --set web.tls.cert={{dir}}/text --set web.tls.key={{dir}}/text
{MANAGER} {STATE} --set state.database=postgresql://nohost.invalid/x
{MANAGER} {STATE} --set state.database=postgresql://127.0.0.1:1/x
{MANAGER} --set state.state_file=/proc/x/fleet.yaml
{MANAGER} --set state.state_file=/dev/null/fleet.yaml
{MANAGER} --set state.state_file={{dir}}/s2/fleet.yaml --set logging.file={{dir}}/s/log --port 0
{MANAGER} --set state.state_file={{dir}}/s3/fleet.db --set logging.file={{dir}}/s/log --port 0
{MANAGER} --set state.state_file={{dir}}/s4/fleet.yaml --set logging.file=/proc/x/log
{MANAGER} --set state.state_file={{dir}}/s5/fleet.yaml --set logging.file={{dir}}/s/log --port 0
{MANAGER} --set state.state_file={{dir}}/s6/fleet.yaml --set logging.file={{dir}}/s/log --port 0
{MANAGER} --set state.state_file={{dir}}/s7/fleet.yaml --set logging.file={{dir}}/s/log --port 0
{MANAGER} --set state.state_file={{dir}}/s7/fleet.yaml --set logging.file={{dir}}/s/log --port 0 --daemon
{LAUNCHER} --help
{LAUNCHER}
{LAUNCHER} --nonsense
{LAUNCHER} --worker-id
{LAUNCHER} --worker-id 'a b' --manager-url foo --command "sleep '"
{LAUNCHER} {WORKER} --env x
{LAUNCHER} {WORKER} --on-partition z
{LAUNCHER} {WORKER} --ca /nowhere
{LAUNCHER} {WORKER} --ca sha256:12
""".strip().splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    (tmp_path / "s6").mkdir()
    with sqlite3.connect(tmp_path / "s6" / "fleet.db") as newer:
        newer.executescript(f"PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = 99")
    newer.close()
    with (tmp_path / "s7" / "manager.lock").open() as lock:  # the lock of another manager
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def environment(folder: Path) -> dict[str, str]:
    ours = {"PROCGUARD_LANG": "zh", "HOME": str(folder), "PROCGUARD_HOME": str(folder / "home"), "COLUMNS": "200"}
    return os.environ | ours


def printed(folder: Path, line: str) -> tuple[int, str]:
    """The exit code and the output of a program, run as in a terminal."""
    program, *words = (word.replace("{dir}", str(folder)) for word in shlex.split(line))
    with (folder / "output").open("w+b") as output:
        process = forked.start(program, words, environment(folder), folder, output.fileno(), output.fileno())
        try:
            code = process.wait(60)
        finally:
            process.kill()
        output.seek(0)
        return code, output.read().decode()


PARTS = 4  # each has a test's time limit of its own


@pytest.mark.parametrize("part", range(PARTS))
def test_a_start_that_fails_says_so_in_chinese_alone(folder: Path, taken: int, part: int) -> None:
    failed = {}
    for line in STARTS[part::PARTS]:
        code, text = printed(folder, line.replace("{taken}", str(taken)))
        english = english_in(KEPT.sub("", text))
        if "Traceback" in text or not HAN.search(text) or english or (code == 0 and "--help" not in line):
            failed[line] = (code, text, english)
    assert failed == {}


@pytest.mark.parametrize(
    ("package", "module", "options"),
    [
        ("psycopg", "psycopg", "--set state.database=postgresql://127.0.0.1:1/x"),
        ("boto3", "boto3", "--set logs.archive=s3://bucket/x"),
        ("pyzmq", "zmq", "--set communication.adapter_type=zmq"),
    ],
)
def test_a_package_that_is_not_installed_is_named_in_chinese(
    folder: Path, package: str, module: str, options: str
) -> None:
    code, text = printed(folder, f"tests.unit.manager.without_module {module} {STATE} --port 0 {options}")
    assert code == 1 and package in text and HAN.search(text)
    assert english_in(KEPT.sub("", text).replace("No module named zmq", "")) == []


def test_too_few_file_descriptors_are_reported_in_chinese(folder: Path) -> None:
    code, text = interpreted(folder, f"{STATE} --port 0", f"PYTHONPATH={forked.ROOT}", "prlimit", "--nofile=12")
    assert code == 1 and HAN.search(text)
    assert english_in(KEPT.sub("", text)) == []


def interpreted(folder: Path, line: str, *prefix: str) -> tuple[int, str]:
    """The exit code and the output of a manager in a new interpreter, started by `env` with `prefix`."""
    words = shlex.split(line.replace("{dir}", str(folder)))
    command = ["env", *prefix, sys.executable, "-P", "-m", MANAGER, *words]
    with (folder / "output").open("w+b") as output:
        ended = subprocess.run(command, check=False, env=environment(folder), stdout=output, stderr=output, timeout=60)
        output.seek(0)
        return ended.returncode, output.read().decode()


def test_a_start_that_succeeds_is_announced_in_chinese_alone(folder: Path) -> None:
    words = shlex.split(f"{STATE} --port 0 --set web.trust_local=false".replace("{dir}", str(folder)))
    path = folder / "output"
    with path.open("wb") as output:
        process = forked.start(MANAGER, words, environment(folder), folder, output.fileno(), output.fileno())
        try:
            deadline = time.monotonic() + 60
            while "token" not in path.read_text() and time.monotonic() < deadline:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()
    text = path.read_text()
    assert HAN.search(text) and english_in(KEPT.sub("", text)) == []


def test_each_known_vulnerability_of_python_is_explained_in_chinese(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCGUARD_LANG", "zh")
    holes = tuple((name, lambda: True, what) for name, _, what in interpreter.HOLES)
    monkeypatch.setattr(interpreter, "HOLES", holes)
    notes = [language.shown(note) for note in interpreter.known_holes()]
    assert notes and [english_in(note) for note in notes if english_in(note)] == []
