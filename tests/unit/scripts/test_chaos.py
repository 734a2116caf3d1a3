"""The framework of the chaos suite: each scenario of the document has a test and vice versa; no figure is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY / "scripts"))
import chaos  # noqa: E402

TABLE = """
| # | scenario | passes when | short form | long form | measured | test |
|---|---|---|---|---|---|---|
| 7 | doors | 100 % refused | all routes | – | 100 % | [a](../tests/a.py), [b](../tests/b.py) |
"""
TESTS = """
import pytest
@pytest.mark.chaos(7)
def test_measures(chaos_report):
    for _ in chaos_report.rounds(short=2, long=9):
        pass
    chaos_report(measured=f"5 of 5, {'long' if chaos_report.long else 'short'}")
@pytest.mark.chaos(8)
def test_proves_nothing(chaos_report):
    pass
@pytest.mark.chaos(9)
def test_fails(chaos_report):
    assert 1 == 2
"""


def marked() -> dict[int, set[str]]:
    """Scenario number -> the files with tests marked for it."""
    found: dict[int, set[str]] = {}
    for path in (REPOSITORY / "tests").rglob("test_*.py"):
        if path != Path(__file__):
            for number in re.findall(r"\bmark\.chaos\((\d+)\)", path.read_text(encoding="utf-8")):
                found.setdefault(int(number), set()).add(str(path.relative_to(REPOSITORY)))
    return found


def test_every_scenario_of_the_document_has_its_test_and_every_test_its_row() -> None:
    rows = chaos.scenarios((REPOSITORY / "docs/reliability.md").read_text(encoding="utf-8"))
    assert {number: set(row.tests) for number, row in rows.items()} == marked()
    assert 2 in rows


def test_a_row_is_read_with_its_pass_figure_and_its_tests() -> None:
    assert chaos.scenarios(TABLE) == {7: chaos.Scenario(7, "doors", "100 % refused", ("tests/a.py", "tests/b.py"))}


@pytest.fixture
def run(tmp_path: Path) -> tuple[subprocess.CompletedProcess[str], dict[int, dict[str, object]]]:
    """A pytest of its own on TESTS, with the options that `invoke chaos` uses."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests/test_x.py").write_text(TESTS)
    (tmp_path / "tests/conftest.py").write_text((REPOSITORY / "tests/conftest.py").read_text())
    (tmp_path / "tests/__init__.py").write_text("")
    for name in ("chaos.py", "costs.py", "forked.py", "sizes.py", "stuck.py"):
        (tmp_path / "tests" / name).write_text((REPOSITORY / "tests" / name).read_text())
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p no:cacheprovider\nmarkers =\n  chaos(number): x\n")
    (tmp_path / "out").mkdir()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "tests", "--chaos-only=7,8,9", "--chaos-long", f"--chaos-out={tmp_path}/out"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{tmp_path}:{REPOSITORY}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    results = [json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()]
    return done, {one["scenario"]: one for one in results}


@pytest.mark.slow
def test_a_scenario_reports_what_it_measured_and_fails_where_it_measured_nothing(
    run: tuple[subprocess.CompletedProcess[str], dict[int, dict[str, object]]],
) -> None:
    done, results = run
    assert done.returncode == 1, done.stdout + done.stderr
    assert "2 failed, 1 passed" in done.stdout
    assert (results[7]["outcome"], results[7]["rounds"], results[7]["measured"]) == ("passed", 9, "5 of 5, long")
    assert results[8]["outcome"] == "failed" and "reports what it measured" in str(results[8]["trouble"])
    assert results[9]["outcome"] == "failed"
    assert "round 9 of 9" in done.stdout  # progress for who waits
    shown = chaos.table(chaos.scenarios(TABLE), [7], [results[7]])
    assert re.search(r"7  ok +doors  \(9 rounds", shown) and "5 of 5, long" in shown and "100 % refused" in shown
