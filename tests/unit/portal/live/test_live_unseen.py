"""What every heartbeat changes is told to the live feed only while somebody looks; who looks again misses nothing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from procguard.portal.live import hub, tables
from procguard.portal.live.hub import LiveHub
from remote_agent.protocol import messages as protocol
from tests.unit.fleet_world import World
from tests.unit.portal.live.test_live import FakeClient

Beat = Callable[[float], None]


class Portal:
    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.world.deploy({"h1": {"w1": {"command": "x"}}})
        self.world.register("plain", secret_sha256=protocol.secret_sha256("plain"))
        self.fleet = self.world.fleet
        self.hub = LiveHub(self.fleet, SimpleNamespace(on_append=lambda _listener: None))
        self.hub.start()

    def agent_beats(self, cpu_percent: float) -> None:
        self.world.beat("h1", self.world.report("w1", usage=protocol.WorkerUsage(cpu_percent=cpu_percent)))

    def launcher_beats(self, cpu_percent: float) -> None:
        usage = protocol.WorkerUsage(cpu_percent=cpu_percent)
        self.fleet.agents.heartbeats.take_plain(
            "plain", protocol.WorkerHeartbeat(pid=7, attempt=1, usage=usage), self.world.now
        )

    def reported(self, client: FakeClient, kind: str) -> list[Any]:
        gevent.sleep(2 * hub.COALESCE_S)
        return [message for message in client.messages if message["t"] == kind]


@pytest.fixture
def portal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Portal]:
    monkeypatch.setattr(hub, "MAY_RETURN_S", 0.0)
    monkeypatch.setattr(tables, "SEEN_FOR_S", 0.0)
    made = Portal(tmp_path)
    yield made
    made.hub.stop()


@pytest.fixture(params=["w1", "plain"])
def worker_id(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def beat(portal: Portal, worker_id: str) -> Beat:
    return portal.agent_beats if worker_id == "w1" else portal.launcher_beats


def shown(messages: list[Any], worker_id: str, key: str) -> float:
    [view] = [one for one in messages[-1][key] if one["worker_id"] == worker_id]
    return float(view["usage"]["cpu_percent"])


def test_who_comes_after_a_time_unseen_sees_the_newest_and_what_follows(
    portal: Portal, worker_id: str, beat: Beat
) -> None:
    reported: list[Any] = []
    for percent in (1.0, 2.0, 3.0):
        beat(percent)
    portal.fleet.state.bus.workers.subscribe(reported.append)
    beat(4.0)
    assert reported == []  # nobody looks, and that is known
    client = FakeClient()
    assert portal.hub.subscribe(client, "workers", 0) == ""
    assert shown(portal.reported(client, "snap"), worker_id, "items") == 4.0
    beat(5.0)
    assert shown(portal.reported(client, "delta"), worker_id, "set") == 5.0


def test_who_was_away_gets_a_new_snapshot(portal: Portal, worker_id: str, beat: Beat) -> None:
    beat(1.0)
    first, again = FakeClient(), FakeClient()
    portal.hub.subscribe(first, "workers", 0)
    seq = portal.reported(first, "snap")[0]["seq"]
    portal.hub.leave(first)
    for percent in (2.0, 3.0, 4.0):
        beat(percent)
    portal.hub.subscribe(again, "workers", seq)
    assert shown(portal.reported(again, "snap"), worker_id, "items") == 4.0


def test_one_who_watches_a_single_worker_sees_each_measurement(portal: Portal, worker_id: str, beat: Beat) -> None:
    for percent in (1.0, 2.0):
        beat(percent)
    client = FakeClient()
    assert portal.hub.subscribe(client, f"worker:{worker_id}", 0) == ""
    for percent in (3.0, 4.0):
        beat(percent)
        assert shown(portal.reported(client, "delta"), worker_id, "set") == percent


def test_the_lists_of_the_pages_are_reloaded(portal: Portal, worker_id: str, beat: Beat) -> None:
    beat(1.0)
    before = json.loads(portal.hub.snapshot("workers") or b"")
    for percent in (2.0, 3.0):
        beat(percent)
    after = json.loads(portal.hub.snapshot("workers") or b"")
    assert after["seq"] > before["seq"]  # who has the older one is not told that nothing happened


def test_an_operation_sees_each_report_of_its_workers(portal: Portal) -> None:
    for percent in (1.0, 2.0):
        portal.agent_beats(percent)
    reported: list[Any] = []
    portal.fleet.state.bus.workers.subscribe(reported.append)
    portal.agent_beats(3.0)
    assert reported == []
    portal.fleet.state.bus.awaited_workers = {"w1": {"op-1": 0}}
    portal.agent_beats(4.0)
    assert reported == ["w1"]
