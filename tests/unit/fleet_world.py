"""A fleet on a temporary store, with helpers that act as agents and operators."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from procguard.fleet.fleet import Fleet
from procguard.fleet.history.events import EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.monitor import Finding, ProcessMonitor
from procguard.fleet.store import open_store
from procguard.fleet.transaction import Transaction
from remote_agent.protocol import messages

SECRET = messages.secret_sha256("one")


class World:
    """`now` moves only by `pass_time`. With a `.yaml` as its state file, a process writes a snapshot at each end."""

    def __init__(self, directory: Path, state_file: str = "state.db", **settings: Any) -> None:
        self.directory = directory
        self.state_file = state_file
        self.now = Now(1_000.0, 1_790_000_000.0)
        self.settings = FleetSettings(**settings)
        self._seq = itertools.count(1_790_000_000_000)
        self.fleet = self.open()

    def open(self) -> Fleet:
        store = open_store(str(self.directory / self.state_file))
        return Fleet(store, EventLog(store), self.settings, self.now)

    def restart(self) -> None:
        """The manager ends cleanly and starts again."""
        self.fleet.close()
        self.fleet = self.open()

    def changing(self, actor: str = "tester") -> Transaction:
        return self.fleet.state.transaction(self.now, actor)

    def emit(self, kind: str, **about: Any) -> None:
        """An event, as some part of the manager adds it."""
        with self.changing("") as tx:
            tx.event(kind, **about)

    def next_epoch(self) -> int:
        with self.changing() as tx:
            return self.fleet.state.next_epoch(tx)

    def expire_commands(self) -> list[CommandRecord]:
        with self.changing("") as tx:
            return self.fleet.state.command_queue.expire(tx)

    def watched(self, monitor: ProcessMonitor, seconds: float = 0.0) -> list[Finding]:
        """One round of the monitor, as the failure handler makes it, after so much time."""
        now = self.pass_time(seconds)
        late = monitor.lateness(now)
        if late is not None:
            self.fleet.agents.excuse(late.late_s, late.gap_s, now)
        return monitor.tick(now)

    def pass_time(self, seconds: float) -> Now:
        self.now = Now(self.now.monotonic + seconds, self.now.wall + seconds)
        return self.now

    def deploy(self, hosts: dict[str, dict[str, dict[str, Any]]], **options: Any) -> dict[str, Any]:
        """{"h1": {"w1": {"command": "sleep 9"}}}; `spares`: {"h1": True} or how many, `labels`: {"h1": {…}}"""
        spares, labels = options.pop("spares", {}), options.pop("labels", {})
        declared = [
            {
                "host": host,
                "ssh": {"hostname": host},
                "spare": spares.get(host, False),
                "labels": labels.get(host, {}),
                "workers": [{"worker_id": worker_id, "spec": spec} for worker_id, spec in workers.items()],
            }
            for host, workers in hosts.items()
        ]
        return self.fleet.workers.deploy({"hosts": declared, **options}, "tester", self.now)

    def beat(self, agent_id: str, *reports: messages.WorkerReport, **values: Any) -> messages.AgentReply:
        values.setdefault("pid", 77)
        beat = messages.AgentHeartbeat(agent_id, workers=list(reports), **values)
        return self.fleet.agents.heartbeat(agent_id, beat, self.now)

    def report(self, worker_id: str, state: str = "running", **values: Any) -> messages.WorkerReport:
        worker = self.fleet.state.workers_by_id.get(worker_id)
        values.setdefault("generation", worker.generation if worker else 1)
        values.setdefault("epoch", worker.epoch if worker else 1)
        values.setdefault("attempt", 1)
        return messages.WorkerReport(worker_id, state=state, **values)  # type: ignore[arg-type]

    def event(self, worker_id: str, before: str, after: str, reason: str = "because") -> messages.WorkerEvent:
        return messages.WorkerEvent(worker_id, next(self._seq), self.now.wall, 1, before, after, reason)  # type: ignore[arg-type]

    def register(self, worker_id: str, **values: Any) -> messages.RegisterReply:
        trusted, peer = values.pop("trusted", True), values.pop("peer", "127.0.0.1")
        values.setdefault("command", "python train.py")
        values.setdefault("host", "laptop")
        return self.fleet.agents.enrolment.register(
            messages.Registration(worker_id, **values), actor="tester", trusted=trusted, peer=peer, now=self.now
        )

    def kinds(self) -> list[str]:
        return [event["kind"] for event in self.fleet.state.events(limit=1_000)]
