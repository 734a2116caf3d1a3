"""Expiry of commands: relative to the time of the request, whatever was frozen between the manager and the child."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.commands import CommandExecutor
from remote_agent.agent.journal import AgentJournal
from remote_agent.protocol.messages import Command
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until


class Worker:
    """A running worker whose runner only records messages."""

    worker_id, attempt, state, reported, settled = "w1", 3, "running", True, False

    def __init__(self) -> None:
        self.waiting: dict[str, Command] = {}
        self.postponed: list[tuple[Command, float]] = []
        self.sent: list[tuple[Any, ...]] = []
        self.link: Any = self

    def restart(self, *words: Any) -> None:
        self.sent.append(("restart", *words))

    def kill(self, *words: Any) -> None:
        self.sent.append(("kill", *words))


@pytest.fixture
def pair(tmp_path: Path):
    journal = AgentJournal(str(tmp_path / "journal"))
    yield CommandExecutor(journal), Worker()
    journal.close()


def order(seq: int, verb: str = "restart", ttl_s: float = 60.0) -> Command:
    return Command(seq, f"c-{seq}", "w1", verb, 3, ttl_s)  # type: ignore[arg-type]


def test_a_long_poll_s_command_is_good_for_what_is_left_since_the_poll_left(
    pair: tuple[CommandExecutor, Worker],
) -> None:
    """The runner gets the deadline, so that it does not act on commands that waited in its own socket."""
    executor, worker = pair
    executor.receive([order(1)], {"w1": worker}, now=125.0, asked=100.0)  # type: ignore[dict-item]
    assert worker.sent == [("restart", 3, "c-1", 160_000_000_000)]


def test_what_may_be_too_late_is_asked_for_again(pair: tuple[CommandExecutor, Worker]) -> None:
    """The response was delayed past its expiry: the command is neither carried out nor refused, nor is the next one."""
    executor, worker = pair
    workers: Any = {"w1": worker}
    executor.receive([order(6), order(7, ttl_s=5.0), order(8)], workers, now=130.0, asked=100.0)
    assert executor.seq == 6 and [words[2] for words in worker.sent] == ["c-6"]
    executor.receive([order(7, ttl_s=2.0), order(8)], workers, now=130.2, asked=130.1)
    assert executor.seq == 8 and [words[2] for words in worker.sent] == ["c-6", "c-7", "c-8"]


def test_what_a_prompt_answer_says_is_too_late_has_expired(pair: tuple[CommandExecutor, Worker]) -> None:
    executor, worker = pair
    executor.receive([order(1, ttl_s=0.0)], {"w1": worker}, now=100.1, asked=100.0)  # type: ignore[dict-item]
    assert not worker.sent and [one.status for one in executor.results()] == ["expired"]


def test_start_and_stop_are_sent_for_information_however_late(pair: tuple[CommandExecutor, Worker]) -> None:
    executor, worker = pair
    executor.receive([order(4, "stop", ttl_s=0.0)], {"w1": worker}, now=999.0, asked=100.0)  # type: ignore[dict-item]
    assert executor.seq == 4 and not worker.sent


def test_a_postponed_command_expires_by_the_same_count(pair: tuple[CommandExecutor, Worker]) -> None:
    executor, worker = pair
    worker.reported = False
    executor.receive([order(1)], {"w1": worker}, now=125.0, asked=100.0)  # type: ignore[dict-item]
    assert not worker.sent
    worker.reported = True
    executor.send_postponed(worker, 160.5)  # type: ignore[arg-type]
    assert not worker.sent and [one.status for one in executor.results()] == ["expired"]


@pytest.mark.slow
def test_an_agent_that_was_frozen_does_not_act_on_what_waited_in_its_socket(host: Host, manager: FakeManager) -> None:
    """SIGSTOP, a restart that expires after one second, then SIGCONT: on a repeat the manager knows that it has
    expired."""
    manager.assign("w1", ["sleep", "600"])
    host.start()
    pid = running(manager)
    assert host.agent is not None
    os.kill(host.agent.pid, signal.SIGSTOP)
    try:
        command = manager.command("w1", "restart", 1, ttl_s=1.0)
        given = time.monotonic()
        wait_until(lambda: time.monotonic() > given + 2.5, 10, "its expiry")
        with manager.changed:
            manager.commands[0].ttl_s = 0.0  # as the real manager counts on
        before = len(manager.requests)
    finally:
        os.kill(host.agent.pid, signal.SIGCONT)
    found = wait_until(lambda: manager.result(command), 10, "its result")
    assert found["status"] == "expired" and alive(pid)
    assert any("commands?" in one.path for one in manager.requests[before:]), "asked again"
    assert manager.report("w1")["attempt"] == 1


# -------------------------------------------------------------------------------------------------- sent again


def test_a_command_sent_again_while_its_runner_works_on_it_reaches_the_runner_once(
    pair: tuple[CommandExecutor, Worker],
) -> None:
    executor, worker = pair
    workers: Any = {"w1": worker}
    for verb in ("restart", "kill"):
        worker.sent.clear()
        command = order(1 if verb == "restart" else 2, verb)
        executor.receive([command], workers, now=100.0, asked=100.0)
        executor.receive([command], workers, now=100.5, asked=100.4)
        assert [words[0] for words in worker.sent] == [verb]
        assert executor.results() == []


def test_a_command_sent_again_after_it_was_done_is_answered_as_before(pair: tuple[CommandExecutor, Worker]) -> None:
    """Its result was lost. The attempt that it targeted is over by now, which is not a failure of the command."""
    executor, worker = pair
    workers: Any = {"w1": worker}
    executor.receive([order(1)], workers, now=100.0, asked=100.0)
    worker.attempt = 4
    executor.runner_result(worker, {"id": "c-1", "status": "done", "message": "attempt 4 started"})  # type: ignore[arg-type]
    executor.results()
    executor.results_taken()
    executor.receive([order(1)], workers, now=101.0, asked=101.0)
    assert [(one.status, one.message) for one in executor.results()] == [("done", "attempt 4 started")]
    assert len(worker.sent) == 1


def test_a_command_that_a_killed_agent_had_begun_is_never_carried_out_by_the_next(tmp_path: Path) -> None:
    """Its runner may still be carrying it out: a second restart would stop the attempt that the first one started."""
    path, worker = str(tmp_path / "journal"), Worker()
    workers: Any = {"w1": worker}
    first = CommandExecutor(AgentJournal(path))
    first.receive([order(1)], workers, now=100.0, asked=100.0)
    worker.waiting.clear()
    next_one = CommandExecutor(AgentJournal(path))
    next_one.receive([order(1)], workers, now=101.0, asked=101.0)
    assert len(worker.sent) == 1
    assert [one.status for one in next_one.results()] == ["failed"]


def test_a_command_for_a_worker_that_was_removed_meanwhile_keeps_its_answer(
    pair: tuple[CommandExecutor, Worker],
) -> None:
    executor, worker = pair
    executor.receive([order(1, "kill")], {"w1": worker}, now=100.0, asked=100.0)  # type: ignore[dict-item]
    executor.runner_result(worker, {"id": "c-1", "status": "done", "message": "killed"})  # type: ignore[arg-type]
    executor.results()
    executor.results_taken()
    executor.receive([order(1, "kill")], {}, now=101.0, asked=101.0)
    assert [one.status for one in executor.results() if one.status == "failed"] == []
