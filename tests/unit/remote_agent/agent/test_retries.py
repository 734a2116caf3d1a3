"""How long an agent waits between attempts: with one manager, with several, and in a large fleet."""

from __future__ import annotations

import os
from typing import Any

import pytest

from remote_agent.agent.session import ManagerSession
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.client import AgentCredentials
from remote_agent.transport.outcomes import LinkDown, NotLeader, Reply

TERM = 28_000_000
GONE = LinkDown("http://10.0.0.5:5000: connection refused")


class SilentCaller:
    """Sends nothing: the test delivers the outcomes."""

    def __init__(self, _name: str) -> None:
        self.busy = False

    def submit(self, _tag: str, _job: Any) -> None:
        self.busy = True


class Agent:
    def __init__(self, term: int, interval_s: float = 2.0) -> None:
        addresses = Addresses(["http://10.0.0.5:5000"])
        addresses.learn(term, [])
        self.now = 1000.0
        self.session = ManagerSession(
            AgentCredentials("h1"),
            addresses,
            lambda _tag, _outcome: None,
            build=dict,
            take=lambda _reply, _asked_ns: None,
            cursor=lambda: ("", 0),
            link_changed=lambda _trouble: None,
            make_caller=SilentCaller,  # type: ignore[arg-type]
        )
        self.outcome(Reply(200, {"interval_s": interval_s}))

    def outcome(self, outcome: Any) -> float:
        """Seconds until the next heartbeat after this outcome of one."""
        self.session.tick(self.now)
        self.session.outcome("heartbeat", outcome, self.now)
        waited_s = self.session._not_before - self.now
        self.now = max(self.now, self.session._not_before)
        return round(waited_s, 2)


@pytest.fixture(autouse=True)
def longest_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """The jitter always draws the longest delay."""
    monkeypatch.setattr(os, "urandom", lambda count: b"\xff" * count)


def test_an_agent_of_a_single_manager_waits_up_to_five_seconds() -> None:
    agent = Agent(term=0)
    assert [agent.outcome(GONE) for _ in range(5)] == [0.2, 0.6, 1.8, 5.0, 5.0]


def test_an_agent_of_several_managers_waits_no_longer_than_a_takeover_takes() -> None:
    """Behind a shared address no standby responds: connections are refused until another manager leads."""
    agent = Agent(term=TERM)
    assert [agent.outcome(GONE) for _ in range(5)] == [0.2, 0.6, 1.8, 2.0, 2.0]


def test_in_a_large_fleet_it_asks_no_more_often_than_it_sends_heartbeats() -> None:
    for interval_s, most_s in ((3.3, 3.3), (60.0, 5.0)):
        agent = Agent(term=TERM, interval_s=interval_s)
        assert [agent.outcome(GONE) for _ in range(5)][-1] == most_s


def test_one_that_a_standby_has_answered_draws_its_delay_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = Agent(term=TERM)
    for _ in range(5):
        agent.outcome(NotLeader("http://10.0.0.6:5000: that manager stands by"))
    monkeypatch.setattr(os, "urandom", lambda count: b"\x7f" * count)
    assert agent.outcome(NotLeader("http://10.0.0.6:5000: that manager stands by")) == 1.0


def test_one_that_a_manager_refuses_waits_longer() -> None:
    agent = Agent(term=TERM)
    refusal = Reply(403, {"error": {"message": "revoked"}})
    assert [agent.outcome(refusal) for _ in range(5)][-1] == 30.0
