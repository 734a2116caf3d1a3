"""ps, top, describe and wait: output, and the end of waiting."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from procguard.cli import app
from procguard.cli.program import process
from tests import fake_manager
from tests.fake_manager import FakeManager


def worker(name: str, state: str = "running", **more: Any) -> dict[str, Any]:
    return {"worker_id": name, "state": state, "desired": "running", "host": "gpu01", "restarts_total": 0, **more}


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeManager]:
    with fake_manager.running() as one:
        one.routes["GET /api/hosts"] = lambda body: (200, {"hosts": []})
        monkeypatch.setenv("PROCGUARD_MANAGER_URL", one.url)
        yield one


def show(manager: FakeManager, *views: list[dict[str, Any]]) -> None:
    """Each request for the workers gets the next of `views`, at the end the last one."""
    left = list(views)
    manager.routes["GET /api/remote-workers"] = lambda body: (
        200,
        {"workers": left.pop(0) if len(left) > 1 else left[0], "total": 1},
    )


def run(*words: str) -> int:
    return process.guarded(lambda: app.run(words))


def test_wait_ends_when_all_are_there(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    show(manager, [worker("a", "starting"), worker("b")], [worker("a"), worker("b")])
    assert run("wait", "*", "--timeout", "20") == 0
    assert capsys.readouterr().out == "2 running\n"


@pytest.mark.parametrize(
    ("state", "wanted", "desired"),
    [("failed", "running", "running"), ("exited", "running", "running"), ("stopped", "exited", "stopped")],
)
def test_wait_gives_up_where_no_waiting_helps(
    manager: FakeManager, capsys: pytest.CaptureFixture[str], state: str, wanted: str, desired: str
) -> None:
    """At once, although it could wait for a day."""
    show(manager, [worker("a", state, desired=desired), worker("b", wanted)])
    assert run("wait", "*", "--for", wanted, "--timeout", "86400") == 2
    assert f"1 of 2 not {wanted}: a ({state}); why: invoke explain a" in capsys.readouterr().err


def test_a_worker_about_to_start_is_waited_for(manager: FakeManager) -> None:
    show(manager, [worker("a", "stopped")], [worker("a")])
    assert run("wait", "a") == 0


def test_wait_says_when_the_time_is_over_and_when_nothing_matches(
    manager: FakeManager, capsys: pytest.CaptureFixture[str]
) -> None:
    show(manager, [worker("a", "backoff")])
    assert run("wait", "a", "--timeout", "0.1") == 2 and "a (backoff)" in capsys.readouterr().err
    show(manager, [])
    assert run("wait", "x*") == 1 and "no worker matches x*" in capsys.readouterr().err
    assert run("wait", "a", "--for", "happy") == 1 and "one of: running, exited" in capsys.readouterr().err


def test_top_sorts_by_what_is_used(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    used = {"idle": 1.0, "busy": 380.0, "half": 50.0}
    show(manager, [worker(name, usage={"cpu_percent": cpu, "rss_bytes": 1}) for name, cpu in used.items()])
    assert run("top", "--count", "2", "--every", "0.2") == 0
    words = capsys.readouterr().out.split()
    assert [word for word in words if word in used] == ["busy", "half", "idle"] * 2
    assert run("top", "--sort", "beauty") == 1


def test_describe_shows_state_reasons_and_events(manager: FakeManager, capsys: pytest.CaptureFixture[str]) -> None:
    last = {"attempt": 3, "code": 1, "reason": "exit code 1 after 2 s", "at": 1_796_043_157.7, "duration_s": 2.0}
    manager.routes["GET /api/remote-workers/w1"] = lambda body: (200, worker("w1", "failed", last_exit=last))
    said = {"sentences": [{"text": "because"}], "next_steps": ["Start it: invoke start w1"]}
    manager.routes["GET /api/workers/w1/explain"] = lambda body: (200, said)
    event = {"seq": 1, "at": "2026-01-01T00:00:00Z", "kind": "worker_failed", "worker_id": "w1", "reason": "it failed"}
    manager.routes["GET /api/events"] = lambda body: (200, {"events": [event]})
    declared = {"tty": {"rows": 50, "columns": 132}, "max_run_s": 7200.0}
    manager.routes["GET /api/workers/w1/spec"] = lambda body: (200, {"declared": declared})
    assert run("describe", "w1") == 0
    out = capsys.readouterr().out
    for words in (
        "State:       failed",
        "exit code 1 after 2 s",
        "  because",
        "→ Start it: invoke start w1",
        "it failed",
        "50 lines of 132 characters",
        "2 h",
    ):
        assert words in out
    assert run("describe", "w1", "-o", "yaml") == 0 and "worker_id: w1" in capsys.readouterr().out
