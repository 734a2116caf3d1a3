"""Waiting for workers to come up: results, time limit, and the error line of one that does not."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from procguard.client import coming_up
from procguard.client.coming_up import NO_WAIT, Started, WaitLimit, Watcher, error_line, is_bad, is_decided
from procguard.errors import UsageError

USUAL, LONG = WaitLimit(), WaitLimit(30.0)


def view(state: str, **values: Any) -> dict[str, Any]:
    return {
        "worker_id": "w", "host": "h", "state": state, "desired": "running", "current": True, "attempt": 1,
        "reason": "", "gang": None, "next_start_in_s": None, "last_exit": None, **values,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("seen", "for_s", "limit", "decided"),
    [
        (view("running"), 0.0, USUAL, True),  # alive for its start_secs: that is what running means
        (view("running"), 1.0, LONG, False),  # --wait 30 watches for 30 s
        (view("running"), 30.0, LONG, True),
        (view("starting"), 14.0, USUAL, False),
        (view("failed"), 0.0, LONG, True),
        (view("exited"), 0.0, LONG, True),
        (view("failed", current=False), 5.0, USUAL, False),  # of what was asked before
        (view("failed", attempt=0), 0.0, USUAL, True),  # its host can't start one
        (view("running", attempt=0), 0.0, USUAL, False),  # the one that is being replaced
        (view("backoff", next_start_in_s=0.1), 0.2, USUAL, False),  # its next attempt comes within its start_secs
        (view("backoff", next_start_in_s=5.0), 0.2, USUAL, True),
        (view("backoff"), 1.0, USUAL, True),
        (view("stopped"), 9.0, USUAL, False),
        (view("stopped", desired="stopped"), 0.0, USUAL, True),
        (view("stopped", gang={"held": True, "phase": "running"}), 0.0, USUAL, True),
        (view("stopped", gang={"held": True, "phase": "restarting"}), 0.0, USUAL, False),
    ],
)
def test_when_there_is_nothing_more_to_wait_for(
    seen: dict[str, Any], for_s: float, limit: WaitLimit, decided: bool
) -> None:
    assert is_decided(seen, Started(attempt=1), for_s, limit) is decided


@pytest.mark.parametrize(
    ("seen", "bad"),
    [
        (view("failed"), True),
        (view("backoff"), True),
        (view("failed", desired="stopped"), False),
        (view("stopped"), False),
        (view("exited"), False),
        (view("starting"), False),
        (view("unknown"), False),
        (view("failed", gang={"held": True, "phase": "restarting"}), False),
        (view("failed", gang={"held": True, "phase": "failed"}), True),
    ],
)
def test_stopped_finished_and_held_ones_are_no_failure(seen: dict[str, Any], bad: bool) -> None:
    assert is_bad(seen) is bad


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        ("sh: 1: trian: not found\n", "sh: 1: trian: not found"),
        ("loading\nloaded\n", "loaded"),
        ("loading\nERROR: no GPU\nbye\n", "ERROR: no GPU"),
        (
            "start\nTraceback (most recent call last):\n  File 'x', line 1\n    import torhc\n"
            "ModuleNotFoundError: No module named 'torhc'\nfailed\n",
            "ModuleNotFoundError: No module named 'torhc'",
        ),
        ("Traceback (most recent call last):\n  File 'x'\n", "File 'x'"),
        ("\x1b[31mERROR\x1b[0m: \x1b]0;owned\x07no\x07 data\u202e\n", "ERROR: no  data"),
        ("x" * 1000 + " error\n", "x" * 300),
    ],
)
def test_the_line_that_says_what_went_wrong(text: str, line: str) -> None:
    assert error_line(text) == line


@pytest.mark.parametrize("wait", ["-1", "soon", "1e9", "nan"])
def test_a_wait_that_is_no_time_is_refused(wait: str) -> None:
    with pytest.raises(UsageError, match="--wait"):
        coming_up.wait_limit(wait, False)


def test_wait_and_no_wait() -> None:
    assert coming_up.wait_limit("2.5", False) == WaitLimit(2.5)
    assert coming_up.wait_limit("", True) == NO_WAIT and coming_up.wait_limit("", False) == WaitLimit()
    with pytest.raises(UsageError, match="cannot be combined"):
        coming_up.wait_limit("3", True)


class Manager:
    """Returns one view after the other; the last one repeats."""

    def __init__(self, *views: dict[str, Any], log: str = "") -> None:
        self.views, self.log, self.asked = list(views), log, 0
        self.commands: list[str] = []

    def workers(self, **_query: Any) -> list[dict[str, Any]]:
        return [self.worker("w")]

    def worker(self, _worker_id: str) -> dict[str, Any]:
        self.asked += 1
        return self.views.pop(0) if len(self.views) > 1 else self.views[0]

    def log_pieces(self, _worker_id: str, **_query: Any) -> Iterator[bytes]:
        yield self.log.encode()

    def command_status(self, _command_id: str) -> dict[str, Any]:
        return {"status": "delivered", "message": ""}


def watcher(manager: Any, limit: WaitLimit = USUAL) -> Watcher:
    return Watcher(manager, limit)


def test_it_waits_until_the_worker_runs_and_no_longer() -> None:
    manager = Manager(view("stopped", attempt=0, current=False), view("starting"), view("running", pid=7))
    began = time.monotonic()
    assert watcher(manager).wait({"w": Started(1)})["w"]["pid"] == 7
    assert manager.asked == 3 and time.monotonic() - began < 5


def test_without_waiting_it_checks_once() -> None:
    manager = Manager(view("starting"))
    assert watcher(manager, NO_WAIT).wait({"w": Started(1, stop_s=60.0)})["w"]["state"] == "starting"
    assert manager.asked == 1


def test_a_worker_that_never_shows_ends_with_the_time() -> None:
    began = time.monotonic()
    watcher(Manager(view("starting")), WaitLimit(0.3)).wait({"w": Started(1)})
    assert 0.3 <= time.monotonic() - began < 5


def test_a_start_that_ends_in_backoff_is_reported_with_its_line_of_error() -> None:
    ended = view("backoff", attempt=5, reason="exit code 1", next_start_in_s=5.0, last_exit={"attempt": 5, "code": 1})
    manager: Any = Manager(view("failed", attempt=4), ended, log="KeyError: 'x'\n")
    found, trouble = coming_up.follow(manager, view("failed", attempt=4), "start", "c-1", USUAL)
    assert found["state"] == "backoff" and trouble == "is in backoff: exit code 1: KeyError: 'x'"


def test_a_start_on_a_host_out_of_reach_is_not_waited_for() -> None:
    manager: Any = Manager(view("unknown", reason="no heartbeat", last_seen="2026-01-01T00:00:00.000Z"))
    _, trouble = coming_up.follow(manager, view("unknown", attempt=4), "start", "c-1", USUAL)
    assert "is unreachable on h (no heartbeat)" in trouble and manager.asked == 1


def test_after_a_takeover_a_restart_waits_for_the_agent() -> None:
    not_yet = view("unknown", attempt=3, reason="no heartbeat since the start", last_seen=None)
    manager: Any = Manager(not_yet, not_yet, view("stopping", attempt=3), view("running", attempt=4))
    found, trouble = coming_up.follow(manager, not_yet, "restart", "c-1", USUAL)
    assert (found["attempt"], trouble) == (4, "")


def test_an_agent_that_does_not_come_back_ends_the_wait_for_a_restart() -> None:
    manager: Any = Manager(view("unknown", attempt=3, reason="no heartbeat since the start", last_seen=None))
    _, trouble = coming_up.follow(manager, view("unknown", attempt=3), "restart", "c-1", WaitLimit(0.2))
    assert "is unreachable on h (no heartbeat since the start)" in trouble


def test_a_restart_counts_only_from_its_own_attempt() -> None:
    manager: Any = Manager(view("running", attempt=3), view("stopping", attempt=3), view("running", attempt=4))
    found, trouble = coming_up.follow(manager, view("running", attempt=3), "restart", "c-1", USUAL)
    assert (found["attempt"], trouble) == (4, "")
