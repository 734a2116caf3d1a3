"""A host that obeys docs/protocol.md: its agent, its runners and their children, in one object.

What is on its disk (assignments, the journal of commands) survives a reboot; leases and children do not. Every start
and end of a child is reported to the `Witness`, which checks the invariants.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from remote_agent.protocol import messages


@dataclass
class Witness:
    """Observes all hosts at once, which no component of the fleet can."""

    live: dict[str, set[str]] = field(default_factory=dict)  # worker -> hosts where a child of it lives
    place_of_epoch: dict[tuple[str, int], str] = field(default_factory=dict)
    acts: dict[str, int] = field(default_factory=dict)  # command id -> how often it was carried out

    def started(self, worker_id: str, host: str, epoch: int) -> None:
        self.live.setdefault(worker_id, set()).add(host)
        assert len(self.live[worker_id]) == 1, f"{worker_id} lives twice: {self.live[worker_id]}, epoch {epoch}"
        place = self.place_of_epoch.setdefault((worker_id, epoch), host)
        assert place == host, f"epoch {epoch} of {worker_id} was granted to {place} and to {host}"

    def ended(self, worker_id: str, host: str) -> None:
        self.live.get(worker_id, set()).discard(host)

    def acted(self, command: messages.Command) -> None:
        self.acts[command.command_id] = self.acts.get(command.command_id, 0) + 1
        assert self.acts[command.command_id] == 1, f"{command} acted twice"


@dataclass
class SimulatedInstance:
    """One worker on one host."""

    state: messages.State = "stopped"
    epoch: int = 0
    generation: int = 0
    attempt: int = 0
    assignment: messages.Assignment | None = None
    lease: tuple[int, float] | None = None  # (epoch, until); of this boot
    dies_at: float | None = None  # told to stop for want of a lease; it may take all its grace


class SimulatedHost:
    def __init__(self, name: str, witness: Witness, now: float) -> None:
        self.name = name
        self.up, self.agent_alive, self.cut = True, True, False
        self.slots: dict[str, SimulatedInstance] = {}
        self._witness = witness
        self._now = now
        self._pid = 100
        self._rev = ""
        self._seq = 0
        self._journal: dict[str, messages.CommandResult] = {}
        self._results: dict[str, messages.CommandResult] = {}

    # ------------------------------------------------------------------------------------------ what befalls it

    def pass_time(self, now: float) -> None:
        self._now = now
        for worker_id, slot in self.slots.items():
            if slot.dies_at is not None and now >= slot.dies_at:
                self._end(worker_id, slot, "stopped")
        if self.up:
            self.converge()

    def kill_agent(self) -> None:
        self.agent_alive = False

    def start_agent(self) -> None:
        if self.up and not self.agent_alive:
            self.agent_alive = True
            self._pid += 1
            self._seq = 0
            self.converge()

    def power_off(self) -> None:
        self.up = self.agent_alive = False
        for worker_id, slot in self.slots.items():
            if slot.state == "running":
                self._end(worker_id, slot, "stopped")
            slot.lease = None

    def power_on(self) -> None:
        self.up = True
        self.start_agent()

    def child_exits(self, worker_id: str, how: messages.State) -> None:
        slot = self.slots.get(worker_id)
        if self.up and slot is not None and slot.state == "running":
            self._end(worker_id, slot, how)
            self.converge()

    # ------------------------------------------------------------------------------------------ its agent's talk

    @property
    def talks(self) -> bool:
        return self.up and self.agent_alive

    def heartbeat(self) -> messages.AgentHeartbeat:
        reports = [
            messages.WorkerReport(
                worker_id,
                state=slot.state,
                generation=slot.generation,
                epoch=slot.epoch,
                attempt=slot.attempt,
                pid=1000 + slot.attempt if slot.state == "running" else None,
                lease_left_s=max(0.0, slot.lease[1] - self._now)
                if slot.lease
                else (0.0 if self._fenced(slot) else None),
                grant=slot.assignment.grant if slot.assignment and slot.assignment.epoch == slot.epoch else "",
            )
            for worker_id, slot in self.slots.items()
        ]
        return messages.AgentHeartbeat(
            self.name,
            pid=self._pid,
            workers=reports,
            assignments_rev=self._rev,
            commands_seq=self._seq,
            results=list(self._results.values()),
        )

    @property
    def known(self) -> tuple[str, int]:
        """What a poll tells: (assignments_rev, commands_seq)."""
        return self._rev, self._seq

    def take(
        self, reply: messages.AgentReply, sent_at: float, reported: list[messages.CommandResult], *, held: bool
    ) -> None:
        """An answer, perhaps late or for the second time, to what was sent at `sent_at`. `held`: of a held request."""
        if not held:
            for result in reported:
                self._results.pop(result.command_id, None)
        for lease in reply.leases:
            slot = self.slots.get(lease.worker_id)
            if slot is not None and lease.epoch >= slot.epoch:
                until = sent_at + lease.lease_s
                if slot.lease is None or (lease.epoch, until) > slot.lease:
                    slot.lease = (lease.epoch, until)
        for command in sorted(reply.commands, key=lambda one: one.seq):
            self._seq = max(self._seq, command.seq)
            if command.command in ("restart", "kill"):
                self._act(command, sent_at)
        if reply.assignments is not None:
            self._apply(reply.assignments)
            self._rev = reply.assignments_rev
        self.converge()

    def _act(self, command: messages.Command, sent_at: float) -> None:
        if command.command_id in self._journal:
            self._results[command.command_id] = self._journal[command.command_id]
            return
        slot = self.slots.get(command.worker_id)
        if self._now >= sent_at + command.ttl_s:
            status, message = "expired", "too late"
        elif slot is None or slot.state != "running" or slot.attempt != command.attempt or slot.dies_at is not None:
            status, message = "failed", "not that attempt"
        else:
            self._witness.acted(command)
            status, message = "done", ""
            self._end(command.worker_id, slot, "stopped")
            if command.command == "kill" and slot.assignment is not None:
                # The assignment that says so comes with it or after it; until then the kill itself says it.
                slot.assignment = self._stopped(slot.assignment, command.generation)
        result = messages.CommandResult(command.command_id, status, message)  # type: ignore[arg-type]
        self._journal[command.command_id] = self._results[command.command_id] = result

    @staticmethod
    def _stopped(one: messages.Assignment, generation: int) -> messages.Assignment:
        return messages.Assignment(one.worker_id, one.spec, "stopped", max(one.generation, generation), one.epoch)

    def _apply(self, assignments: list[messages.Assignment]) -> None:
        listed = {one.worker_id for one in assignments}
        for one in assignments:
            slot = self.slots.get(one.worker_id)
            if slot is None:
                if one.desired == "removed":
                    continue
                slot = self.slots[one.worker_id] = SimulatedInstance()
            old = slot.assignment
            if old is None or (one.epoch, one.generation) >= (old.epoch, old.generation):
                slot.assignment = one
        for worker_id, slot in self.slots.items():
            if worker_id not in listed:
                slot.assignment = None  # no longer this agent's to steer; what runs, runs on

    # ------------------------------------------------------------------------------------------ its runners

    def _fenced(self, slot: SimulatedInstance) -> bool:
        return slot.assignment is not None and slot.assignment.lease_s is not None

    def _has_right(self, slot: SimulatedInstance) -> bool:
        assert slot.assignment is not None
        return slot.lease is not None and slot.lease[0] == slot.assignment.epoch and slot.lease[1] > self._now

    def converge(self) -> None:
        for worker_id, slot in list(self.slots.items()):
            wanted = slot.assignment
            if slot.state == "running" and slot.dies_at is None and self._lease_is_over(slot):
                assert slot.assignment is not None
                slot.dies_at = self._now + slot.assignment.spec.stop_grace_s
            if wanted is None or not self.agent_alive:
                continue
            if wanted.desired != "running":
                if slot.state == "running":
                    self._end(worker_id, slot, "stopped")
                slot.epoch, slot.generation = max(slot.epoch, wanted.epoch), wanted.generation
                if wanted.desired == "removed":
                    del self.slots[worker_id]
                continue
            if slot.state == "running" and wanted.epoch > slot.epoch:
                self._end(worker_id, slot, "stopped")
            if slot.state in ("exited", "failed") and (wanted.epoch, wanted.generation) <= (
                slot.epoch,
                slot.generation,
            ):
                continue
            slot.generation, slot.epoch = wanted.generation, wanted.epoch
            if slot.state != "running":
                slot.state = "stopped"
                if not self._fenced(slot) or self._has_right(slot):
                    self._start(worker_id, slot, wanted)

    def _lease_is_over(self, slot: SimulatedInstance) -> bool:
        if not self._fenced(slot) or slot.lease is None:
            return False
        return slot.lease[0] < slot.epoch or slot.lease[1] <= self._now

    def _start(self, worker_id: str, slot: SimulatedInstance, wanted: messages.Assignment) -> None:
        slot.attempt = max(slot.attempt, wanted.attempt_base) + 1
        slot.state, slot.dies_at = "running", None
        self._witness.started(worker_id, self.name, wanted.epoch)

    def _end(self, worker_id: str, slot: SimulatedInstance, state: messages.State) -> None:
        slot.state, slot.dies_at = state, None
        self._witness.ended(worker_id, self.name)
