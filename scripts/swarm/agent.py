"""A simulated agent: the real session logic (`remote_agent.agent.session`: heartbeats, retries) over connections of the
event loop, with simulated workers.

Owns one agent: its connections, their authentication, and the commands that it executes. It has its own credentials,
as deployed. Knows nothing about other agents.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from typing import Any

from remote_agent.agent.session import COALESCE_S, ManagerSession
from remote_agent.protocol import leadership, messages, session
from remote_agent.transport.addresses import Addresses
from remote_agent.transport.client import AgentCredentials
from remote_agent.transport.http import quote
from remote_agent.transport.outcomes import (
    EXTRA_TIMEOUT_S,
    REQUEST_TIMEOUT_S,
    LinkDown,
    Reply,
    Unknown,
    UnprovenManager,
    extra_timeout_s,
)
from scripts.swarm.behaviour import Behaviour
from scripts.swarm.loop import Loop, Wire
from scripts.swarm.tally import Tally
from scripts.swarm.worker import MEMORY_BYTES, SimulatedWorker

MAX_EVENTS = 500  # per heartbeat, as in the real agent
COMMAND_LIFETIME_S = 60.0  # ttl_s of a new command; its age is the difference
LOG_POST_BYTES = 64 * 1024
LOG_EVERY_S = 0.5
LOG_POLL_S = 0.1  # interval at which a real agent checks the output of its workers
BOOT_ID = "5ca1ab1e-0000-4000-8000-000000000001"

Job = Callable[[Any], Any]


class WireCaller:
    """Replaces `remote_agent.transport.caller.Caller` for the session, without a thread: sends one request at a time
    over a keep-alive connection, on which the manager must first prove its identity. The rules are those of
    link.Connection: a keep-alive connection that turns out to be closed is opened once more, and a failed proof is
    reported as UnprovenManager."""

    def __init__(self, agent: SimulatedAgent, name: str) -> None:
        self.busy = False
        self._agent = agent
        self._name = name
        self._wire = Wire(agent.loop, agent.address, self._answered, self._lost, agent.tally.connected, agent.source)
        self._tag = ""
        self._request: tuple[str, str, bytes | None] = ("", "", None)
        self._session: session.ClientSession | None = None
        self._timeout_s = REQUEST_TIMEOUT_S
        self._sent = 0.0
        self._timeouts = 0  # consecutive ones
        self._nonce = ""  # set while a proof is pending
        self._reused = False

    def start(self) -> None:
        pass

    def end(self) -> None:
        self._wire.close()
        self.busy = False

    def submit(self, tag: str, job: Job) -> None:
        assert not self.busy, "one request at a time"
        self.busy, self._tag = True, tag
        job(self)  # calls `request`

    def request(
        self, method: str, path: str, body: bytes | None = None, *, timeout_s: float = REQUEST_TIMEOUT_S
    ) -> None:
        """Like link.Connection.request, but the event loop delivers the response."""
        self._request = (method, path, body)
        self._timeout_s = timeout_s + self._extra_timeout_s()
        self._reused = self._wire.is_open
        self._go()

    def break_off(self) -> None:
        """Simulate that the network resets this connection."""
        if self._wire.is_open:
            self._wire.fail("the connection was reset")

    def _go(self) -> None:
        self._sent = time.monotonic()
        if self._wire.is_open:
            self._wire.send(self._signed(), self._timeout_s)
            return
        self._session = None
        self._nonce = session.new_nonce()
        mine = self._agent.credentials
        query = f"/api/hello?agent={quote(mine.agent_id)}&nonce={self._nonce}"
        self._wire.send(self._agent.head("GET", query, None), REQUEST_TIMEOUT_S + self._extra_timeout_s())

    def _extra_timeout_s(self) -> float:
        """As in link.Connection, for a kernel that has acknowledged the request."""
        return extra_timeout_s(self._timeouts) if self._agent.several_managers else EXTRA_TIMEOUT_S

    def _answered(self, status: int, body: bytes) -> None:
        try:
            data = json.loads(body) if body else {}
        except ValueError:
            data = {}
        if not self._nonce:
            if self._session is not None:
                self._session.opened = True
                if self._agent.addresses.learn(leadership.read_term(data) or 0, []):
                    self._agent.tally.followed_at = time.monotonic()
            self._agent.tally.answered(self._name, self._sent, status)
            self._timeouts = 0
            if data.get("term"):
                self._agent.several_managers = True
            self._deliver(Reply(status, data))
            return
        trouble = self._check_proof(status, data)
        self._nonce = ""
        if trouble is not None:
            self._wire.close()
            self._deliver(trouble)
            return
        self._sent = time.monotonic()
        self._wire.send(self._signed(), self._timeout_s)

    def _signed(self) -> bytes:
        """The request with its MAC. Responses are not verified."""
        assert self._session is not None
        method, path, body = self._request
        headers = "".join(f"{name}: {value}\r\n" for name, value in self._session.sign(method, path, body).items())
        head = self._agent.head(method, path, body)
        return head[:-2] + headers.encode() + b"\r\n" + (body or b"")

    def _check_proof(self, status: int, data: dict[str, Any]) -> LinkDown | None:
        mine = self._agent.credentials
        if status != 200:
            return LinkDown(f"hello: HTTP {status}")
        if data.get("fleet_id") != mine.fleet_id:
            return UnprovenManager(f"the manager of fleet {data.get('fleet_id')}, not of {mine.fleet_id}")
        offer = session.Offer.read(data.get("session"))
        if offer is None:
            return Unknown(f"the manager does not know agent {mine.agent_id}")
        shared = session.handshake(mine.proof_key, mine.fleet_id, mine.agent_id, self._nonce, offer.id)
        if offer.proof != session.manager_proof(shared, "", offer.uid, offer.machine):
            return UnprovenManager("it cannot prove that it is the manager; the secret was not sent")
        self._session = session.ClientSession(mine.agent_id, mine.secret, self._nonce, offer, shared)
        return None

    def _lost(self, why: str, timed_out: bool) -> None:
        self._nonce = ""
        self._timeouts += timed_out
        self._agent.tally.losses += 1
        if not self.busy:
            return  # between two requests: the next one reopens the connection
        if self._reused and not timed_out:
            self._reused = False
            self._go()
            return
        self._deliver(LinkDown(why))

    def _deliver(self, outcome: Any) -> None:
        self._agent.outcome(self._tag, outcome)


class SimulatedAgent:
    """One simulated agent. After `start`, the event loop runs it. `kill`, `silence` and `come_back` simulate events on
    its host."""

    def __init__(
        self,
        loop: Loop,
        address: tuple[str, int],
        netloc: str,
        credentials: AgentCredentials,
        worker_ids: list[str],
        behaviour: Behaviour,
        tally: Tally,
        chance: random.Random,
        source: str = "",
    ) -> None:
        self.loop, self.address, self.tally, self.source = loop, address, tally, source
        self.credentials = credentials
        self._netloc = netloc
        self._behaviour = behaviour
        self._chance = chance
        self.workers = {one: SimulatedWorker(one, behaviour, chance) for one in worker_ids}
        self._state = "off"  # off, on, silent
        self.several_managers = False
        self._due = float("inf")
        self._facts = messages.encode(
            messages.HostFacts(credentials.agent_id, "Simulated 1", "3.11.0", "swarm", 64, MEMORY_BYTES)
        )
        self._log_wire = Wire(loop, address, self._log_answered, self._log_lost, source=source)
        self._log_worker: SimulatedWorker | None = None
        self._log_sent = 0.0
        self._log_not_before = 0.0
        self._log_gather_s = LOG_POLL_S
        self._log_served: set[str] = set()
        self._new_process()

    def _new_process(self) -> None:
        """Reset the state to that of a new agent process, which knows only what is on disk (workers, events)."""
        self._pid = self._chance.randrange(1000, 4_000_000)
        self._started_at = time.time()
        self._rev, self._seq = "", 0
        self._results: dict[str, messages.CommandResult] = {}
        self._sent_results: list[str] = []
        self._queue: dict[str, tuple[messages.Command, float]] = {}  # starts and stops: id -> (command, accepted)
        self._beat_sent = 0.0
        self._callers: list[WireCaller] = []
        self._search = self._make_caller("search")
        self.addresses = Addresses(["http://" + self._netloc])
        self._link = ManagerSession(
            self.credentials,
            self.addresses,
            lambda _tag, _outcome: None,
            build=self._build,
            take=self._take,
            cursor=lambda: (self._rev, self._seq),
            link_changed=lambda _trouble: None,
            make_caller=self._make_caller,  # type: ignore[arg-type]
        )

    def _make_caller(self, name: str) -> WireCaller:
        caller = WireCaller(self, name)
        self._callers.append(caller)
        return caller

    # --------------------------------------------------------------------------------------------- simulated events

    @property
    def state(self) -> str:
        return self._state

    @property
    def term(self) -> int:
        """The term of the newest leader that has answered it; 0: a single manager, or none yet."""
        return self.addresses.term

    @property
    def linked(self) -> bool:
        """Whether its newest heartbeat was answered."""
        return self._state == "on" and self._link.up

    def start(self) -> None:
        self._state = "on"
        self._wake(time.monotonic())

    def kill(self) -> None:
        """The agent's process is killed; its workers' children keep running."""
        self._hang_up()
        self._state = "off"

    def silence(self) -> None:
        """The agent hangs: it closes nothing, sends nothing and reads nothing."""
        self._state = "silent"

    def come_back(self) -> None:
        if self._state == "off":
            self._new_process()
            self.start()
        elif self._state == "silent":
            self.start()

    def storm(self) -> None:
        """All its connections break, as when a switch restarts."""
        for caller in self._callers:
            caller.break_off()
        self._log_wire.close()
        self._log_worker = None

    def happened(self, now: float) -> None:
        """Its workers were changed from outside, for example crashed."""
        if self._state == "on":
            self._after(now)

    def _hang_up(self) -> None:
        for caller in self._callers:
            caller.end()
        self._log_wire.close()
        self._log_worker = None

    end = kill

    # ---------------------------------------------------------------------------------------------------- its own loop

    def _wake(self, at: float) -> None:
        if at < self._due:
            self._due = at
            self.loop.call_at(at, lambda: self._run(at))

    def _run(self, at: float) -> None:
        if self._due != at:
            return  # another timer has replaced this one
        self._due = float("inf")
        if self._state == "on":
            self._tick(time.monotonic())

    def _tick(self, now: float) -> None:
        for worker in self.workers.values():
            if worker.next_at() <= now:
                worker.step(now)
        self._after(now)

    def _after(self, now: float) -> None:
        """After every change: send news soon, count finished commands, and schedule the next wake-up."""
        for worker in self.workers.values():
            if worker.changed:
                worker.changed = False
                self._link.changed(now)
        if self._queue:
            self._count_obeyed(now)
        self._link.tick(now)
        due = min([self._link.next_at(), *(worker.next_at() for worker in self.workers.values())])
        if self._behaviour.log_lines_per_s > 0 and self._log_worker is None:
            self._ship_logs(now)
            due = min(due, now + LOG_EVERY_S)
        self._wake(max(due, now + 0.001))

    def outcome(self, tag: str, outcome: Any) -> None:
        now = time.monotonic()
        if self._state != "on":  # silent: received data is read after its return
            if self._state == "silent":
                self.loop.call_at(now + 0.5, lambda: self.outcome(tag, outcome))
            return
        if tag == "search":
            self._search.end()  # rare requests: no connection is kept open
            return
        self._link.outcome(tag, outcome, now)
        if isinstance(outcome, LinkDown):
            self.tally.failed(tag, outcome)
        self._after(now)

    # ---------------------------------------------------------------------------------------------------- messages

    def head(self, method: str, path: str, body: bytes | None, *, secret: bool = False) -> bytes:
        """The head of a request. `secret`: include the bearer secret, as a custom launcher does."""
        text = f"{method} {path} HTTP/1.1\r\nHost: {self._netloc}\r\nAccept-Encoding: identity\r\n"
        if secret:
            mine = self.credentials
            text += f"Authorization: Bearer {mine.secret}\r\nX-ProcGuard-Agent: {mine.agent_id}\r\n"
        if body is not None:
            text += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        return (text + "\r\n").encode("latin-1")

    def _build(self) -> dict[str, Any]:
        now = time.monotonic()
        self._beat_sent = now
        events: list[messages.WorkerEvent] = []
        for worker in self.workers.values():
            worker.refresh(now)
            if worker.events and len(events) < MAX_EVENTS:
                events += worker.events[: MAX_EVENTS - len(events)]
        self._sent_results = list(self._results)
        busy = sum(worker.report.usage.cpu_percent for worker in self.workers.values() if worker.report.usage)
        beat = {
            "agent_id": self.credentials.agent_id,
            "fleet_id": self.credentials.fleet_id,
            "protocol": messages.PROTOCOL_VERSION,
            "release": "swarm",
            "boot_id": BOOT_ID,
            "pid": self._pid,
            "started_at": self._started_at,
            "at": time.time(),
            "facts": self._facts,
            "usage": {
                "cpu_percent": round(busy / 64, 2),
                "load1": round(busy / 100, 2),
                "memory_used_bytes": MEMORY_BYTES // 4,
                "disk_free_bytes": 400 * 2**30,
                "disk_total_bytes": 1000 * 2**30,
                "gpus": self._gpus(),
            },
            "workers": [messages.encode_short(worker.report) for worker in self.workers.values()],
            "events": [messages.encode_short(event) for event in events],
            "results": [messages.encode(result) for result in self._results.values()],
            "assignments_rev": self._rev,
            "commands_seq": self._seq,
        }
        self.tally.beats_sent += 1
        return beat

    def _gpus(self) -> list[dict[str, Any]]:
        """The host's GPUs. Of every eight, one is used by a process that belongs to no worker, one has full memory and
        no load, and the others are idle unless assigned to a worker."""
        running = [worker for worker in self.workers.values() if worker.report.usage is not None]
        held = {index: worker for worker in running for index in worker.report.usage.gpus or []}  # type: ignore[union-attr]
        return [messages.encode(self._gpu(index, held.get(index))) for index in range(self._behaviour.gpus_per_host)]

    def _gpu(self, index: int, worker: SimulatedWorker | None) -> messages.GpuUsage:
        gpu = messages.GpuUsage(index, f"GPU-{self.credentials.agent_id}-{index}", "Simulated H100", 0.0, 600 << 20)
        gpu.memory_total_bytes, gpu.power_w, gpu.power_limit_w, gpu.temperature_c = 80 << 30, 70.0, 700.0, 34.0 + index
        usage = worker.report.usage if worker else None
        if worker is not None and usage is not None:
            gpu.worker_id = worker.worker_id
            gpu.utilization_percent = usage.gpu_percent
            gpu.memory_used_bytes = int(40 + (usage.gpu_percent or 0) / 4) << 30
            gpu.temperature_c, gpu.power_w = 70.0, 560.0
            gpu.processes = [messages.GpuProcess(worker.report.pid or 1, 39 << 30, "python", "", worker.worker_id)]
        elif index % 8 == 6:
            gpu.utilization_percent, gpu.memory_used_bytes = 88.0, 20 << 30
            gpu.processes = [messages.GpuProcess(4242, 19 << 30, "python", "somebody")]
        elif index % 8 == 7:
            gpu.memory_used_bytes = 71 << 30
        return gpu

    def _take(self, reply: messages.AgentReply, _asked_ns: int) -> None:
        now = time.monotonic()
        for command_id in self._sent_results:
            self._results.pop(command_id, None)
        self._sent_results = []
        for worker_id, seq in reply.events_acked.items():
            if worker_id in self.workers:
                self.workers[worker_id].acked(seq)
        if reply.log_gather_s is not None:
            self._log_gather_s = max(LOG_POLL_S, reply.log_gather_s)
        for command in sorted(reply.commands, key=lambda one: one.seq):
            self._obey(command, now)
        if reply.assignments is not None:
            self._apply(reply.assignments, now)
            self._rev = reply.assignments_rev
            self._link.changed(now)
        for lease in reply.leases:
            if lease.worker_id in self.workers:
                self.workers[lease.worker_id].grant(lease, self._beat_sent)
        for search in reply.searches:
            self._search_logs(search)

    def _apply(self, assignments: list[messages.Assignment], now: float) -> None:
        for assignment in assignments:
            worker = self.workers.get(assignment.worker_id)
            if worker is None:
                if assignment.desired == "removed":
                    continue
                worker = SimulatedWorker(assignment.worker_id, self._behaviour, self._chance)
                self.workers[assignment.worker_id] = worker
            worker.assign(assignment, now)
        for worker_id in [one for one, worker in self.workers.items() if worker.gone]:
            del self.workers[worker_id]

    def _obey(self, command: messages.Command, now: float) -> None:
        self._seq = max(self._seq, command.seq)
        accepted = now - max(0.0, COMMAND_LIFETIME_S - command.ttl_s)
        self.tally.command_came(now - accepted)
        worker = self.workers.get(command.worker_id)
        if command.command in ("start", "stop"):
            self._queue[command.command_id] = (command, accepted)
            return
        if command.command_id in self._results:
            return
        if worker is None:
            status, message = "failed", f"no worker {command.worker_id} on this host"
        elif command.command == "restart":
            status, message = worker.restart(command.attempt, now)
        else:
            status, message = worker.kill(command.attempt, now, command.generation)
        self._results[command.command_id] = messages.CommandResult(command.command_id, status, message)  # type: ignore[arg-type]
        self.tally.command_ended(status, now - accepted)
        self._link.changed(now)

    def _count_obeyed(self, now: float) -> None:
        for command_id, (command, accepted) in list(self._queue.items()):
            worker = self.workers.get(command.worker_id)
            reached = worker is None or (
                worker.report.generation >= command.generation
                and (
                    worker.report.state in ("running", "exited")
                    if command.command == "start"
                    else not worker.report.pid
                )
            )
            superseded = worker is not None and worker.report.generation > command.generation
            if reached or superseded:
                del self._queue[command_id]
                self.tally.command_ended("done", now - accepted)

    def _search_logs(self, search: messages.LogSearch) -> None:
        """Answer a search immediately, as if each worker's log consisted of its newest line; one search at a time."""
        if self._search.busy:
            return
        flags = re.IGNORECASE if search.ignore_case else 0
        pattern = re.compile(search.pattern if search.regex else re.escape(search.pattern), flags)
        lines = []
        for worker in (self.workers[one] for one in search.workers if one in self.workers):
            text = worker.log_line()
            if match := pattern.search(text):
                offset, attempt = 0, worker.report.attempt
                found = messages.LogMatch(worker.worker_id, attempt, "out", offset, text, *match.span(), time.time())
                lines.append(found)
        result = messages.LogSearchResult(search.search_id, lines=lines[: search.max_lines], found=len(lines))
        path = f"/api/agents/{quote(self.credentials.agent_id)}/searches"
        body = json.dumps(messages.encode(result)).encode()
        self._search.submit("search", lambda caller: caller.request("POST", path, body))

    # -------------------------------------------------------------------------------------------------------- logs

    def _ship_logs(self, now: float) -> None:
        """Ship logs on a separate connection, one POST at a time, like the real shipper."""
        if now < self._log_not_before or not self._link.up:
            return
        worker = next((one for one in self.workers.values() if one.logs and one.logs[0][2]), None)
        if worker is None:
            return
        self._log_worker, self._log_sent = worker, now
        attempt, offset, data = worker.logs[0]
        body = bytes(data[:LOG_POST_BYTES])
        path = f"/api/workers/{quote(worker.worker_id)}/logs?attempt={attempt}&stream=out&offset={offset}"
        head = self.head("POST", path, body, secret=True).replace(b"application/json", b"application/octet-stream")
        self._log_wire.send(head + body, REQUEST_TIMEOUT_S)

    def _log_answered(self, status: int, body: bytes) -> None:
        now = time.monotonic()
        worker, self._log_worker = self._log_worker, None
        if worker is None:
            return
        self.tally.answered("logs", self._log_sent, status)
        if status == 200:
            attempt, offset, data = worker.logs[0]  # while bytes are unsent, the log only grows after them
            acked = int(json.loads(body)["acked"])
            done = max(0, min(len(data), acked - offset))
            del data[:done]
            self.tally.log_bytes += done
            worker.logs[0] = (attempt, offset + done, data)
            if not data and len(worker.logs) > 1:
                del worker.logs[0]
            # A worker that was just served waits for the others.
            self.workers[worker.worker_id] = self.workers.pop(worker.worker_id)
            self._log_served.add(worker.worker_id)
            if not any(
                one.logs
                and one.logs[0][2]
                and (one.worker_id not in self._log_served or len(one.logs[0][2]) > LOG_POST_BYTES)
                for one in self.workers.values()
            ):  # as in the real agent: one round over all workers, then output is collected
                self._log_served.clear()
                self._log_not_before = now + self._log_gather_s
        else:
            self._log_not_before = now + 1.0
        if self._state == "on":
            self._wake(now + COALESCE_S)

    def _log_lost(self, _why: str, _timed_out: bool) -> None:
        self._log_worker = None
        self._log_not_before = time.monotonic() + 1.0
