"""start, stop, restart, kill of many: preview, confirmation of large effects, results by cause, exit codes."""

from __future__ import annotations

import json
import os
import pty
from collections.abc import Iterator
from typing import Any

import pytest

from tests import fake_manager, forked
from tests.fake_manager import FakeManager
from tests.unit.cli.test_cli import run

CAUSE = {"result": "failed", "cause": None, "message": "exit code 3", "count": 2, "examples": ["w7", "w9"]}


class Fleet:
    """A manager that answers operations: its requests and their results."""

    def __init__(self, manager: FakeManager) -> None:
        self.manager = manager
        self.matching = 3
        self.acts = 3
        self.end: dict[str, Any] = {"status": "done", "counts": {"done": 3}, "causes": []}
        self.checks = 0
        manager.routes["POST /api/operations/preview"] = self._preview
        manager.routes["POST /api/operations"] = lambda body: (202, self._view())
        manager.routes["GET /api/operations/o-1"] = self._check
        manager.routes["POST /api/operations/o-1/retry"] = lambda body: (202, self._view())
        manager.routes["POST /api/operations/o-1/cancel"] = lambda body: (
            200,
            {**self._view(), "status": "cancelling", "counts": {"cancelled": 2}},
        )
        manager.routes["GET /api/operations"] = lambda body: (200, {"operations": [self._view()]})
        manager.routes["POST /api/workers/w1/command"] = lambda body: (202, {"status": "accepted"})

    def _preview(self, body: dict[str, Any]) -> tuple[int, Any]:
        skipped = {"cause": "already_stopped", "message": "is already stopped", "action": "skip", "count": 1}
        return 200, {
            "token": "p-1",
            "command": body["command"],
            "selector": body["selector"],
            "matching": self.matching,
            "acts": self.acts,
            "pending": 0,
            "skipped": self.matching - self.acts,
            "by_state": [{"state": "running", "matching": self.matching, "acts": self.acts}],
            "by_host": [{"host": f"gpu{number}", "matching": 1, "acts": 1} for number in range(8)],
            "hosts": 30,
            "causes": [{**skipped, "examples": ["w3"]}] if self.matching > self.acts else [],
        }

    def _view(self, **more: Any) -> dict[str, Any]:
        view = {
            "operation_id": "o-1",
            "command": "stop",
            "selector": "w*",
            "actor": "root",
            "reason": "",
            "status": "running",
            "created_at": "2026-01-01T00:00:00.000Z",
            "total": 3,
            "counts": {"waiting": 3},
            "causes": [],
            "joined": 0,
            "note": "",
            "items": [{"worker_id": "w7", "result": "failed", "message": "exit code 3"}],
            "items_total": 1,
        }
        return {**view, **more}

    def _check(self, _body: Any) -> tuple[int, Any]:
        self.checks += 1
        return 200, self._view(**(self.end if self.checks > 1 else {}))

    def begun(self) -> list[dict[str, Any]]:
        return [body for _, path, body, _ in self.manager.asked("POST", "/") if path == "/api/operations"]


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with fake_manager.running() as manager:
        yield Fleet(manager)


def test_one_id_is_one_command_without_a_preview(fleet: Fleet) -> None:
    done = run(fleet.manager.url, "stop", "w1", "--reason", "disk change")
    assert (done.returncode, done.stdout) == (0, "w1: stop accepted\n"), done.stderr
    assert [(one[1], one[2]) for one in fleet.manager.requests] == [
        ("/api/workers/w1/command", {"command": "stop", "reason": "disk change"})
    ]


def test_several_are_shown_first_and_followed_to_the_end(fleet: Fleet) -> None:
    fleet.matching = 4
    words = ("w*,!w9", "--concurrency", "2", "--max-failures", "10%", "--reason", "disk change")
    done = run(fleet.manager.url, "stop", *words)
    assert done.returncode == 0, done.stderr
    assert "stop 3 of 4 workers that match w*,!w9" in done.stdout
    assert "gpu5 1 · 24 more" in done.stdout and "left out 1: is already stopped (w3)" in done.stdout
    assert "✓ done o-1 stop: ✓ 3 done" in done.stdout
    assert fleet.begun() == [{"token": "p-1", "concurrency": 2, "max_failures": "10%", "reason": "disk change"}]


def test_failures_are_reported_by_cause_with_exit_code_2(fleet: Fleet) -> None:
    fleet.end = {"status": "done", "counts": {"done": 1, "failed": 2}, "causes": [CAUSE]}
    done = run(fleet.manager.url, "restart", "w*")
    assert done.returncode == 2
    assert "✖ 2 failed: exit code 3 (w7, w9)" in done.stdout
    assert "2 of 3 failed" in done.stderr and "invoke operations.retry o-1" in done.stderr


@pytest.mark.parametrize("status", ["halted", "cancelled", "interrupted"])
def test_an_operation_that_did_not_reach_its_end_is_exit_code_2(fleet: Fleet, status: str) -> None:
    fleet.end = {"status": status, "counts": {"done": 1, "cancelled": 2}}
    done = run(fleet.manager.url, "stop", "w*")
    assert done.returncode == 2 and f"{status} before it finished" in done.stderr


def test_nobody_who_matches_is_exit_code_1(fleet: Fleet) -> None:
    fleet.matching = fleet.acts = 0
    done = run(fleet.manager.url, "stop", "host=nowhere")
    assert done.returncode == 1 and "no worker matches host=nowhere" in done.stderr and fleet.begun() == []


def test_nothing_to_do_begins_nothing(fleet: Fleet) -> None:
    fleet.acts = 0
    done = run(fleet.manager.url, "stop", "w*")
    assert done.returncode == 0 and done.stdout.endswith("nothing to do\n") and fleet.begun() == []


@pytest.mark.parametrize("verb", ["stop", "kill"])
def test_many_are_not_ended_where_nobody_can_be_asked(fleet: Fleet, verb: str) -> None:
    fleet.matching = fleet.acts = 21
    done = run(fleet.manager.url, verb, "group=a,state=running")
    assert done.returncode == 1 and fleet.begun() == []
    assert f"invoke {verb} group=a,state=running --yes" in done.stderr
    assert run(fleet.manager.url, verb, "group=a", "--yes").returncode == 0 and len(fleet.begun()) == 1


@pytest.mark.parametrize("verb", ["start", "restart"])
def test_what_ends_no_work_for_good_is_not_asked_for(fleet: Fleet, verb: str) -> None:
    fleet.matching = fleet.acts = 500
    assert run(fleet.manager.url, verb, "*").returncode == 0 and len(fleet.begun()) == 1


@pytest.mark.parametrize(("typed", "code", "begun"), [("1,300", 0, 1), ("1300", 0, 1), ("y", 1, 0), ("", 1, 0)])
def test_the_number_is_typed_at_a_terminal(fleet: Fleet, typed: str, code: int, begun: int) -> None:
    fleet.matching = fleet.acts = 1_300
    own, terminal = pty.openpty()
    try:
        os.write(own, typed.encode() + b"\n")
        env = {**os.environ, "PROCGUARD_MANAGER_URL": fleet.manager.url}
        done = forked.run(["kill", "*"], env, stdin=terminal)
    finally:
        os.close(own)
        os.close(terminal)
    assert done.returncode == code and len(fleet.begun()) == begun
    assert "Type 1300 to continue" in done.stdout


@pytest.mark.slow
def test_no_wait_returns_at_once_and_json_is_json(fleet: Fleet) -> None:
    done = run(fleet.manager.url, "stop", "w*", "--no-wait")
    assert (
        done.returncode == 0
        and "o-1: started; progress: invoke operations.show o-1" in done.stdout
        and fleet.checks == 0
    )
    parsed = json.loads(run(fleet.manager.url, "stop", "w*", "--json").stdout)
    assert parsed["status"] == "done" and parsed["items"]


@pytest.mark.slow
def test_operations_are_listed_shown_cancelled_and_retried(fleet: Fleet) -> None:
    assert "o-1" in run(fleet.manager.url, "operations").stdout
    assert "exit code 3" in run(fleet.manager.url, "operations", "o-1").stdout
    assert "exit code 3" in run(fleet.manager.url, "operations.show", "o-1", "--result", "failed").stdout
    assert run(fleet.manager.url, "operations", "cancel", "o-1").stdout == "o-1: cancelling; 2 of 3 not begun\n"
    assert run(fleet.manager.url, "operations.retry", "o-1", "--rest").returncode == 0
    assert fleet.manager.asked("POST", "/api/operations/o-1/retry")[0][2] == {"rest": True}


def test_a_wrong_pace_is_reported_before_anything_is_asked(fleet: Fleet) -> None:
    done = run(fleet.manager.url, "stop", "w*", "--concurrency=-1")
    assert done.returncode == 1 and "at least 1;" in done.stderr and fleet.manager.requests == []
