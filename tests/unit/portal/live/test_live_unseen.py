"""Changes of every heartbeat reach the live feed only while there are viewers; a returning viewer misses nothing."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gevent
import pytest

from procguard.portal.live import hub, tables
from procguard.portal.live.columns import HostColumns, WorkerColumns
from procguard.portal.live.hub import LiveHub
from remote_agent.protocol import messages as protocol
from remote_agent.protocol.records import names
from tests.unit.fleet_world import World
from tests.unit.portal.live.test_live import FakeClient

Beat = Callable[[float], None]


class Portal:
    def __init__(self, directory: Path) -> None:
        self.world = World(directory)
        self.world.deploy({"h1": {"w1": {"command": "x", "metrics": {"loss": "loss ([0-9.]+)"}}}})
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


class Watcher(FakeClient):
    def offer_frame(self, frame: bytes) -> bool:
        return self.send_frame(frame)


def watch(portal: Portal, name: str, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    """A viewer who has just loaded this list."""
    monkeypatch.setattr(tables, "SEEN_FOR_S", 30.0)
    client = Watcher()
    snapshot = json.loads(portal.hub.snapshot(name) or b"")
    assert portal.hub.subscribe(client, f"rows:{name}", snapshot["seq"]) == ""
    return client


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
    assert reported == []  # there are no viewers, and the hub knows it
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


# ------------------------------------------------------------------------------------------ measurements alone


def other(value: Any, name: str) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return {"state": "backoff", "status": "failing"}.get(name, value + "x")
    made = {
        "gpus": [protocol.GpuUsage(0)] if value == [] and name == "gpus" else [],
        "usage": protocol.WorkerUsage(5.0),
        "last_exit": protocol.ExitRecord(1, 1.0),
        "health": protocol.Health("failing"),
        "next_start_in_s": 5.0,
        "lease_left_s": 5.0,
        "pid": 9,
        "reason_params": {"pid": 9},
        "suspect_params": {"idle_s": 9},
    }
    return made.get(name, 1)


def variants(message: Any) -> Iterator[tuple[str, Any]]:
    """(field, the same message with another value there)"""
    for name in names(type(message)):
        yield name, dataclasses.replace(message, **{name: other(getattr(message, name), name)})


def host_beats() -> list[tuple[str, dict[str, Any]]]:
    usage, beats = protocol.HostUsage(), list[tuple[str, dict[str, Any]]]()
    for name in names(protocol.AgentHeartbeat):
        if name not in ("agent_id", "fleet_id", "workers", "events", "results", "facts", "usage"):
            default = getattr(protocol.AgentHeartbeat("h1"), name)
            beats.append((name, {name: other(default, name)}))
    beats += [(f"facts.{name}", {"facts": one}) for name, one in variants(protocol.HostFacts())]
    return beats + [(f"usage.{name}", {"usage": one}) for name, one in variants(usage)]


def test_what_a_hosts_row_shows_is_published_as_a_change_not_as_a_measurement(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, changed, measured = HostColumns(portal.fleet), list[str](), list[str]()
    report = portal.world.report("w1")
    bus = portal.fleet.state.bus
    bus.hosts.subscribe(changed.append)
    bus.host_measures.subscribe(measured.append)
    watch(portal, "hosts", monkeypatch)
    for field, sent in host_beats():
        portal.world.beat("h1", report, usage=protocol.HostUsage())
        before = rows.row("h1", None, 0.0)
        changed.clear()
        measured.clear()
        portal.world.beat("h1", report, **{"usage": protocol.HostUsage(), **sent})
        assert rows.row("h1", None, 0.0) == before or changed, field
        assert changed or measured, field
        if field in ("at", "beat", "assignments_rev", "commands_seq", "usage.load1"):
            assert not changed, field


def worker_reports() -> list[tuple[str, Any]]:
    report = protocol.WorkerReport("w1", "running", 1, 0, 1, 7, usage=protocol.WorkerUsage())
    reports = [
        (name, one) for name, one in variants(report) if name not in ("worker_id", "epoch", "generation", "metrics")
    ]
    reports.append(("metrics", dataclasses.replace(report, metrics=[protocol.LogMetric("loss", 0.5)])))
    usages = variants(protocol.WorkerUsage())
    return reports + [(f"usage.{name}", dataclasses.replace(report, usage=one)) for name, one in usages]


def test_what_a_workers_row_shows_is_published_as_a_change_not_as_a_measurement(
    portal: Portal, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, changed, measured = WorkerColumns(portal.fleet), list[str](), list[str]()
    bus, epoch = portal.fleet.state.bus, portal.fleet.state.workers_by_id["w1"].epoch
    first = protocol.WorkerReport("w1", "running", 1, epoch, 1, 7, usage=protocol.WorkerUsage())
    bus.workers.subscribe(changed.append)
    bus.worker_measures.subscribe(measured.append)
    watch(portal, "workers", monkeypatch)
    for field, report in worker_reports():
        portal.world.beat("h1", first)
        before = rows.row("w1", None, 0.0)
        changed.clear()
        measured.clear()
        portal.world.beat("h1", dataclasses.replace(report, epoch=epoch))
        assert rows.row("w1", None, 0.0) == before or changed, field
        assert changed or measured, field
        if field in ("usage.cpu_percent", "usage.rss_bytes", "metrics"):
            assert not changed, field


def test_measurements_alone_reach_the_lists_within_the_second(
    portal: Portal, worker_id: str, beat: Beat, monkeypatch: pytest.MonkeyPatch
) -> None:
    beat(1.0)
    client = watch(portal, "workers", monkeypatch)
    portal.reported(client, "measures")
    client.messages.clear()
    beat(77.0)
    deadline = time.monotonic() + 5 * hub.MEASURES_EVERY_S
    while not any(77.0 in one["columns"]["cpu_percent"] for one in portal.reported(client, "measures")):
        assert time.monotonic() < deadline, client.messages
    assert not portal.reported(client, "rows")  # nothing else of them was read again
