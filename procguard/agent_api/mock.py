"""The `mock` channel: in-process, without a network, to try out the manager.

A `MockConnection` uses the same addresses, JSON bodies, secrets and responses as a network connection. With
`communication.adapter_config.mock_workers: N`, N simulated workers use such connections like launchers; 0 (the
default) disables them. The workers exist only as states; no process is started.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import os
import time
from collections.abc import Mapping
from typing import Any

import gevent
import gevent.event

from procguard.agent_api import http_io
from procguard.agent_api.handlers import AgentApi, Answer, Call
from procguard.agent_api.interface import Access, Principal
from procguard.agent_api.long_poll import LongPoll
from procguard.agent_api.routes import RouteTable, caller_by_secret, refusal
from procguard.fleet.fleet import Fleet
from procguard.fleet.model import clock
from procguard.i18n.reasons import NONE, Reason, because
from remote_agent.protocol import messages

ACTOR = "mock channel"
PEER = "mock"
AGAIN_S = 1.0  # delay after a heartbeat that was not accepted


@dataclasses.dataclass
class SimulatedWorker:
    """One worker's state as in an agent, and the rules by which it follows the manager. No I/O."""

    worker_id: str
    agent_id: str
    report: messages.WorkerReport
    rev: str = ""
    commands_seq: int = 0
    event_seq: int = 0
    events: list[messages.WorkerEvent] = dataclasses.field(default_factory=list)
    results: list[messages.CommandResult] = dataclasses.field(default_factory=list)

    def follow(self, reply: messages.AgentReply, wall: float) -> bool:
        """Apply a reply. True if a change should be reported at once."""
        acked = reply.events_acked.get(self.worker_id, 0)
        self.events = [event for event in self.events if event.seq > acked]
        self.results = []
        changed = False
        if reply.assignments is not None:
            self.rev = reply.assignments_rev
            for assignment in reply.assignments:
                if assignment.worker_id == self.worker_id:
                    changed |= self._assign(assignment, wall)
        for command in reply.commands:
            if command.seq > self.commands_seq and command.worker_id == self.worker_id:
                self.commands_seq = command.seq
                changed |= self._obey(command, wall)
        return changed

    def _assign(self, assignment: messages.Assignment, wall: float) -> bool:
        new_generation = assignment.generation > self.report.generation
        self.report.generation = assignment.generation
        self.report.epoch = assignment.epoch
        self.report.launch_digest = messages.launch_digest(assignment.spec)
        self.report.attempt = max(self.report.attempt, assignment.attempt_base)
        running = self.report.state == "running"
        if assignment.desired == "running" and not running and (new_generation or self.report.attempt == 0):
            self._start(wall, because("asked.afresh"))
            return True
        if assignment.desired != "running" and running:
            self._stop(wall, because("asked.stop"))
            return True
        return False

    def _obey(self, command: messages.Command, wall: float) -> bool:
        if command.command not in ("restart", "kill"):
            return False
        meant = command.attempt == self.report.attempt and self.report.state == "running"
        if meant:
            self._stop(wall, because("asked.restart" if command.command == "restart" else "asked.kill"))
            if command.command == "restart":
                self._start(wall, because("asked.restart"))
        status: Any = "done" if meant else "failed"
        message = NONE if meant else because("command.nothing_to", state=self.report.state, verb=command.command)
        self.results.append(messages.CommandResult(command.command_id, status, message))
        return True

    def _start(self, wall: float, reason: Reason) -> None:
        self.report.attempt += 1
        self._become("starting", wall, reason)
        self._become("running", wall, because("run.simulated"))

    def _stop(self, wall: float, reason: Reason) -> None:
        self._become("stopping", wall, reason)
        self._become("stopped", wall, reason)

    def _become(self, state: messages.State, wall: float, reason: Reason) -> None:
        self.event_seq = max(self.event_seq + 1, int(wall * 1000))
        self.events.append(
            messages.WorkerEvent(
                self.worker_id, self.event_seq, wall, self.report.attempt, self.report.state, state, reason
            )
        )
        self.report = dataclasses.replace(self.report, state=state, since=wall, reason=reason)


class MockConnection:
    """One connection. `request` works as over a network, called from a greenlet; `close` ends its held requests."""

    def __init__(self, routes: RouteTable, access: Access, secret: str) -> None:
        self._routes = routes
        self._access = access
        self._secret_sha256 = messages.secret_sha256(secret) if secret else ""
        self._polls: set[LongPoll] = set()
        self.closed = False

    def request(self, method: str, path: str, body: bytes = b"") -> Answer:
        try:
            found = self._routes.find(method, path)
            call = MockCall(found.query, body, self._access, self._secret_sha256, self._polls)
            return found.handler(call, *found.arguments)
        except Exception as exc:
            return refusal(exc, PEER)

    def close(self) -> None:
        self.closed = True
        for poll in self._polls:
            poll.end("peer_closed")


class MockCall(Call):
    __slots__ = ("_access", "_body", "_polls", "_secret_sha256")

    channel = "mock"

    def __init__(
        self, query: Mapping[str, str], body: bytes, access: Access, secret_sha256: str, polls: set[LongPoll]
    ) -> None:
        super().__init__(query, PEER, len(body))
        self._body, self._access, self._secret_sha256, self._polls = body, access, secret_sha256, polls

    def identify(self, own_secret_sha256: str = "") -> Principal:
        return caller_by_secret(self._access, self._secret_sha256, own_secret_sha256, PEER)

    def read(self, max_bytes: int) -> bytes:
        if len(self._body) > max_bytes:
            raise http_io.too_large(max_bytes)
        return self._body

    def held(self, poll: LongPoll) -> None:
        self._polls.difference_update([one for one in self._polls if one.ending])
        self._polls.add(poll)


class MockChannel:
    """`connect` creates connections. Each of the `mock_workers` simulated workers has one; they share one greenlet."""

    name = "mock"

    def __init__(self, fleet: Fleet, agent_api: AgentApi, access: Access, mock_workers: int = 0) -> None:
        self._fleet = fleet
        self._access = access
        self._routes = RouteTable(agent_api.routes())
        self._count = mock_workers
        self._workers: dict[str, SimulatedWorker] = {}
        self._connections: dict[str, MockConnection] = {}
        self._woken: set[str] = set()
        self._signal = gevent.event.Event()
        self._greenlet: Any = None
        self._started_at = time.time()

    def connect(self, secret: str) -> MockConnection:
        return MockConnection(self._routes, self._access, secret)

    @property
    def connection_count(self) -> int:
        return len(self._connections)

    @property
    def refused_count(self) -> int:
        return 0

    def start(self) -> None:
        if self._count == 0:
            return
        self._fleet.state.bus.news.subscribe(self._wake)
        for number in range(1, self._count + 1):
            self._register(f"mock-{number}")
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def _register(self, worker_id: str) -> None:
        # The same in each run, so that a restarted manager recognises its mock workers.
        key = self._fleet.state.proof_key(messages.LAUNCHER_PREFIX + worker_id)
        secret = hmac.new(key.encode(), b"procguard-mock", hashlib.sha256).hexdigest()
        registration = messages.Registration(
            worker_id=worker_id,
            command=["simulated", worker_id],
            host=f"mock-host-{worker_id}",
            secret_sha256=messages.secret_sha256(secret),
        )
        reply = self._fleet.agents.enrolment.register(
            registration, actor=ACTOR, trusted=True, peer=PEER, now=clock.read()
        )
        report = messages.WorkerReport(worker_id=worker_id, epoch=reply.epoch)
        self._workers[reply.agent_id] = SimulatedWorker(worker_id, reply.agent_id, report)
        self._connections[reply.agent_id] = self.connect(secret)

    def _wake(self, agent_id: str) -> None:
        if agent_id in self._workers:
            self._woken.add(agent_id)
            self._signal.set()

    def _loop(self) -> None:
        interval_s = 0.0  # the first heartbeat is sent at once
        while True:
            everybody = not self._signal.wait(interval_s) or interval_s == 0.0
            self._signal.clear()
            woken, self._woken = self._woken, set()
            for agent_id in list(self._workers) if everybody else woken:
                interval_s = self._beat(self._workers[agent_id]) or interval_s or AGAIN_S

    def _beat(self, worker: SimulatedWorker) -> float:
        """Send a heartbeat, and another for each change that it caused. Returns the seconds until the next one; 0.0 if
        the manager does not accept it."""
        path = f"/api/agents/{worker.agent_id}/heartbeat"
        while True:
            wall = clock.read().wall
            body = json.dumps(messages.encode(self._heartbeat(worker, wall))).encode()
            answer = self._connections[worker.agent_id].request("POST", path, body)
            if answer.status != 200:
                return 0.0
            reply = messages.decode(messages.AgentReply, answer.data)
            if not worker.follow(reply, wall):
                return float(reply.interval_s)

    def _heartbeat(self, worker: SimulatedWorker, wall: float) -> messages.AgentHeartbeat:
        return messages.AgentHeartbeat(
            agent_id=worker.agent_id,
            fleet_id=self._fleet.state.fleet_id,
            release="mock",
            boot_id="mock",
            pid=os.getpid(),
            started_at=self._started_at,
            at=wall,
            workers=[worker.report],
            events=list(worker.events),
            results=list(worker.results),
            assignments_rev=worker.rev,
            commands_seq=worker.commands_seq,
        )
