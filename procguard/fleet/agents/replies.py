"""Builds replies to agents and plain launchers, with the durable changes that they do not have yet."""

from __future__ import annotations

from procguard.fleet.agents.assignments import AssignmentBuilder
from procguard.fleet.agents.log_ranges import LogRanges
from procguard.fleet.agents.log_search import LogSearches
from procguard.fleet.agents.resync import StateResync
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import WorkerObserved, WorkerRecord
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import NotDurable
from remote_agent.protocol import messages


class ReplyBuilder:
    def __init__(
        self,
        state: FleetState,
        assignments: AssignmentBuilder,
        log_searches: LogSearches,
        log_ranges: LogRanges,
        resync: StateResync,
    ) -> None:
        self._state = state
        self._assignments = assignments
        self._log_searches, self._log_ranges = log_searches, log_ranges
        self._resync = resync

    def news_for_agent(self, agent_id: str, rev: str, seq: int, now: Now) -> messages.AgentReply | None:
        """The durable changes to send to this agent. None if there are none, or if none may be sent yet."""
        observed = self._state.agent_status[agent_id]
        if observed.last_seen is None:
            # Its long poll came before its first heartbeat since this manager started. Which workers run there, and
            # thus the assignments that it has, is not known yet; the reply to the heartbeat contains all changes.
            return None
        if self._state.durability.unwritten or self._resync.open(now):
            return None
        try:
            self._state.make_durable_for(agent_id)
        except NotDurable:
            return None
        if not self._state.leadership.may_direct():
            return None
        commands = self._state.command_queue.undelivered(agent_id, seq, observed.session)
        current = self._assignments.rev(agent_id)
        searches = self._log_searches.for_agent(agent_id, now)
        ranges = self._log_ranges.for_agent(agent_id, now)
        if not commands and not searches and not ranges and rev == current:
            return None
        reply = self.base(agent_id)
        reply.searches, reply.ranges = searches, ranges
        if rev != current:
            reply.assignments = self._assignments.of(agent_id)
        for record in commands:
            reply.commands.append(self._state.command_queue.message(record, now))
            self._state.command_queue.delivered(record, observed.session)
        return reply

    def base(self, agent_id: str) -> messages.AgentReply:
        state, settings, cordons = self._state, self._state.settings, self._state.agents_by_id[agent_id].gpu_cordons
        return messages.AgentReply(
            state.fleet_id,
            state.interval_s(agent_id),
            self._assignments.rev(agent_id),
            keep_local_bytes=settings.keep_local_bytes,
            keep_attempts=settings.keep_attempts,
            log_gather_s=settings.log_gather_s(len(state.workers_by_id)),
            managers=[*state.leadership.manager_urls()],
            term=state.leadership.term,
            cordoned_gpus=sorted(cordons) if cordons else [],
        )

    def nothing_new(self, rev: str) -> messages.AgentReply:
        leadership = self._state.leadership
        managers = list(leadership.manager_urls())
        return messages.AgentReply(self._state.fleet_id, assignments_rev=rev, managers=managers, term=leadership.term)

    def news_for_worker(self, worker_id: str, now: Now) -> messages.WorkerReply | None:
        """The changes to send to this plain launcher; None if there are none."""
        worker = self._state.find(worker_id)
        if not self._state.command_queue.waits_for(worker_id) or not self._state.leadership.may_direct():
            return None
        session = (0, 0.0)
        commands = [
            record
            for record in self._state.command_queue.undelivered(worker.agent_id, 2**62, session)
            if record.worker_id == worker_id
        ]
        if not commands:
            return None
        reply = self.worker_base(worker)
        for record in commands:
            reply.commands.append(self._state.command_queue.message(record, now))
            self._state.command_queue.delivered(record, session)
        return reply

    def usual_for_worker(self, worker: WorkerRecord, observed: WorkerObserved) -> messages.WorkerReply:
        """The reply without changes. The same object is returned while it is valid, so that it is encoded only once."""
        sent, interval_s = observed.last_reply, self._state.interval_s(worker.agent_id)
        if sent is None or (sent.desired, sent.epoch, sent.interval_s) != (worker.desired, worker.epoch, interval_s):
            sent = observed.last_reply = self.worker_base(worker)
        return sent

    def worker_base(self, worker: WorkerRecord) -> messages.WorkerReply:
        leadership, interval_s = self._state.leadership, self._state.interval_s(worker.agent_id)
        reply = messages.WorkerReply(worker.worker_id, worker.desired, worker.epoch, interval_s)
        reply.managers, reply.term = list(leadership.manager_urls()), leadership.term
        return reply
