"""A gang on simulated hosts, which follow their newest assignments as agents and runners do, lose power, and are cut
off.

A host runs a member only as the protocol allows: told to run, under the epoch of its assignment, with a lease of that
epoch taken out in this boot. What ran when, under which epoch, stands in `lives`: overlaps are exact.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from procguard.config.groups import GroupPolicy
from procguard.errors import Conflict
from procguard.fleet.gangs.decider import GangRecord
from remote_agent.protocol import messages
from tests.unit.fleet_world import World

GROUP = "trainers"
LEASE_S = 20.0
GRACE_S = 2.0


@dataclass
class Life:
    """One child: from its start to its end on the one clock."""

    worker_id: str
    epoch: int
    began: float
    ended: float | None = None


@dataclass
class Job:
    """One member on its host."""

    worker_id: str
    assignment: messages.Assignment | None = None
    state: messages.State = "stopped"
    generation: int = 0
    epoch: int = 0
    attempt: int = 0
    reason: str = ""
    lease: tuple[int, float] | None = None  # (epoch, until)
    life: Life | None = None
    since: float = 0.0
    last_exit: messages.ExitRecord | None = None


@dataclass
class Host:
    name: str
    world: GangWorld
    jobs: dict[str, Job] = field(default_factory=dict)
    on: bool = True
    connected: bool = True
    rev: str = ""
    boots: int = 1

    def talk(self) -> None:
        """Heartbeats until the manager has nothing new to say, as an agent does after each change."""
        for _ in range(6):
            if not self.on or not self.connected:
                return
            before = (self.rev, [(job.state, job.generation, job.epoch) for job in self.jobs.values()])
            sent = self.world.now.monotonic
            self._take(self.world.fleet.agents.heartbeat(self.name, self.heartbeat(), self.world.now), sent)
            self.obey()
            if before == (self.rev, [(job.state, job.generation, job.epoch) for job in self.jobs.values()]):
                return

    def heartbeat(self) -> messages.AgentHeartbeat:
        return messages.AgentHeartbeat(
            self.name,
            pid=self.boots,
            workers=[self._report(job) for job in self.jobs.values()],
            assignments_rev=self.rev,
            free_port=41_000 + next(self.world.ports),
        )

    def _take(self, reply: messages.AgentReply, sent: float) -> None:
        for assignment in reply.assignments or []:
            job = self.jobs.setdefault(assignment.worker_id, Job(assignment.worker_id))
            known = job.assignment
            new = (assignment.epoch, assignment.generation)
            if known is None or new >= (known.epoch, known.generation):
                job.assignment = assignment
        if reply.assignments is not None:
            self.rev = reply.assignments_rev
        for lease in reply.leases:
            job = self.jobs.setdefault(lease.worker_id, Job(lease.worker_id))
            if job.assignment is not None and lease.epoch == job.assignment.epoch:
                job.lease = (lease.epoch, sent + lease.lease_s)

    def _report(self, job: Job) -> messages.WorkerReport:
        wanted, generation, epoch = job.assignment, job.generation, job.epoch
        if wanted is not None and wanted.desired != "running" and job.life is None:
            generation, epoch = max(generation, wanted.generation), max(epoch, wanted.epoch)
        left = job.lease[1] - self.world.now.monotonic if job.lease and job.life else None
        return messages.WorkerReport(
            job.worker_id,
            state=job.state,
            generation=generation,
            epoch=epoch,
            attempt=job.attempt,
            since=job.since,
            reason=job.reason,
            lease_left_s=left,
            last_exit=job.last_exit,
        )

    def obey(self) -> None:
        """What agent and runner do by themselves."""
        now = self.world.now.monotonic
        for job in list(self.jobs.values()):
            wanted = job.assignment
            if wanted is None:
                continue
            if wanted.desired == "removed":
                self.end(job, "stopped", "removed")
                del self.jobs[job.worker_id]
                continue
            leased = wanted.lease_s is None or (
                job.lease is not None and job.lease[0] == wanted.epoch and now < job.lease[1]
            )
            if job.life is not None and wanted.desired != "running":
                job.generation = wanted.generation
                self.end(job, "stopped", "stopped by an operator")
            elif job.life is not None and job.life.epoch == wanted.epoch and not leased:
                self.end(job, "stopped", "its lease has ended")
            elif job.life is None and wanted.desired == "running" and leased and self._may_start(job, wanted):
                self._start(job, wanted)

    def _may_start(self, job: Job, wanted: messages.Assignment) -> bool:
        return wanted.generation > job.generation or job.state == "stopped"

    def _start(self, job: Job, wanted: messages.Assignment) -> None:
        job.attempt = max(job.attempt, wanted.attempt_base) + 1
        job.generation, job.epoch, job.state, job.since = (
            wanted.generation,
            wanted.epoch,
            "running",
            self.world.now.wall,
        )
        job.reason = "running"
        job.life = Life(job.worker_id, wanted.epoch, self.world.now.monotonic)
        self.world.lives.append(job.life)

    def end(self, job: Job, state: messages.State, reason: str, at: float | None = None) -> None:
        if job.life is not None:
            job.life.ended = self.world.now.monotonic if at is None else at
            job.life = None
        job.state, job.reason, job.since = state, reason, self.world.now.wall
        code = 0 if state == "exited" else 1
        job.last_exit = messages.ExitRecord(job.attempt, code, at=self.world.now.wall, reason=reason)

    def fails(self, worker_id: str, how: str = "killed by signal 9 (SIGKILL) after 5 s") -> None:
        self.end(self.jobs[worker_id], "failed", how)

    def finishes(self, worker_id: str) -> None:
        self.end(self.jobs[worker_id], "exited", "finished: exit code 0 after 5 s")

    def power_cut(self) -> None:
        self.on = False
        for job in self.jobs.values():
            alive = job.life is not None
            self.end(job, job.state, job.reason)
            if alive:
                job.state, job.reason = "stopped", "the host went down while it ran"
            job.lease = None

    def power_on(self) -> None:
        self.on, self.rev, self.boots = True, "", self.boots + 1


class GangWorld(World):
    """Three hosts with one member each, deployed as a gang, unless `declare` is given a different fleet."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.lives: list[Life] = []
        self.ports = itertools.count()
        settings.setdefault("groups", {GROUP: GroupPolicy(restart="gang", rendezvous="torch")})
        super().__init__(directory, **settings)
        self.hosts = {name: Host(name, self) for name in ("h1", "h2", "h3")}

    def add_spare(self, name: str = "h4") -> None:
        self.hosts[name] = Host(name, self)
        self.deploy({name: {}})

    def declare(self, members: int = 3, **options: Any) -> None:
        self.deploy({f"h{n}": {f"w{n}": self.spec()} for n in range(1, members + 1)}, **options)

    @staticmethod
    def spec(**values: Any) -> dict[str, Any]:
        return {"command": "train", "group": GROUP, "lease_s": LEASE_S, "stop_grace_s": GRACE_S, **values}

    @property
    def gang(self) -> GangRecord:
        return self.fleet.gangs.records[GROUP]

    def job(self, worker_id: str) -> Job:
        """As it is on the host that has it now."""
        return self.hosts[self.fleet.state.workers_by_id[worker_id].agent_id].jobs[worker_id]

    def go_on(self, seconds: float = 0.0, step_s: float = 1.0) -> None:
        """Time passes; everybody does what is due."""
        until = self.now.monotonic + seconds
        while True:
            for host in self.hosts.values():
                if host.on:
                    host.obey()
                host.talk()
            self.watch()
            self.fleet.gangs.tick(self.now)
            for host in self.hosts.values():
                host.talk()
            if self.now.monotonic >= until:
                return
            self.pass_time(step_s)

    def watch(self) -> None:
        """The monitor's findings about silent agents."""
        for name, host in self.hosts.items():
            seen = self.fleet.state.agent_status.get(name)
            if seen is None or (host.on and host.connected):
                continue
            silent_s = self.now.monotonic - (seen.last_seen if seen.last_seen is not None else self.now.monotonic)
            if seen.state == "connected" and silent_s > self.settings.heartbeat_timeout_s:
                self.fleet.agents.mark(name, "unreachable", "no heartbeat", self.now)

    def running(self) -> list[str]:
        return sorted(life.worker_id for life in self.lives if life.ended is None)

    def give_to_spare(self, worker_id: str, name: str = "h4") -> bool:
        """What the failure handler does with the task of a lost host; False: it may not, yet."""
        worker = self.fleet.state.workers_by_id[worker_id]
        if self.fleet.state.agent_status[name].state != "connected" or worker.agent_id == name:
            return False
        try:
            with self.changing("failure handler") as tx:
                self.fleet.placement.reassign(tx, worker, name, "its host is lost", actor="failure handler")
        except Conflict:
            return False
        return True

    def epochs(self) -> set[int]:
        return {life.epoch for life in self.lives if life.ended is None}

    def mixed_s(self) -> float:
        """How long children of different epochs lived at the same time."""
        total = 0.0
        for one, other in itertools.combinations(self.lives, 2):
            if one.epoch != other.epoch:
                until = min(one.ended or self.now.monotonic, other.ended or self.now.monotonic)
                total += max(0.0, until - max(one.began, other.began))
        return total
