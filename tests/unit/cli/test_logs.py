"""The logs of several workers are merged by time, each line with its worker's name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from procguard.cli import app
from procguard.cli.program import process
from tests import fake_manager
from tests.fake_manager import FakeManager


def lines(*found: tuple[float, str]) -> Any:
    return lambda body: (200, {"lines": [{"at": at, "text": text} for at, text in found]})


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        views = [{"worker_id": "train-1"}, {"worker_id": "train-10"}]
        one.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": views, "total": 2})
        one.routes["GET /api/remote-workers/train-1/logs"] = lines((1.0, "one"), (3.0, "three"))
        one.routes["GET /api/remote-workers/train-10/logs"] = lines((2.0, "two"), (3.0, "drei"))
        one.routes["GET /api/remote-workers/api/logs"] = lines((0.5, "first"))
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", one.url)
        yield one


def run(*words: str) -> int:
    return process.guarded(lambda: app.run(words))


def test_lines_of_several_come_in_the_order_of_their_times(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("logs", "train-*", "api", "--tail", "5") == 0
    assert capsys.readouterr().out.splitlines() == [
        "api      | first",
        "train-1  | one",
        "train-10 | two",
        "train-1  | three",
        "train-10 | drei",
    ]
    assert all("tail=5" in path for _, path, *_ in manager.asked("GET", "/api/remote-workers/train-1/logs"))


def test_a_worker_that_does_not_exist_is_reported(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    manager.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": [], "total": 0})
    assert run("logs", "nothing-*") == 1
    assert "no worker matches nothing-*" in capsys.readouterr().err


def test_more_logs_than_can_be_followed_are_refused(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    views = [{"worker_id": f"w{number}"} for number in range(101)]
    manager.routes["GET /api/remote-workers"] = lambda body: (200, {"workers": views, "total": 101})
    assert run("logs", "w*", "-f") == 1
    assert "101 logs at once: at most 100" in capsys.readouterr().err
