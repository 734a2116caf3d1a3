"""Under CI=true a test that needs a program or root fails instead of skipping (tests/conftest.py)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PARTS = Path(__file__).resolve().parents[2] / "conftest.py"
TESTS = """
import pytest

@pytest.mark.skipif(True, reason="needs curl")
def test_marked(): assert True

def test_inside(): pytest.skip("no rsync here")

def test_lawful(): pytest.skip("this kernel does not account I/O by process")

@pytest.mark.long
def test_long(): assert True
"""


@pytest.mark.parametrize(("ci", "outcome"), [("true", "1 failed, 2 skipped, 1 error"), ("", "4 skipped")])
def test_a_skip_for_a_missing_program_is_a_failure_in_ci(tmp_path: Path, ci: str, outcome: str) -> None:
    (tmp_path / "conftest.py").write_text(f"from tests.conftest import *  # noqa\n# the rules of {PARTS.name}\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    long: x\n    chaos(number): x\n")
    (tmp_path / "test_made.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(PARTS.parents[1]), "CI": ci, "HOME": str(tmp_path)}
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"  # pytest alone starts in half the time
    done = subprocess.run(
        command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60
    )

    assert outcome in done.stdout.splitlines()[-1], done.stdout + done.stderr
    assert ("was skipped under CI=true: needs curl" in done.stdout) == (ci == "true")
