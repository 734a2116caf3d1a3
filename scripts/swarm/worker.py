"""A simulated worker: the states, attempts and replies of a real one, without a process.

Owns one worker on its simulated host. The decisions are the real ones (`remote_agent.runner.restart`, the table of
`remote_agent.protocol.states`); only the child is simulated. Knows no network; the time is passed in.
"""

from __future__ import annotations

import random
import time
from typing import Any

from remote_agent.protocol import messages, states
from remote_agent.protocol.reasons import because
from remote_agent.runner import restart as decider
from scripts.swarm.behaviour import Behaviour

LOG_LINE = "{at} step {number:06d} of {worker}: loss {loss:.4f}, {rate:.1f} samples/s\n"
MAX_LOG_BACKLOG_BYTES = 256 * 1024  # unsent bytes of one worker; beyond them, lines are omitted and counted
MEMORY_BYTES = 64 * 2**30
STEPS, STEPS_PER_S = 20_000, 10.0  # steps of a simulated training


class SimulatedWorker:
    """One simulated worker. `changed`: set if the manager should be informed immediately."""

    def __init__(self, worker_id: str, behaviour: Behaviour, chance: random.Random) -> None:
        self.worker_id = worker_id
        self._level = hash_of(worker_id)  # the level of its CPU and memory
        self._behaviour = behaviour
        self._chance = chance
        self.assignment: messages.Assignment | None = None
        self.report = messages.WorkerReport(worker_id)
        self.events: list[messages.WorkerEvent] = []  # not yet acknowledged
        self.changed = False
        self.logs: list[tuple[int, int, bytearray]] = []  # (attempt, offset of its first byte, unsent bytes)
        self.log_bytes_dropped = 0
        self._log_due = 0.0
        self._log_number = 0
        self._log_offset = 0
        self._policy = decider.RestartRules()
        self._digest = ""
        self._due = float("inf")  # monotonic time of the next step of its state
        self._child_since = 0.0  # monotonic
        self._held = False  # stopped by an operator: it waits for a new generation
        self._kill_at = float("inf")  # in stopping: the end of the grace period
        self._then = "stopped"  # the state after a stop: "stopped" or "starting"
        self._seq = 0
        self.lease_until = 0.0  # monotonic, of the current epoch
        self._lease_epoch = 0
        # A share of the workers fails commands, the same ones in every run with this seed.
        roll = chance.random()
        self.stubborn = roll < behaviour.stubborn
        self.refuses = behaviour.stubborn <= roll < behaviour.stubborn + behaviour.refuse
        self._deaf_once = worker_id in behaviour.deaf_once
        self._deaf_to = 0  # the generation whose stop it ignores
        self._usage_due = 0.0

    # ------------------------------------------------------------------------------------------------ requests

    def assign(self, assignment: messages.Assignment, now: float) -> None:
        known = self.assignment
        if known is not None and (assignment.epoch, assignment.generation) < (known.epoch, known.generation):
            return  # older than the known assignment: a reply that was overtaken
        self.assignment = assignment
        spec = assignment.spec
        self._policy = decider.RestartRules(messages.encode(spec.restart))
        self._digest = messages.launch_digest(spec)
        self._converge(now)

    def grant(self, lease: messages.Lease, sent: float) -> None:
        """Apply a lease, which counts from the time when the heartbeat that it answers was sent."""
        if self.assignment is None or lease.epoch < self.assignment.epoch:
            return
        self._lease_epoch, self.lease_until = lease.epoch, max(self.lease_until, sent + lease.lease_s)
        self._converge(sent)

    def restart(self, attempt: int, now: float) -> tuple[str, str]:
        """Restart exactly this attempt. Returns (status, message) of the command."""
        if self.refuses:
            return "failed", "planted: this worker refuses restarts and kills"
        if self.report.attempt != attempt or self.report.state in states.SETTLED:
            return "failed", f"meant attempt {attempt} (now: attempt {self.report.attempt}, {self.report.state})"
        if self.report.state == states.STOPPING:
            return "done", "it is being ended already"
        self._stop(now, because("asked.restart"), then="starting")
        return "done", ""

    def kill(self, attempt: int, now: float, generation: int = 0) -> tuple[str, str]:
        """Kill the child. `generation`: of the desired state to stop it, which may arrive shortly after the command."""
        if self.refuses or self._is_deaf(generation):
            return "failed", "planted: this worker refuses restarts and kills"
        if self.report.state in states.SETTLED:
            return "done", f"was {self.report.state} already"
        if self.report.attempt != attempt:
            return "failed", f"meant attempt {attempt}, now: attempt {self.report.attempt}"
        if self.report.state == states.BACKOFF:
            self._then, self._held = "stopped", True
            self._stopped(now)
            return "done", ""
        if self.report.state != states.STOPPING:
            self._stop(now, because("asked.kill"), then="stopped")
        self._then, self._kill_at = "stopped", now  # nothing resists SIGKILL
        return "done", ""

    def _is_deaf(self, generation: int = 0) -> bool:
        assert self.assignment is not None
        newest = max(generation, self.assignment.generation)
        if self._deaf_once:
            self._deaf_once, self._deaf_to = False, newest
        return newest <= self._deaf_to

    def crash(self, now: float, signal: int = 9) -> None:
        """End the child, as if it had been killed."""
        if self.report.state in (states.STARTING, states.RUNNING):
            self._ended(now, decider.Ending(signal=signal, **self._how_long(now)))

    def finish(self, now: float) -> None:
        """End the child with exit code 0."""
        if self.report.state in (states.STARTING, states.RUNNING):
            self._ended(now, decider.Ending(code=0, **self._how_long(now)))

    def acked(self, seq: int) -> None:
        self.events = [event for event in self.events if event.seq > seq]

    # ------------------------------------------------------------------------------------------------------- its life

    def next_at(self) -> float:
        due = min(self._due, self._kill_at)
        if self._behaviour.log_lines_per_s > 0 and self.report.state == states.RUNNING:
            due = min(due, self._log_due)
        if self.assignment is not None and self.assignment.lease_s is not None and self._alive:
            due = min(due, self.lease_until)
        return due

    def step(self, now: float) -> None:
        """Do what is due."""
        if self._alive and self._lease_over(now) and self.report.state != states.STOPPING:
            self._stop(now, "its lease ended: nobody renewed its right to run here", then="stopped", held=False)
        if self.report.state == states.STOPPING and now >= min(self._due, self._kill_at):
            self._stopped(now)
        elif now >= self._due:
            self._due = float("inf")
            if self.report.state == states.STARTING:
                self._to(states.RUNNING, because("run.running", pid=self.report.pid))
            elif self.report.state == states.BACKOFF:
                self._start(now, "restarted")
        if self.report.state == states.RUNNING and now >= self._log_due and self._behaviour.log_lines_per_s > 0:
            self._write_log(now)

    def refresh(self, now: float) -> None:
        """Update the measurements for the heartbeat that is sent now."""
        report = self.report
        if report.state != states.RUNNING:
            report.usage = None
        elif now >= self._usage_due:
            self._usage_due = now + self._behaviour.usage_every_s
            # A random walk around a level of each worker, so that a page of them looks like a fleet.
            level = 40.0 + 55.0 * (self._level % 1000) / 1000.0
            cpu = max(0.5, min(800.0, level + 6.0 * (self._chance.random() - 0.5)))
            memory = int((0.02 + 0.08 * (self._level % 97) / 97.0) * MEMORY_BYTES)
            report.usage = messages.WorkerUsage(round(cpu, 1), memory + int(cpu * 1e5), 3, 24)
            report.metrics = self._metrics(now)
            if self._behaviour.gpus:
                report.usage.gpus = [int(self.worker_id.rpartition("-w")[2]) % 8]
                report.usage.gpu_percent = round(min(100.0, level + 5.0 * self._chance.random()), 1)
        if report.next_start_in_s is not None:
            report.next_start_in_s = round(max(0.0, self._due - now), 1)
        if self.assignment is not None and self.assignment.lease_s is not None:
            report.lease_left_s = round(max(0.0, self.lease_until - now), 1)

    def _metrics(self, now: float) -> list[messages.LogMetric]:
        """The values of the declared metrics: `step` counts towards a total, all others fall like a loss."""
        steps = int(STEPS_PER_S * (now - self._child_since))
        left_s = max(0.0, STEPS / STEPS_PER_S - (now - self._child_since))
        at = time.time()
        loss = (0.5 + self._level % 97 / 97.0) * 2.0 / (1 + steps * 0.01)
        return [
            messages.LogMetric("step", float(min(steps, STEPS)), at, float(STEPS), round(left_s, 1))
            if name == "step"
            else messages.LogMetric(name, round(loss, 4), at)
            for name in (self.assignment.spec.metrics if self.assignment else ())
        ]

    @property
    def gone(self) -> bool:
        """Whether it should be removed and has ended."""
        return self.assignment is not None and self.assignment.desired == "removed" and not self._alive

    @property
    def _alive(self) -> bool:
        return self.report.state in states.ALIVE

    # ---------------------------------------------------------------------------------------------------------- inside

    def _converge(self, now: float) -> None:
        assignment, report = self.assignment, self.report
        assert assignment is not None
        if assignment.desired == "running":
            newer = assignment.generation > report.generation
            if report.state in states.SETTLED:
                first = report.attempt == 0 or (report.state == states.STOPPED and not self._held)
                if (first or newer) and not self._lease_over(now):
                    self._start(now, because("asked.start" if newer and report.attempt else "asked.afresh"))
            elif self._alive and assignment.epoch > report.epoch and report.state != states.STOPPING:
                self._stop(now, because("asked.anew"), then="starting")
            elif report.state == states.STOPPING and newer:
                self._then = "starting"
            if report.state != states.STOPPING:
                self._up_to_date()
        elif self._alive or report.state == states.BACKOFF:
            if report.state == states.BACKOFF:
                self._then, self._held = "stopped", True
                self._stopped(now)
            elif report.state != states.STOPPING:
                self._stop(now, because("asked.stop"), then="stopped")
            else:
                self._then, self._held = "stopped", True
                if self._deaf_to and not self._is_deaf():
                    self._deaf_to, self._due = 0, now + self._behaviour.stop_takes_s
        else:
            self._held = True
            self._up_to_date()

    def _up_to_date(self) -> None:
        """Whether its state is the one that the current generation requests."""
        assert self.assignment is not None
        if (self.report.generation, self.report.epoch) != (self.assignment.generation, self.assignment.epoch):
            self.report.generation, self.report.epoch = self.assignment.generation, self.assignment.epoch
            self.changed = True

    def _lease_over(self, now: float) -> bool:
        assignment = self.assignment
        if assignment is None or assignment.lease_s is None:
            return False
        return now >= self.lease_until or self._lease_epoch < assignment.epoch

    def _start(self, now: float, reason: str) -> None:
        assert self.assignment is not None
        report = self.report
        if report.state == states.STOPPED or reason.startswith("started"):
            report.restarts = 0
        report.attempt = max(report.attempt, self.assignment.attempt_base) + 1
        report.pid = self._chance.randrange(1000, 4_000_000)
        report.launch_digest, report.next_start_in_s = self._digest, None
        self._held, self._child_since = False, now
        self._to(states.STARTING, reason)
        self._up_to_date()
        self._due = now + self._policy.start_secs
        self._log_number, self._log_offset, self._log_due = 0, 0, now

    def _stop(self, now: float, reason: str, *, then: str, held: bool = True) -> None:
        assert self.assignment is not None
        self._to(states.STOPPING, reason)
        self._then, self._held = then, held
        deaf = self.stubborn or self._is_deaf()
        self._due = float("inf") if deaf else now + self._behaviour.stop_takes_s
        self._kill_at = float("inf") if deaf else now + self.assignment.spec.stop_grace_s

    def _stopped(self, now: float) -> None:
        assert self.assignment is not None
        report = self.report
        self._due = self._kill_at = float("inf")
        if report.state == states.STOPPING:
            ending = decider.Ending(signal=15, **self._how_long(now))
            report.last_exit = self._exit_record(ending)
        if self._then == "starting" and report.state == states.STOPPING and not self._lease_over(now):
            self._start(now, because("asked.restart"))
            return
        report.pid, report.launch_digest, report.next_start_in_s = None, "", None
        self._to(states.STOPPED, report.reason if report.state == states.STOPPING else because("asked.stop"))
        self._up_to_date()
        self._then = "stopped"
        self._converge(now)

    def _ended(self, now: float, ending: decider.Ending) -> None:
        assert self.assignment is not None
        report = self.report
        report.last_exit = self._exit_record(ending)
        policy = self._policy
        if self.assignment.gang:
            policy = decider.RestartRules({**vars(policy), "policy": "never"})
        decision = decider.decide(ending, report.restarts, policy, self._chance.random())
        report.pid = None
        if decision.action == decider.RESTART:
            report.restarts_total += decision.restarts - report.restarts
            report.restarts = decision.restarts
            if decision.delay_s <= 0:
                restarts = report.restarts
                self._start(now, decision.reason)
                report.restarts = restarts
                return
            report.launch_digest, report.next_start_in_s = "", decision.delay_s
            self._to(states.BACKOFF, decision.reason)
            self._due = now + decision.delay_s
            return
        report.launch_digest = ""
        self._due = float("inf")
        self._to(states.EXITED if decision.action == decider.FINISH else states.FAILED, decision.reason)

    def _to(self, after: str, reason: str) -> None:
        report, before = self.report, self.report.state
        states.check(before, after)
        wall = time.time()
        self._seq = max(self._seq + 1, int(wall * 1000))
        event = messages.WorkerEvent(self.worker_id, self._seq, wall, report.attempt, before, after, reason)  # type: ignore[arg-type]
        if after in (states.BACKOFF, *states.SETTLED):
            event.exit = report.last_exit
        self.events.append(event)
        report.state, report.since, report.reason = after, wall, reason  # type: ignore[assignment]
        self.changed = True

    def _how_long(self, now: float) -> dict[str, Any]:
        return {"ran_s": now - self._child_since, "was_running": self.report.state == states.RUNNING}

    def _exit_record(self, ending: decider.Ending) -> messages.ExitRecord:
        return messages.ExitRecord(
            self.report.attempt,
            ending.code,
            ending.signal,
            at=time.time(),
            duration_s=round(ending.ran_s, 3),
            reason=decider.describe(ending),
        )

    def log_line(self) -> str:
        """The newest line of its log. A simulated log can be searched but is not stored."""
        rate, at = 950.0, time.strftime("%H:%M:%S")
        loss = 2.0 / (1 + self._log_number * 0.01)
        return LOG_LINE.format(at=at, number=self._log_number, worker=self.worker_id, loss=loss, rate=rate).rstrip()

    def _write_log(self, now: float) -> None:
        """Write numbered lines, so that a reader can detect lost and repeated ones."""
        rate = self._behaviour.log_lines_per_s
        lines = max(1, min(1000, int((now - self._log_due) * rate) + 1))
        self._log_due = max(self._log_due + lines / rate, now)
        if not self.logs or self.logs[-1][0] != self.report.attempt:
            self.logs = [part for part in self.logs if part[2]]
            self.logs.append((self.report.attempt, self._log_offset, bytearray()))
        buffer = self.logs[-1][2]
        at = time.strftime("%H:%M:%S")
        for _ in range(lines):
            self._log_number += 1
            line = LOG_LINE.format(
                at=at,
                number=self._log_number,
                worker=self.worker_id,
                loss=2.0 / (1 + self._log_number * 0.01) + 0.05 * self._chance.random(),
                rate=900 + 100 * self._chance.random(),
            ).encode()
            if len(buffer) > MAX_LOG_BACKLOG_BYTES:
                self.log_bytes_dropped += len(line)
                continue
            buffer += line
            self._log_offset += len(line)


def hash_of(text: str) -> int:
    """A hash that is the same in every process, unlike hash()."""
    value = 2166136261
    for byte in text.encode():
        value = ((value ^ byte) * 16777619) & 0xFFFFFFFF
    return value
