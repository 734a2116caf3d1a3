"""A leader is killed while it sends alerts: its successor on the same PostgreSQL neither loses nor duplicates one."""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from remote_agent.protocol import messages
from tests import postgres_server, sinks
from tests.server_process import RunningManager
from tests.sinks import HttpSink, Reply
from tests.waiting import wait_until

pytestmark = pytest.mark.slow
ROUNDS = 20 if os.environ.get("PROCGUARD_LONG_TESTS") == "1" else 2
WORKERS = [f"w{number}" for number in range(5)]  # a message shows the ends of five


class Manager(RunningManager):
    """One of several managers: the leader or a standby."""

    def _ready(self) -> bool:
        deadline = time.monotonic() + 60
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                if self.ask("GET", "/readyz", timeout_s=2).status in (200, 503):
                    return True
            time.sleep(0.05)
        return False

    @property
    def leads(self) -> bool:
        with contextlib.suppress(OSError):
            return self.ask("GET", "/readyz", timeout_s=2).status == 200
        return False


class Fleet:
    """Two managers and a host whose workers end one after the other, reported by its agent until acknowledged."""

    def __init__(self, directory: Path, server: postgres_server.Postgres, sink: HttpSink) -> None:
        self.directory, self.sink = directory, sink
        targets = [{"name": "li", "type": "webhook", "url": sink.url + "/li", "events": ["finished", "rule"],
                    "min_interval": 0, "group_wait": 0, "dedup": 0}]  # fmt: skip
        rules = [{"name": "big", "measure": "rss_bytes", "above": "1 GiB", "for": 0}]
        database = server.url(server.database())
        self.settings = [
            f"notifications={json.dumps(targets)}", f"alerts={json.dumps(rules)}", f"state.database={database}",
            f"state.database_password_file={server.password}",
        ]  # fmt: skip
        self.managers = {name: self.start(name) for name in ("m1", "m2")}
        self.events: list[messages.WorkerEvent] = []
        self.secret = self.leader().deploy("alpha", *WORKERS)
        self.seq = dict.fromkeys(WORKERS, 0)
        self.states = {worker: ("running", 1) for worker in WORKERS}

    def start(self, name: str) -> Manager:
        folder = self.directory / name
        folder.mkdir(exist_ok=True)
        return Manager(folder, *self.settings, f"state.manager_name={name}")

    def leader(self) -> Manager:
        return wait_until(lambda: next((one for one in self.managers.values() if one.leads), None), 60, "a leader")

    def other(self, leader: Manager) -> str:
        return next(name for name, one in self.managers.items() if one is leader)

    def end(self, worker: str, attempt: int) -> None:
        """It has finished, and its agent restarts it immediately."""
        self.seq[worker] += 1
        exited = messages.ExitRecord(attempt, 0, at=time.time(), duration_s=5.0)
        reason = "finished: exit code 0 after 5.0 s"
        self.events.append(
            messages.WorkerEvent(
                worker, self.seq[worker], time.time(), attempt, "running", "exited", reason, exit=exited
            )
        )

    def beat(self, manager: Manager, rss: int = 1) -> None:
        usage = messages.WorkerUsage(rss_bytes=rss)
        reports = [messages.WorkerReport(one, "running", 1, 0, 1, 7, time.time(), usage=usage) for one in WORKERS]
        answer = manager.beat("alpha", self.secret, *reports, started_at=1.0, events=self.events)
        acked = answer.get("events_acked") or {}
        self.events = [one for one in self.events if one.seq > acked.get(one.worker_id, 0)]

    def try_beat(self, rss: int = 1) -> bool:
        """True once everything that had happened is acknowledged."""
        for manager in self.managers.values():
            with contextlib.suppress(OSError, AssertionError, ValueError):
                self.beat(manager, rss)
        return not self.events


def received(sink: HttpSink) -> dict[str, list[tuple[str, int]]]:
    """The ends of workers per message id; a message in progress is sent again unchanged."""
    found: dict[str, list[tuple[str, int]]] = {}
    for posted in sink.posted:
        message: dict[str, Any] = posted.json
        ends = [(one["worker_id"], one["attempt"]) for one in message.get("ended") or []]
        assert found.setdefault(message["id"], ends) == ends, "one id, two contents"
    return found


def all_received(sink: HttpSink) -> list[tuple[str, int]]:
    return [one for ends in received(sink).values() for one in ends]


@pytest.mark.timeout(120 if ROUNDS == 2 else 1800)
def test_no_end_and_no_alert_is_lost_or_doubled_by_a_takeover(tmp_path: Path) -> None:
    with postgres_server.cluster() as server, sinks.http_sink() as sink:
        sink.reply = Reply(after_s=0.05)
        fleet = Fleet(tmp_path, server, sink)
        ended: list[tuple[str, int]] = []
        try:
            for number in range(1, ROUNDS + 1):
                leader = fleet.leader()
                for worker in WORKERS:
                    fleet.end(worker, number)
                    ended.append((worker, number))
                    fleet.beat(leader, 2 << 30)
                leader.process.kill()  # some messages are out, some on their way, some not begun
                leader.process.wait()
                wait_until(lambda: fleet.try_beat(2 << 30), 60, "the other one to lead and to acknowledge")
                wait_until(
                    lambda: fleet.try_beat(2 << 30) and set(ended) <= set(all_received(sink)), 60, "all the ends"
                )
                name = fleet.other(leader)
                fleet.managers[name] = fleet.start(name)
            wait_until(lambda: fleet.try_beat(2 << 30) and big(sink) >= set(WORKERS), 60, "the alerts of the rule")
        finally:
            for manager in fleet.managers.values():
                manager.process.kill()
                manager.process.wait()
    assert sorted(all_received(sink)) == sorted(ended), "each end under one id"
    per_worker = [name for found in rule_messages(sink).values() for name in found]
    assert sorted(per_worker) == sorted(WORKERS), "each alert under one id"


def rule_messages(sink: HttpSink) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for posted in sink.posted:
        if posted.json["alert"] == "rule":
            found.setdefault(posted.json["id"], set()).update(w for w in WORKERS if w in posted.json["text"])
    return found


def big(sink: HttpSink) -> set[str]:
    return {name for names in rule_messages(sink).values() for name in names}
