"""The workflows: each step is valid bash, no checkout keeps a token, each job has a time limit."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[3]
WORKFLOWS = sorted((REPOSITORY / ".github" / "workflows").glob("*.yml"))
EXPRESSION = re.compile(r"\$\{\{.*?\}\}")


def steps(path: Path) -> list[tuple[str, dict[str, Any]]]:
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    return [(name, step) for name, job in jobs.items() for step in job["steps"]]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_each_step_is_a_script_that_bash_reads(path: Path) -> None:
    scripts = [(job, EXPRESSION.sub("x", step["run"])) for job, step in steps(path) if "run" in step]
    assert scripts
    for job, script in scripts:
        read = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
        assert read.returncode == 0, f"{job}: {read.stderr}"


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_checkout_leaves_no_token_behind_and_each_job_ends(path: Path) -> None:
    for job, step in steps(path):
        if str(step.get("uses", "")).startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False, job
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    assert [name for name, job in jobs.items() if "timeout-minutes" not in job] == []


def test_the_matrix_begins_with_the_least_python_that_the_package_takes() -> None:
    (found,) = [path for path in WORKFLOWS if path.stem == "ci"]
    matrices = re.findall(r"python: (\[.*\])", found.read_text(encoding="utf-8"))
    (least,) = re.findall(r'^requires-python = ">=(.*)"', (REPOSITORY / "pyproject.toml").read_text(), re.MULTILINE)
    assert matrices and {yaml.safe_load(one)[0] for one in matrices} == {least}
