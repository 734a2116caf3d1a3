"""`pytest --forks N`, in a pytest of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

CONFTEST = """
import os, pytest
from tests import side_by_side, stuck
def pytest_addoption(parser):
    side_by_side.add_option(parser)
def pytest_configure(config):
    watch = stuck.Watch(config)
    config.pluginmanager.register(watch)
    side_by_side.register(config, watch)
@pytest.fixture(scope="session")
def once():
    yield os.getpid()
    with open(os.environ["ENDED"], "a") as file:
        file.write(f"{os.getpid()} ")
"""
GOES_ON = """
import os, signal
def test_before(once): pass
def test_that_ends_its_process(once, tmp_path):
    os.kill(os.getpid(), signal.SIGKILL)
def test_after(once): pass
"""
OTHERS = """
import os, warnings, pytest
def test_that_fails(once):
    print("what it printed")
    os.write(2, b"what its child wrote")
    assert "wanted" == "found"
def test_that_warns(once, tmp_path):
    warnings.warn("an old name")
@pytest.mark.skip(reason="not here")
def test_that_is_skipped(): pass
"""
WAITS = """
import os, time
def test_that_waits_for_the_other_file():
    while not os.path.exists(os.environ["ENDED"] + ".go"): time.sleep(0.05)
"""
GOES = """
import os
def test_that_is_waited_for():
    open(os.environ["ENDED"] + ".go", "w").close()
"""


def run(folder: Path, *words: str, **files: str) -> subprocess.CompletedProcess[str]:
    for name, text in {"conftest": CONFTEST, **files}.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "-p", "no:schemathesis", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "ENDED": str(folder / "ended")}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow  # starts pytest
def test_every_test_has_its_outcome_also_where_one_ends_its_process(tmp_path: Path) -> None:
    done = run(tmp_path, "--forks=2", test_goes_on=GOES_ON, test_others=OTHERS)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 3 passed, 1 skipped, 1 warning in " in done.stdout
    ended = "a process crashed while running 'test_goes_on.py::test_that_ends_its_process': SIGKILL"
    assert ended in done.stdout
    for shown in (
        "E       AssertionError: assert",
        "\nwhat it printed\n",
        "\nwhat its child wrote\n",
        "UserWarning: an old name",
    ):
        assert done.stdout.count(shown) == 1, done.stdout
    assert "SKIPPED [1] test_others.py:" in done.stdout
    torn_down = (tmp_path / "ended").read_text().split()
    assert len(set(torn_down)) == len(torn_down) == 2  # by the process after the one that was ended, and by the other


@pytest.mark.slow
def test_files_run_at_the_same_time(tmp_path: Path) -> None:
    done = run(tmp_path, "--forks=2", test_a_waits=WAITS, test_b_goes=GOES)
    assert (done.returncode, "2 passed" in done.stdout) == (0, True), done.stdout + done.stderr


@pytest.mark.slow
def test_after_the_first_failure_the_others_are_ended_and_clean_up_if_so_asked(tmp_path: Path) -> None:
    waits = "import time\ndef test_long(once): time.sleep(1.5)\ndef test_left_out(): open('left_out', 'w')\n"
    done = run(tmp_path, "--forks=2", "-x", test_a_waits=waits, test_b_fails="def test_fails(): assert 0\n")
    assert done.returncode == 1 and "stopping after 1 failures" in done.stdout, done.stdout + done.stderr
    assert (tmp_path / "ended").read_text() and not (tmp_path / "left_out").exists()
    assert done.stderr == ""


@pytest.mark.slow
def test_a_fixture_of_the_session_that_cannot_be_torn_down_fails_the_run(tmp_path: Path) -> None:
    fails = (
        "import pytest\n@pytest.fixture(scope='session')\ndef bad():\n    yield\n    raise OSError('still in use')\n"
    )
    done = run(tmp_path, "--forks=2", test_one=f"{fails}def test_one(bad): pass\n")
    assert done.returncode == 1 and "still in use" in done.stdout + done.stderr
