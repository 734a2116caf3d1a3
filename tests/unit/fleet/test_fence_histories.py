"""Random histories of hosts that lose power, messages and time, and of managers that die: never two instances of a
worker.

The hosts here are a model of what remote_agent promises (docs/worker.md, "When its host is cut off"), and nothing more:
worst cases where it leaves room. A child that is to stop takes its whole grace; heartbeats and their answers arrive
late, out of step, or never. The manager's side is the real one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from procguard.errors import ProcGuardError
from procguard.fleet.model.clock import Now
from procguard.fleet.recovery.handler import FailureHandler
from procguard.fleet.recovery.incident import SshProbe
from procguard.fleet.recovery.monitor import ProcessMonitor
from remote_agent.protocol import messages
from tests.sizes import LONG
from tests.unit.fleet_world import World

pytestmark = pytest.mark.slow

HISTORIES, STEPS = (400, 600) if LONG else (4, 120)
GRACE_S = 2.0


@dataclass
class Child:
    epoch: int
    generation: int
    attempt: int
    fenced: bool
    ends_at: float | None = None  # it was told to stop: SIGKILL comes then


@dataclass
class Host:
    """State on its disk and, separately, state that is lost with its power."""

    name: str
    on: bool = True
    hears: bool = True  # from the manager
    is_received: bool = True
    rev: str = ""
    assigned: dict[str, messages.Assignment] = field(default_factory=dict)
    ended: dict[str, tuple[str, int, int]] = field(default_factory=dict)  # worker -> state, generation, attempt
    attempts: dict[str, int] = field(default_factory=dict)
    children: dict[str, Child] = field(default_factory=dict)
    leases: dict[tuple[str, int], float] = field(default_factory=dict)  # worker, epoch -> until; of this boot
    outbound: list[tuple[float, messages.AgentHeartbeat]] = field(default_factory=list)
    inbound: list[tuple[float, messages.AgentReply]] = field(default_factory=list)  # when its heartbeat was sent
    boot: int = 1

    def power_cut(self) -> None:
        self.on = False
        self.children, self.leases, self.outbound, self.inbound = {}, {}, [], []

    def power_on(self) -> None:
        self.on, self.boot = True, self.boot + 1

    def beat(self, now: float) -> None:
        reports = [self._report(worker_id, one, now) for worker_id, one in self.assigned.items()]
        beat = messages.AgentHeartbeat(
            self.name, workers=reports, pid=self.boot, started_at=float(self.boot), assignments_rev=self.rev
        )
        self.outbound.append((now, beat))

    def _report(self, worker_id: str, one: messages.Assignment, now: float) -> messages.WorkerReport:
        child, left = self.children.get(worker_id), None
        if one.lease_s is not None:
            left = max(0.0, self.leases.get((worker_id, one.epoch), 0.0) - now)
        if child is not None:
            left = left if child.fenced else None
            state, generation, attempt = ("stopping" if child.ends_at else "running"), child.generation, child.attempt
            epoch = child.epoch
        else:
            state, generation, attempt = self.ended.get(worker_id, ("stopped", 0, 0))
            epoch = one.epoch
            if one.desired != "running":
                generation = max(generation, one.generation)
        return messages.WorkerReport(
            worker_id,
            state=state,
            generation=generation,
            epoch=epoch,
            attempt=attempt,
            lease_left_s=left,  # type: ignore[arg-type]
        )

    def take(self, sent_at: float, reply: messages.AgentReply) -> None:
        self.rev = reply.assignments_rev if reply.assignments is not None else self.rev
        for one in reply.assignments or ():
            known = self.assigned.get(one.worker_id)
            if known is None or (one.epoch, one.generation) >= (known.epoch, known.generation):
                self.assigned[one.worker_id] = one
        if reply.assignments is not None:
            named = {one.worker_id for one in reply.assignments}
            for worker_id in [one for one in self.assigned if one not in named and one not in self.children]:
                del self.assigned[worker_id]
        for lease in reply.leases:
            key = lease.worker_id, lease.epoch
            self.leases[key] = max(self.leases.get(key, 0.0), sent_at + lease.lease_s)

    def step(self, now: float) -> None:
        """Its agent and its runners, at this moment."""
        for worker_id, child in list(self.children.items()):
            one = self.assigned[worker_id]
            reported = one.desired != "running" or one.epoch > child.epoch
            lease_over = child.fenced and now >= self.leases.get((worker_id, child.epoch), 0.0)
            child.fenced = child.fenced or (one.lease_s is not None and not reported)
            if child.ends_at is None and (reported or lease_over):
                child.ends_at = (self.leases[worker_id, child.epoch] if lease_over else now) + GRACE_S
            if child.ends_at is not None and now >= child.ends_at:
                self._end(worker_id, "stopped", now)
        for worker_id, one in list(self.assigned.items()):
            if worker_id not in self.children:
                self._settle(worker_id, one, now)

    def _settle(self, worker_id: str, one: messages.Assignment, now: float) -> None:
        if one.desired == "removed":
            del self.assigned[worker_id]
            return
        state, generation, _ = self.ended.get(worker_id, ("stopped", 0, 0))
        final = state in ("exited", "failed") and generation >= one.generation
        leased = one.lease_s is None or now < self.leases.get((worker_id, one.epoch), 0.0)
        if one.desired == "running" and not final and leased:
            attempt = max(self.attempts.get(worker_id, 0), one.attempt_base) + 1
            self.attempts[worker_id] = attempt
            self.children[worker_id] = Child(one.epoch, one.generation, attempt, one.lease_s is not None)

    def _end(self, worker_id: str, state: str, now: float) -> None:
        """What follows needs a lease that is asked for after this end."""
        child = self.children.pop(worker_id)
        self.ended[worker_id] = (state, child.generation, child.attempt)
        self.leases = {key: until for key, until in self.leases.items() if key[0] != worker_id}
        self.inbound = [(sent_at, reply) for sent_at, reply in self.inbound if sent_at > now]

    def fail(self, worker_id: str, now: float) -> None:
        if worker_id in self.children:
            self._end(worker_id, "failed", now)


class History:
    def __init__(self, directory: Path, seed: int) -> None:
        self.dice = random.Random(seed)
        self.world = World(directory, task_reassignment=True, heartbeat_timeout_s=3.0, max_recovery_attempts=1000)
        self.hosts = {name: Host(name) for name in ("h1", "h2", "h3", "h4")}
        self.lease_s = 5.0
        self.reported: list[str] = []
        self.deploy()
        self.manage()

    def manage(self) -> None:
        self.monitor = ProcessMonitor(self.world.fleet, self.world.settings, self.world.now)
        self.silent = True
        self.failures = FailureHandler(
            self.world.fleet,
            monitor=self.monitor,
            settings=self.world.settings,
            probe=lambda _agent, _replace: SshProbe(False, "unknown", "timed out"),
            spawn=lambda task: task(),
            read_clock=lambda: self.world.now,
        )

    def deploy(self) -> None:
        fenced = {"command": "x", "on_partition": "fence", "lease_s": self.lease_s, "stop_grace_s": GRACE_S}
        workers: dict[str, dict[str, Any]] = {"h1": {"w1": fenced, "keep": {"command": "y", "stop_grace_s": GRACE_S}}}
        every = {name: workers.get(name, {}) for name in self.hosts}
        self.world.deploy(every, spares=dict.fromkeys(self.hosts, True))

    def second(self, *, calm: bool = False) -> None:
        now = self.world.pass_time(1.0)
        for host in self.hosts.values():
            if host.on:
                host.step(now.monotonic)
                host.beat(now.monotonic)
        self.deliver(now, all_of_it=calm)
        if self.silent and not self.monitor.in_grace(now):
            self.silent = False
            self.failures.open_incidents_for_silent_agents(now)
        self.failures.tick(now)
        self.world.fleet.state.durability.commit()
        self.check()

    def deliver(self, now: Now, *, all_of_it: bool = False) -> None:
        for host in self.hosts.values():
            while host.outbound and (all_of_it or self.dice.random() < 0.8):
                sent_at, beat = host.outbound.pop(0)
                if not host.is_received:
                    continue
                reply = self.world.fleet.agents.heartbeat(host.name, beat, now)
                if host.on and host.hears:
                    host.inbound.append((sent_at, reply))
            while host.on and host.inbound and (all_of_it or self.dice.random() < 0.8):
                host.take(*host.inbound.pop(0))

    def check(self) -> None:
        for worker_id in ("w1", "keep"):
            at = [host.name for host in self.hosts.values() if worker_id in host.children]
            assert len(at) <= 1, f"{worker_id} runs on {at}; {self.reported[-12:]}"

    def something(self) -> None:
        host = self.dice.choice(list(self.hosts.values()))
        worker_id = self.dice.choice(("w1", "w1", "keep"))
        what = self.dice.choice(("cut", "on", "deaf", "mute", "heal", "heal", "fail", "start", "stop", "move", "lease",
                                 "manager", "forget"))  # fmt: skip
        self.reported.append(f"{self.world.now.monotonic:.0f} {what} {host.name} {worker_id}")
        try:
            self.act(what, host, worker_id)
        except ProcGuardError:
            pass  # refused, and that is an answer

    def act(self, what: str, host: Host, worker_id: str) -> None:
        fleet, now = self.world.fleet, self.world.now
        if what == "cut":
            host.power_cut()
        elif what == "on" and not host.on:
            host.power_on()
        elif what in ("deaf", "mute", "heal"):
            host.hears, host.is_received = what != "deaf", what != "mute"
        elif what == "fail":
            host.fail(worker_id, now.monotonic)
        elif what in ("start", "stop"):
            fleet.workers.command(worker_id, what, "anna", now)
        elif what == "move":
            fleet.placement.move(worker_id, host.name, "anna", now)
        elif what == "lease":
            self.lease_s = self.dice.choice((4.0, 5.0, 9.0))
            self.deploy()
        elif what == "manager":
            self.world.restart()
            self.manage()
        elif what == "forget" and worker_id == "w1":
            fleet.workers.forget(worker_id, "anna", now)
            self.deploy()

    def heal(self) -> None:
        for host in self.hosts.values():
            host.hears = host.is_received = True
            if not host.on:
                host.power_on()


@pytest.mark.parametrize("seed", range(HISTORIES))
def test_never_two_instances_and_when_all_is_well_again_one(tmp_path: Path, seed: int) -> None:
    history = History(tmp_path, seed)
    for _ in range(STEPS):
        if history.dice.random() < 0.25:
            history.something()
        history.second()
    history.heal()
    for worker_id in ("w1", "keep"):
        history.world.fleet.workers.command(worker_id, "start", "anna", history.world.now)
    for _ in range(60):
        history.second(calm=True)
    running = {worker_id for host in history.hosts.values() for worker_id in host.children}
    assert running == {"w1", "keep"}, history.reported[-12:]
