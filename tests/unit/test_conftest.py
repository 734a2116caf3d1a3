"""What every test run does at its end, and what it measures."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import conftest, costs, forked


def test_of_two_runs_side_by_side_the_last_removes_the_control_groups_that_are_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group of a job that waits for its next start is empty, too, and belongs to the other run."""
    groups = tmp_path / "groups"
    groups.mkdir()
    monkeypatch.setattr(conftest, "control_groups", lambda: [str(path) for path in groups.iterdir()])
    monkeypatch.setattr(forked, "close", lambda: None)  # this run goes on
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (groups / "earlier").mkdir()
    sessions: list[Any] = [SimpleNamespace(config=SimpleNamespace(stash=pytest.Stash())) for _ in range(2)]
    for session in sessions:
        conftest.pytest_sessionstart(session)
    (groups / "ours").mkdir()

    conftest.pytest_sessionfinish(sessions[0])
    assert {path.name for path in groups.iterdir()} == {"earlier", "ours"}
    conftest.pytest_sessionfinish(sessions[1])
    assert {path.name for path in groups.iterdir()} == {"earlier"}


def test_costs_are_measured_by_the_real_clock_where_a_test_replaces_it(monkeypatch: pytest.MonkeyPatch) -> None:
    began = costs.now()
    monkeypatch.setattr(time, "monotonic", lambda: 0.0)
    assert (costs.now() - began).wall >= 0.0
