"""Maintenance of an agent: one request at a time, always with a result; an upgrade without heartbeats is rolled
back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from procguard.deploy.install.helper_client import Result
from procguard.errors import Conflict, NotFound
from procguard.fleet.agents.maintenance import AgentMaintenance
from procguard.fleet.model.records import AgentRecord
from tests.unit.fleet_world import World

STARTED = Result(True, "started", "release aa → bb, the agent was started (pid 78)")


class Room:
    """AgentMaintenance with scripted SSH; spawned tasks wait for `work`."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.world.deploy({"h1": {"w1": {"command": "sleep 9"}}})
        self.world.beat("h1", started_at=1.0)
        self.answers: dict[str, Result] = {}
        self.asked: list[str] = []
        self.begun: list[Callable[[], None]] = []
        self.returns = True  # a new process of the agent sends a heartbeat shortly afterwards
        self.maintenance = AgentMaintenance(
            self.world.fleet,
            run_ssh=self.hand,
            spawn=self.begun.append,
            pause=self.pause,
            read_clock=lambda: self.world.now,
        )

    def hand(self, op: str, agent: AgentRecord, deadline_s: float, max_bytes: int = 0) -> Any:
        self.asked.append(op)
        return self.answers.get(op, Result(False, "unknown", f"{agent.host}: connection refused"))

    def pause(self, seconds: float) -> None:
        self.world.pass_time(seconds)
        if self.returns:
            self.world.beat("h1", pid=78, started_at=2.0)

    def work(self) -> list[tuple[str, str, str]]:
        for task in self.begun:
            task()
        self.begun.clear()
        kinds = [one for one in self.world.fleet.state.events(limit=100) if one["kind"].startswith("agent_")]
        return [(one["kind"], one["reason"], one["actor"]) for one in kinds if one["actor"] == "olga"]


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path)


@pytest.mark.parametrize(("action", "done"), [("restart", "agent_restarted"), ("upgrade", "agent_upgraded")])
def test_it_is_done_once_a_new_agent_process_reports(room: Room, action: Any, done: str) -> None:
    room.answers[action] = STARTED
    room.maintenance.begin(action, "h1", "olga")
    with pytest.raises(Conflict, match="in progress"):
        room.maintenance.begin("restart", "h1", "olga")
    assert [kind for kind, _, _ in room.work()] == ["agent_maintenance", done]
    room.maintenance.begin(action, "h1", "olga")  # the next one may come


def test_an_upgrade_that_does_not_reconnect_is_rolled_back(room: Room) -> None:
    room.answers = {"upgrade": STARTED, "rollback": Result(True, "started", "back to release aa")}
    room.returns = False
    room.maintenance.begin("upgrade", "h1", "olga")
    kind, reason, _ = room.work()[-1]
    assert kind == "agent_upgrade_failed" and reason.endswith("but it sends no heartbeat; back to release aa")
    assert room.asked == ["upgrade", "rollback"]


def test_a_restart_that_does_not_reconnect_is_reported_and_nothing_is_rolled_back(room: Room) -> None:
    room.answers["restart"] = STARTED
    room.returns = False
    room.maintenance.begin("restart", "h1", "olga")
    assert room.work()[-1][0] == "agent_restart_failed" and room.asked == ["restart"]


def test_a_host_out_of_reach_is_reported_with_the_cause_and_shown(room: Room) -> None:
    room.maintenance.begin("restart", "h1", "olga")
    assert room.work()[-1][:2] == ("agent_restart_failed", "h1: connection refused")
    assert room.world.fleet.state.agent_status["h1"].recovery_ssh.ok is False


def test_an_agent_of_this_release_already_is_no_failure(room: Room) -> None:
    room.answers["upgrade"] = Result(True, "running", "it has this release already (bb)")
    room.returns = False
    room.maintenance.begin("upgrade", "h1", "olga")
    assert room.work()[-1][0] == "agent_upgraded"


def test_who_cannot_be_helped_over_ssh_is_refused_at_once(room: Room) -> None:
    with pytest.raises(NotFound):
        room.maintenance.begin("restart", "nowhere", "olga")
    room.world.register("by-hand", host="laptop")
    with pytest.raises(Conflict, match="started by hand"):
        room.maintenance.begin("restart", "laptop", "olga")
    with pytest.raises(Conflict, match="started by hand"):
        room.maintenance.log("laptop", 1000)
    assert room.asked == []


def test_a_log_that_cannot_be_read_says_how_to_read_it(room: Room) -> None:
    with pytest.raises(Conflict, match="connection refused") as caught:
        room.maintenance.log("h1", 1000)
    fleet = room.world.fleet.state.fleet_id
    assert caught.value.next_step == f"read it there: tail -n 200 ~/.procguard/{fleet}/h1/agent.log"
    whole = {"text": "a line\n", "path": "/p/agent.log", "bytes": 7, "running": False, "pid": None}
    room.answers["log"] = Result(True, "failed", "", {**whole, "ok": True})
    assert room.maintenance.log("h1", 1000) == {"host": "h1", **whole}
