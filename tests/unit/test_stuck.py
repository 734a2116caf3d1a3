"""A hanging test, in separate pytest runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SWALLOWS = """
import pytest, signal, time
@pytest.mark.timeout(1)
def test_that_swallows_its_time_limit():
    while True:
        try:
            time.sleep(100)
        except BaseException:
            pass
"""
STOPPED = """
import os, signal
def test_that_stops_itself():
    os.kill(os.getpid(), signal.SIGSTOP)
"""
OTHERS = """
def test_that_fails():
    assert "wanted" == "found"
def test_that_passes():
    pass
"""


@pytest.mark.slow  # starts pytest
@pytest.mark.parametrize(
    ("stuck", "where"),
    [(SWALLOWS, " in test_that_swallows_its_time_limit"), (STOPPED, "(stopped)")],
    ids=["swallows its limit", "stopped"],
)
def test_a_test_that_nothing_ends_is_named_with_its_stack_and_the_others_run(
    tmp_path: Path, stuck: str, where: str
) -> None:
    (tmp_path / "test_stuck.py").write_text(stuck)
    (tmp_path / "test_others.py").write_text(OTHERS)
    (tmp_path / "conftest.py").write_text(
        "from tests import stuck\nstuck.GRACE_S, stuck.SILENT_S = 1.0, 12.0\n"
        "def pytest_configure(config):\n    config.pluginmanager.register(stuck.Watch(config))\n"
    )
    (tmp_path / "pytest.ini").write_text("[pytest]\ntimeout = 120\n")
    words = ["-n2", "--dist=loadfile", "--max-worker-restart=0", "-p", "no:cacheprovider", "-p", "no:schemathesis"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "crashed while running 'test_stuck.py::test_that_" in done.stdout
    assert where in done.stderr
    assert "FAILED test_others.py::test_that_fails (call): AssertionError" in done.stdout.split("short test summary")[0]
    assert re.search(r"\b[12] passed", done.stdout), "a stopped test may go on before its process is ended"
