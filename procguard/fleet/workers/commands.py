"""Operators' commands to workers: start, stop, restart, kill, of one worker or of a batch's.

Owns what a command changes of what is wanted of a worker. Its way to the agent is the outbox's; the members of a gang
are commanded together (fleet/gangs/controller.py).
"""

from __future__ import annotations

from procguard.errors import Conflict, UsageError
from procguard.fleet.gangs.controller import Asked
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import CommandRecord, settled
from procguard.fleet.parts import FleetParts
from remote_agent.protocol import messages


class WorkerCommands:
    def __init__(self, fleet: FleetParts) -> None:
        self._fleet = fleet

    def command(
        self, worker_id: str, verb: str, actor: str, now: Now, reason: str = "", origin: str = ""
    ) -> CommandRecord:
        """Accept a start, stop, restart or kill; durable. start and stop converge, restart and kill mean the attempt
        that is alive now. `origin`: from where it was asked, for the history."""
        worker = self._fleet.find(worker_id)
        record = self.accept(worker_id, verb, actor, now, reason, origin=origin)
        self._fleet.commit()
        self._fleet.notify("workers", worker_id, self._fleet.worker_view(worker))
        return record

    def accept(
        self,
        worker_id: str,
        verb: str,
        actor: str,
        now: Now,
        reason: str = "",
        operation_id: str = "",
        origin: str = "",
    ) -> CommandRecord:
        """A command that its caller makes durable and shows: an operation accepts a hundred with one commit."""
        worker = self._fleet.find(worker_id)
        if verb not in messages.VERBS:
            raise UsageError(
                f"unknown command {verb!r} for {worker_id}",
                f"use one of {', '.join(messages.VERBS)}",
                code="bad_command",
            )
        if worker.desired == "removed":
            raise Conflict(f"{worker_id} is being removed", "deploy it again to use it", code="being_removed")
        report = self._fleet.worker_seen[worker_id].report
        state = report.state if report else worker.last_state
        attempt = report.attempt if report else worker.attempt
        if worker.gang:
            asked = Asked(verb, attempt, actor, reason, operation_id, origin)  # type: ignore[arg-type]
            record = self._fleet.gangs.accept(worker, asked, now)
            if verb in ("start", "restart") and self._fleet.stopped_by:
                self._fleet.hold_stopped("")
            self._fleet.command_event(record, now)
            return record
        if verb == "restart" and (settled(state) or worker.desired == "stopped"):
            verb = "start"  # nothing is alive to be restarted: a start is what was meant
        if verb in ("start", "stop", "kill"):
            worker.want("running" if verb == "start" else "stopped", by=actor, cause="operator", now=now)
            worker.generation += 1
            if worker.moving:  # a start calls the operator's move off; a stop lets it end stopped, there
                worker.moving = {} if verb == "start" else {**worker.moving, "run": False}
            self._fleet.put("workers", worker_id, worker)
            if verb == "start" and self._fleet.stopped_by:
                self._fleet.hold_stopped("")  # somebody has looked and wants work to go on
        record = self._fleet.outbox.add(
            worker,
            verb,  # type: ignore[arg-type]
            attempt,
            actor,
            now,
            reason=reason,
            operation_id=operation_id,
            origin=origin,
        )
        if verb == "kill" and settled(state):
            self._fleet.outbox.finish(record, "done", f"was {state} already; stays stopped", now)
        self._fleet.command_event(record, now)
        self._fleet.touch(worker.agent_id)
        return record
