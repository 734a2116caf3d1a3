"""The operators' commands on their way to the agents: accepted -> delivered -> done | failed | expired.

Owns the command records and their order. start and stop need no delivery of their own (agents converge on the
assignments); they are kept here so that their life can be seen. restart and kill act at most once, on one attempt.

Ten thousand commands may be open at once and every heartbeat asks for its own: whatever is asked often has an index.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord, CommandStatus, WorkerRecord
from remote_agent.protocol import messages, states

LIFETIME_S = 60.0
KEEP_FINISHED = 5_000

Watcher = Callable[[CommandRecord], None]


class Outbox:
    """`changed(record)` is told of every change, to store it."""

    def __init__(self, changed: Callable[[CommandRecord], None]) -> None:
        self._changed = changed
        self._open: dict[str, CommandRecord] = {}
        self._of_agent: dict[str, dict[str, CommandRecord]] = {}  # open ones only
        self._of_worker: dict[str, dict[str, CommandRecord]] = {}  # open ones only
        self._deadlines: dict[str, float] = {}  # open restarts and kills, oldest first: when they expire, monotonic
        self._finished: dict[str, CommandRecord] = {}
        self._delivered_to: dict[str, tuple[int, float]] = {}  # command_id -> session of the agent that has it
        self._watchers: list[Watcher] = []
        self._seq = 0

    def watch(self, watcher: Watcher) -> None:
        """`watcher(record)` after each step of a command's life but its first."""
        self._watchers.append(watcher)

    def restore(self, record: CommandRecord, now: Now) -> None:
        """At the manager's start. How long it was away only the wall clock can tell; what it tells is bounded."""
        if record.open:
            age_s = min(max(0.0, now.wall - record.accepted_wall), LIFETIME_S)
            self._index(record, now.monotonic + LIFETIME_S - age_s)
        self._seq = max(self._seq, record.seq)

    def add(
        self,
        worker: WorkerRecord,
        verb: messages.Verb,
        attempt: int,
        actor: str,
        now: Now,
        *,
        reason: str = "",
        operation_id: str = "",
        origin: str = "",
        by_manager: bool = False,
    ) -> CommandRecord:
        # The wall clock in ms keeps seq rising across a manager that lost its state.
        self._seq = max(self._seq + 1, int(now.wall * 1000))
        record = CommandRecord(
            command_id="c-" + secrets.token_hex(6),
            seq=self._seq,
            worker_id=worker.worker_id,
            agent_id=worker.agent_id,
            command=verb,
            attempt=attempt,
            generation=worker.generation,
            actor=actor,
            accepted_wall=now.wall,
            reason=reason,
            operation_id=operation_id,
            origin=origin,
            by_manager=by_manager,
        )
        if verb in ("start", "stop"):
            for other in list(self._of_worker.get(worker.worker_id, {}).values()):
                if other.command in ("start", "stop"):
                    self.finish(other, "done", f"replaced by a later {verb}", now)
        self._index(record, now.monotonic + LIFETIME_S)
        self._changed(record)
        return record

    def _index(self, record: CommandRecord, deadline: float) -> None:
        self._open[record.command_id] = record
        self._of_agent.setdefault(record.agent_id, {})[record.command_id] = record
        self._of_worker.setdefault(record.worker_id, {})[record.command_id] = record
        if record.command in ("restart", "kill") and not record.by_manager:
            self._deadlines[record.command_id] = deadline

    def _unindex(self, record: CommandRecord) -> None:
        self._open.pop(record.command_id, None)
        self._deadlines.pop(record.command_id, None)
        for index, key in ((self._of_agent, record.agent_id), (self._of_worker, record.worker_id)):
            found = index.get(key)
            if found is not None:
                found.pop(record.command_id, None)
                if not found:
                    del index[key]

    def get(self, command_id: str) -> CommandRecord | None:
        return self._open.get(command_id) or self._finished.get(command_id)

    def recent(self, worker_id: str = "", limit: int = 50) -> list[CommandRecord]:
        """The newest commands, of one worker or of all, newest first: open ones, and finished ones as far as kept."""
        held = self._of_worker.get(worker_id, {}) if worker_id else self._open
        finished = (one for one in self._finished.values() if not worker_id or one.worker_id == worker_id)
        return sorted([*held.values(), *finished], key=lambda record: -record.seq)[:limit]

    def by_manager(self, worker_id: str) -> list[CommandRecord]:
        """Open commands for this worker that the manager carries out itself."""
        return [record for record in self._of_worker.get(worker_id, {}).values() if record.by_manager]

    def all_open(self) -> list[CommandRecord]:
        return [record for of_agent in self._of_agent.values() for record in of_agent.values()]

    def open_of_agent(self, agent_id: str) -> Iterator[CommandRecord]:
        return iter(list(self._of_agent.get(agent_id, {}).values()))

    def undelivered(self, agent_id: str, after_seq: int, session: tuple[int, float]) -> list[CommandRecord]:
        """What this agent process has not been told yet, in order."""
        if agent_id not in self._of_agent:  # as nearly always
            return []
        found = [
            record
            for record in self.open_of_agent(agent_id)
            if not record.by_manager
            and (record.seq > after_seq or self._delivered_to.get(record.command_id) != session)
        ]
        return sorted(found, key=lambda record: record.seq)

    def delivered(self, record: CommandRecord, session: tuple[int, float]) -> None:
        self._delivered_to[record.command_id] = session
        if record.status == "accepted":
            record.status = "delivered"
            self._tell(record)

    def finish(self, record: CommandRecord, status: CommandStatus, message: str, now: Now) -> None:
        record.status, record.message, record.finished_wall = status, message, now.wall
        self._unindex(record)
        self._delivered_to.pop(record.command_id, None)
        self._finished[record.command_id] = record
        while len(self._finished) > KEEP_FINISHED:
            self._finished.pop(next(iter(self._finished)))
        self._changed(record)
        self._tell(record)

    def _tell(self, record: CommandRecord) -> None:
        for watcher in self._watchers:
            watcher(record)

    def result(
        self, result: messages.CommandResult, now: Now, agent_id: str, worker_id: str = ""
    ) -> CommandRecord | None:
        """Take an agent's word on a command that it was sent (`worker_id`: who speaks for that worker alone); None if
        it is not its own, or was finished already."""
        record = self._open.get(result.command_id)
        if record is None or record.agent_id != agent_id or worker_id not in ("", record.worker_id):
            return None
        if record.by_manager:
            return None
        self.finish(record, result.status, result.message, now)
        return record

    def waits_for(self, worker_id: str) -> bool:
        """Whether a command to this worker is not finished."""
        return worker_id in self._of_worker

    def converged(self, report: messages.WorkerReport, now: Now) -> list[CommandRecord]:
        """Finish the start and stop commands that this report shows to be done."""
        done: list[CommandRecord] = []
        if report.worker_id not in self._of_worker:  # as nearly always
            return done
        for record in list(self._of_worker[report.worker_id].values()):
            if report.generation < record.generation or record.by_manager:
                continue
            stopped = record.command == "stop" and report.state in states.SETTLED
            started = record.command == "start" and report.state not in (states.STOPPED, states.STOPPING)
            if stopped or started:
                self.finish(record, "done", report.reason, now)
                done.append(record)
        return done

    def expire(self, now: Now) -> list[CommandRecord]:
        """End the restarts and kills that nobody carried out in time. start and stop never expire: they converge."""
        late = [self._open[command_id] for command_id, deadline in self._deadlines.items() if now.monotonic > deadline]
        for record in late:
            self.finish(record, "expired", f"not carried out within {LIFETIME_S:.0f} s; nothing was done", now)
        return late

    def message(self, record: CommandRecord, now: Now) -> messages.Command:
        """The command as its agent is told it. By `ttl_s` the agent knows how long it may still act on it."""
        deadline = self._deadlines.get(record.command_id, now.monotonic + LIFETIME_S)  # start and stop have none
        return messages.Command(
            seq=record.seq,
            command_id=record.command_id,
            worker_id=record.worker_id,
            command=record.command,
            attempt=record.attempt,
            ttl_s=round(max(0.0, deadline - now.monotonic), 3),
            generation=record.generation,
        )
