"""When a command is too late: by the time its request left, whatever lay frozen between the manager and the child."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from remote_agent.agent.commands import Orders
from remote_agent.agent.journal import AgentJournal
from remote_agent.protocol.messages import Command
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until


class Slot:
    """A running worker whose runner only notes what it is told."""

    worker_id, attempt, state, heard, settled = "w1", 3, "running", True, False

    def __init__(self) -> None:
        self.waiting: dict[str, Command] = {}
        self.postponed: list[tuple[Command, float]] = []
        self.told: list[tuple[Any, ...]] = []
        self.link: Any = self

    def restart(self, *words: Any) -> None:
        self.told.append(("restart", *words))

    def kill(self, *words: Any) -> None:
        self.told.append(("kill", *words))


@pytest.fixture
def desk(tmp_path: Path):
    journal = AgentJournal(str(tmp_path / "journal"))
    yield Orders(journal), Slot()
    journal.close()


def order(seq: int, verb: str = "restart", ttl_s: float = 60.0) -> Command:
    return Command(seq, f"c-{seq}", "w1", verb, 3, ttl_s)  # type: ignore[arg-type]


def test_a_held_poll_s_command_is_good_for_what_is_left_since_the_poll_left(desk: tuple[Orders, Slot]) -> None:
    """The runner is told until when, so that it does not act on what waited in its own socket."""
    orders, slot = desk
    orders.receive([order(1)], {"w1": slot}, now=125.0, asked=100.0)  # type: ignore[dict-item]
    assert slot.told == [("restart", 3, "c-1", 160_000_000_000)]


def test_what_may_be_too_late_is_asked_for_again(desk: tuple[Orders, Slot]) -> None:
    """The answer lay about for longer than it was good for: neither done nor refused, nor what came after it."""
    orders, slot = desk
    slots: Any = {"w1": slot}
    orders.receive([order(6), order(7, ttl_s=5.0), order(8)], slots, now=130.0, asked=100.0)
    assert orders.seq == 6 and [words[2] for words in slot.told] == ["c-6"]
    orders.receive([order(7, ttl_s=2.0), order(8)], slots, now=130.2, asked=130.1)
    assert orders.seq == 8 and [words[2] for words in slot.told] == ["c-6", "c-7", "c-8"]


def test_what_a_prompt_answer_says_is_too_late_has_expired(desk: tuple[Orders, Slot]) -> None:
    orders, slot = desk
    orders.receive([order(1, ttl_s=0.0)], {"w1": slot}, now=100.1, asked=100.0)  # type: ignore[dict-item]
    assert not slot.told and [one.status for one in orders.results()] == ["expired"]


def test_start_and_stop_are_told_for_information_however_late(desk: tuple[Orders, Slot]) -> None:
    orders, slot = desk
    orders.receive([order(4, "stop", ttl_s=0.0)], {"w1": slot}, now=999.0, asked=100.0)  # type: ignore[dict-item]
    assert orders.seq == 4 and not slot.told


def test_a_postponed_command_expires_by_the_same_count(desk: tuple[Orders, Slot]) -> None:
    orders, slot = desk
    slot.heard = False
    orders.receive([order(1)], {"w1": slot}, now=125.0, asked=100.0)  # type: ignore[dict-item]
    assert not slot.told
    slot.heard = True
    orders.send_postponed(slot, 160.5)  # type: ignore[arg-type]
    assert not slot.told and [one.status for one in orders.results()] == ["expired"]


@pytest.mark.slow
def test_an_agent_that_was_frozen_does_not_act_on_what_waited_in_its_socket(host: Host, manager: FakeManager) -> None:
    """SIGSTOP, a restart good for one second, SIGCONT after it: asked for again, the manager knows that it is over."""
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


# -------------------------------------------------------------------------------------------------- told again


def test_a_command_told_again_while_its_runner_works_on_it_reaches_the_runner_once(desk: tuple[Orders, Slot]) -> None:
    orders, slot = desk
    slots: Any = {"w1": slot}
    for verb in ("restart", "kill"):
        slot.told.clear()
        command = order(1 if verb == "restart" else 2, verb)
        orders.receive([command], slots, now=100.0, asked=100.0)
        orders.receive([command], slots, now=100.5, asked=100.4)
        assert [words[0] for words in slot.told] == [verb]
        assert orders.results() == []


def test_a_command_told_again_after_it_was_done_is_answered_as_before(desk: tuple[Orders, Slot]) -> None:
    """Its result was lost on the way. The attempt that it meant is over by now, which is no failure of the command."""
    orders, slot = desk
    slots: Any = {"w1": slot}
    orders.receive([order(1)], slots, now=100.0, asked=100.0)
    slot.attempt = 4
    orders.runner_result(slot, {"id": "c-1", "status": "done", "message": "attempt 4 started"})  # type: ignore[arg-type]
    orders.results()
    orders.results_taken()
    orders.receive([order(1)], slots, now=101.0, asked=101.0)
    assert [(one.status, one.message) for one in orders.results()] == [("done", "attempt 4 started")]
    assert len(slot.told) == 1


def test_a_command_that_a_killed_agent_had_begun_is_never_carried_out_by_the_next(tmp_path: Path) -> None:
    """Its runner may be at work on it still: a second restart would end what the first one has started."""
    path, slot = str(tmp_path / "journal"), Slot()
    slots: Any = {"w1": slot}
    first = Orders(AgentJournal(path))
    first.receive([order(1)], slots, now=100.0, asked=100.0)
    slot.waiting.clear()
    next_one = Orders(AgentJournal(path))
    next_one.receive([order(1)], slots, now=101.0, asked=101.0)
    assert len(slot.told) == 1
    assert [one.status for one in next_one.results()] == ["failed"]


def test_a_command_for_a_worker_that_was_removed_meanwhile_keeps_its_answer(desk: tuple[Orders, Slot]) -> None:
    orders, slot = desk
    orders.receive([order(1, "kill")], {"w1": slot}, now=100.0, asked=100.0)  # type: ignore[dict-item]
    orders.runner_result(slot, {"id": "c-1", "status": "done", "message": "killed"})  # type: ignore[arg-type]
    orders.results()
    orders.results_taken()
    orders.receive([order(1, "kill")], {}, now=101.0, asked=101.0)
    assert [one.status for one in orders.results() if one.status == "failed"] == []
