"""The command queue: operators' commands on their way to agents: accepted -> delivered -> done | failed | expired.

Owns the command records and their order. start and stop need no delivery (agents converge on their assignments); they
are recorded here to make their lifecycle visible. restart and kill act at most once, on one attempt.

Ten thousand commands may be open, and every heartbeat queries its own, so that frequent queries have an index.
Delivery is not durable: a new manager delivers a command once more.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator

from procguard.fleet.changes import ChangeBus
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord, CommandStatus, WorkerRecord
from procguard.fleet.tables import RecordTable
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import Reason, because, reason_of
from remote_agent.protocol import messages, states

LIFETIME_S = 60.0
KEEP_FINISHED = 5_000


class CommandQueue:
    def __init__(self, bus: ChangeBus) -> None:
        self._bus = bus
        self.table = RecordTable[CommandRecord]("commands", self._index, self._unindex)  # open ones
        self._of_agent: dict[str, dict[str, CommandRecord]] = {}  # open ones only
        self._of_worker: dict[str, dict[str, CommandRecord]] = {}  # open ones only
        self._deadlines: dict[str, float] = {}  # open restarts and kills, oldest first -> monotonic time of expiry
        self._finished: dict[str, CommandRecord] = {}
        self._delivered_to: dict[str, tuple[int, float]] = {}  # command_id -> session of the agent that has it
        self._seq = 0

    def restore(self, records: Iterable[CommandRecord], now: Now) -> None:
        """Restore the queue at the manager's start. The downtime is known only from the wall clock, so it is
        bounded."""
        for record in records:
            if record.open:
                age_s = min(max(0.0, now.wall - record.accepted_wall), LIFETIME_S)
                self._expires(record, now.monotonic + LIFETIME_S - age_s)
                self.table.restore([record])
            self._seq = max(self._seq, record.seq)

    def add(
        self,
        tx: Transaction,
        worker: WorkerRecord,
        verb: messages.Verb,
        attempt: int,
        *,
        reason: str = "",
        operation_id: str = "",
        origin: str = "",
        by_manager: bool = False,
    ) -> CommandRecord:
        # The wall clock in ms keeps seq rising across a manager that lost its state.
        self._seq = max(self._seq + 1, int(tx.now.wall * 1000))
        record = CommandRecord(
            command_id="c-" + secrets.token_hex(6),
            seq=self._seq,
            worker_id=worker.worker_id,
            agent_id=worker.agent_id,
            command=verb,
            attempt=attempt,
            generation=worker.generation,
            actor=tx.actor,
            accepted_wall=tx.now.wall,
            reason=reason,
            operation_id=operation_id,
            origin=origin,
            by_manager=by_manager,
        )
        if verb in ("start", "stop"):
            for other in self.open_of_worker(worker.worker_id):
                if other.command in ("start", "stop"):
                    self.finish(tx, other, "done", because("command.replaced", verb=verb))
        self._expires(record, tx.now.monotonic + LIFETIME_S)
        tx.add(record)
        return record

    def _expires(self, record: CommandRecord, deadline: float) -> None:
        if record.command in ("restart", "kill") and not record.by_manager:
            self._deadlines[record.command_id] = deadline

    def _index(self, record: CommandRecord) -> None:
        self._of_agent.setdefault(record.agent_id, {})[record.command_id] = record
        self._of_worker.setdefault(record.worker_id, {})[record.command_id] = record

    def _unindex(self, record: CommandRecord) -> Callable[[], object]:
        command_id = record.command_id
        deadline, session = self._deadlines.pop(command_id, None), self._delivered_to.pop(command_id, None)
        for index, key in ((self._of_agent, record.agent_id), (self._of_worker, record.worker_id)):
            found = index[key]
            del found[command_id]
            if not found:
                del index[key]

        def back() -> None:
            self._index(record)
            if deadline is not None:
                self._deadlines[command_id] = deadline
            if session is not None:
                self._delivered_to[command_id] = session

        return back

    def get(self, command_id: str) -> CommandRecord | None:
        return self.table.rows.get(command_id) or self._finished.get(command_id)

    def status(self, record: CommandRecord) -> CommandStatus:
        """The command's status as shown to users."""
        delivered = record.status == "accepted" and record.command_id in self._delivered_to
        return "delivered" if delivered else record.status

    def recent(self, worker_id: str = "", limit: int = 50) -> list[CommandRecord]:
        """The newest commands, of one worker or of all, newest first: open ones, and finished ones as far as kept."""
        held = self._of_worker.get(worker_id, {}) if worker_id else self.table.rows
        finished = (one for one in self._finished.values() if not worker_id or one.worker_id == worker_id)
        return sorted([*held.values(), *finished], key=lambda record: -record.seq)[:limit]

    def open_of_worker(self, worker_id: str) -> list[CommandRecord]:
        return list(self._of_worker.get(worker_id, {}).values())

    def by_manager(self, worker_id: str) -> list[CommandRecord]:
        """Open commands for this worker that the manager carries out itself."""
        return [record for record in self.open_of_worker(worker_id) if record.by_manager]

    def open_of_agent(self, agent_id: str) -> Iterator[CommandRecord]:
        return iter(list(self._of_agent.get(agent_id, {}).values()))

    def undelivered(self, agent_id: str, after_seq: int, session: tuple[int, float]) -> list[CommandRecord]:
        """Commands not yet delivered to this agent process, in order."""
        if agent_id not in self._of_agent:  # the usual case
            return []
        found = [
            record
            for record in self.open_of_agent(agent_id)
            if not record.by_manager
            and (record.seq > after_seq or self._delivered_to.get(record.command_id) != session)
        ]
        return sorted(found, key=lambda record: record.seq)

    def delivered(self, record: CommandRecord, session: tuple[int, float]) -> None:
        new = record.command_id not in self._delivered_to
        self._delivered_to[record.command_id] = session
        if new:
            self._bus.commands(record)

    def finish(self, tx: Transaction, record: CommandRecord, status: CommandStatus, message: Reason) -> None:
        tx.edit(record)
        record.status, record.message, record.finished_wall = status, message, tx.now.wall
        tx.remove(record)
        self._finished[record.command_id] = record
        tx.undo(lambda: self._finished.pop(record.command_id))
        while len(self._finished) > KEEP_FINISHED:
            self._finished.pop(next(iter(self._finished)))
        tx.once_over(lambda: self._bus.commands(record))

    def result(
        self, tx: Transaction, result: messages.CommandResult, agent_id: str, worker_id: str = ""
    ) -> CommandRecord | None:
        """Store an agent's result for a command that it was sent. `worker_id`: the reporter is limited to this worker.
        Returns None if the command is another's or already finished."""
        record = self.table.rows.get(result.command_id)
        if record is None or record.agent_id != agent_id or worker_id not in ("", record.worker_id):
            return None
        if record.by_manager:
            return None
        self.finish(tx, record, result.status, reason_of(result.message))
        return record

    def waits_for(self, worker_id: str) -> bool:
        """Whether a command for this worker is unfinished."""
        return worker_id in self._of_worker

    def converged(self, tx: Transaction, report: messages.WorkerReport) -> list[CommandRecord]:
        """Finish the start and stop commands that this report shows to be done."""
        done: list[CommandRecord] = []
        if report.worker_id not in self._of_worker:  # the usual case
            return done
        for record in self.open_of_worker(report.worker_id):
            if report.generation < record.generation or record.by_manager:
                continue
            stopped = record.command == "stop" and report.state in states.SETTLED
            started = record.command == "start" and report.state not in (states.STOPPED, states.STOPPING)
            if stopped or started:
                self.finish(tx, record, "done", reason_of(report.reason))
                done.append(record)
        return done

    def expire(self, tx: Transaction) -> list[CommandRecord]:
        """Expire restarts and kills that were not carried out in time. start and stop never expire, because agents
        converge."""
        late = [self.table.rows[one] for one, deadline in self._deadlines.items() if tx.now.monotonic > deadline]
        for record in late:
            self.finish(tx, record, "expired", because("command.expired", limit_s=LIFETIME_S))
        return late

    def message(self, record: CommandRecord, now: Now) -> messages.Command:
        """The command as sent to its agent. `ttl_s` is the time within which the agent may still act on it."""
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
