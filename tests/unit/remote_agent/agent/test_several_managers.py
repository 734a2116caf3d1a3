"""A real agent and two managers: assignments of a new leader stay, whatever the former one sends."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from remote_agent.system import paths
from tests.agent_host import Host, alive, running
from tests.fake_manager import FakeManager
from tests.waiting import wait_until

SLEEP = ["sleep", "600"]
TERM = 28_000_000


@pytest.fixture
def other(manager: FakeManager) -> Iterator[FakeManager]:
    one = FakeManager()
    one.know("h1")
    manager.term, one.term = TERM, TERM
    manager.managers = one.managers = [manager.url, one.url]
    one.stands_by = True
    yield one
    one.close()


@pytest.mark.slow
def test_an_agent_follows_a_takeover_and_refuses_the_leader_of_before(
    host: Host, manager: FakeManager, other: FakeManager
) -> None:
    """The agent knows one address. Its job keeps running, a worker that the new leader has removed is not restarted
    by the frozen one, also after the agent's restart; the new leader's commands apply at once."""
    manager.assign("w1", SLEEP)
    manager.assign("w2", SLEEP)
    host.start()
    kept, removed = running(manager), running(manager, "w2")
    assert paths.read_json(paths.known_managers_file(host.directory)) == {"term": TERM, "managers": manager.managers}
    manager.refuse_status = 503  # cut off from its database

    other.assignments = {name: one for name, one in manager.assignments.items()}
    other.assign("w2", SLEEP, desired="removed", epoch=2_000_001)
    other.stands_by, other.term, other.managers = False, TERM + 1, [other.url, manager.url]
    wait_until(lambda: other.received and not alive(removed), 20, "the new leader's assignments")
    manager.refuse_status = 0  # it is back, and says what it said before

    os.kill(host.agent.pid if host.agent else 0, 9)
    asked = len(manager.beats)
    host.start()
    beats = len(other.beats)
    wait_until(lambda: len(other.beats) > beats + 3, 20, "the agent's way to the leader")
    assert alive(kept) and other.report("w2") == {} and len(manager.beats) <= asked + 2
    other.set_desired("w1", "stopped")
    wait_until(lambda: not alive(kept), 20, "the leader's word")
