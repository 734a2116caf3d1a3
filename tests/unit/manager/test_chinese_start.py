"""Starts of the manager, the demo and a launcher that fail, in Chinese: no English sentence of ours is left."""

from __future__ import annotations

import os
import re
import shlex
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

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
    "text": "hello\n",
}
# Names of ProcGuard's own, options' examples and the operating system's words.
KEPT = re.compile(r"ip addr|PEM lib|The state|\[Errno[^）]*|ProcGuard \d\S*|\[[^\]\n]*\]")
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
    yield tmp_path


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield listening.getsockname()[1]


def printed(folder: Path, line: str) -> tuple[int, str]:
    """The exit code and the output of a program, run as in a terminal."""
    program, *words = (word.replace("{dir}", str(folder)) for word in shlex.split(line))
    ours = {"PROCGUARD_LANG": "zh", "HOME": str(folder), "PROCGUARD_HOME": str(folder / "home"), "COLUMNS": "200"}
    with (folder / "output").open("w+b") as output:
        process = forked.start(program, words, os.environ | ours, folder, output.fileno(), output.fileno())
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
