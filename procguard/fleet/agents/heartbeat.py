"""Applies agent heartbeats to the state and builds replies; also for plain launcher heartbeats.

Owns the rules by which a report changes the state. A method marked "durable" returns when its change is on disk.
"""

from __future__ import annotations

import dataclasses
import functools
import operator

from procguard.fleet.agents import host_disks
from procguard.fleet.agents.assignments import AssignmentBuilder
from procguard.fleet.agents.replies import ReplyBuilder
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.history import causes
from procguard.fleet.leadership import NotLeading
from procguard.fleet.leases import Leases
from procguard.fleet.model import epochs
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import (
    AgentObserved,
    AgentRecord,
    WorkerRecord,
    settled,
)
from procguard.fleet.state import FleetState
from procguard.fleet.transaction import Transaction
from procguard.fleet.workers import ownership
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from remote_agent.protocol import messages, states
from remote_agent.protocol.records import names

MAX_REFUSED_CLAIMS = 100  # refused claims per agent that become events, in one run of the manager
# per agent; it resends worker events, whereas excess events of other kinds are only counted
EVENTS_AT_ONCE, EVENTS_PER_S = 1_000, 20.0
EVENTS_TOGETHER = 50  # minimum number of events accepted together
CHANGES_AT_ONCE_S, CHANGES_PER_S = 10.0, 50.0  # per agent: a burst allowance, then this rate
RECORDS_OF_A_CHANGE = 50  # a heartbeat that changes more counts more than once
HIGHEST_EVENT_SEQ = 2**48  # sequence numbers start at milliseconds since 1970; this is the year 10889
# Fields of a heartbeat that are not part of the host's data: those that the host's view does not read, or reads as
# measurements.
_NOT_OF_HOST = {"agent_id", "at", "usage", "workers", "events", "results", "assignments_rev", "commands_seq", "beat"}
_OF_HOST = operator.attrgetter(*(name for name in names(messages.AgentHeartbeat) if name not in _NOT_OF_HOST))
_OF_PRESENCE = frozenset({"process", "was_connected"})  # fields of an agent's record
_CONNECTED = because("agent.connected")


class HeartbeatProcessor:
    def __init__(
        self,
        state: FleetState,
        leases: Leases,
        gangs: Gangs,
        assignments: AssignmentBuilder,
        replies: ReplyBuilder,
    ) -> None:
        self._state = state
        self._leases = leases
        self._gangs = gangs
        self._assignments = assignments
        self._replies = replies

    def take(
        self, agent_id: str, beat: messages.AgentHeartbeat, now: Now, channel: str = "http"
    ) -> messages.AgentReply:
        """Apply an agent's heartbeat, received over `channel`; durable for its events and command results."""
        agent = self._state.agent(agent_id)
        observed = self._state.agent_status[agent_id]
        observed.channel = channel
        with self._state.transaction(now, wait="tried") as tx:
            acked = self._take(tx, agent, observed, beat)
            size = tx.size
            if size:
                self._charge(observed, size, now)
            if not (beat.events or beat.results) and (not size or tx.changes_only(agent, _OF_PRESENCE)):
                # That this agent is back, or has started, acknowledges nothing and would be recorded again if lost:
                # it waits for the next commit, because thousands of agents may return at once.
                tx.wait = "nothing"
            # Heartbeats are answered even if the disk refuses writes: otherwise agents would consider the manager dead,
            # and leases would end. The manager's own round detects when the disk accepts writes again. A heartbeat
            # without news does not wait for the disk, even if changes of others are being written.
        self._show_host(agent_id, observed, beat)
        self._refuse_unless_leading(self._state.leadership.may_renew())
        reply = self._replies.news_for_agent(agent_id, beat.assignments_rev, beat.commands_seq, now)
        if reply is None:
            reply = self._replies.base(agent_id)
        if not self._state.durability.unwritten:
            reply.events_acked = acked
        if agent.rotation is not None:
            reply.rotate = agent.rotation.id
        reply.beat = beat.beat
        # last, so that nothing delays the reply after leases are granted
        reply.leases = self._leases.grants(agent_id, now)
        return reply

    def _take(
        self, tx: Transaction, agent: AgentRecord, observed: AgentObserved, beat: messages.AgentHeartbeat
    ) -> dict[str, int]:
        """Returns worker id -> highest event sequence number to acknowledge once the transaction is durable."""
        # Only the reports of the agent's own workers are stored, which limits the memory used by one agent.
        own = self._state.own_workers(agent.agent_id)
        kept = [report for report in beat.workers if report.worker_id in own]
        if len(kept) != len(beat.workers) or beat.events or beat.results:
            observed.heartbeat = dataclasses.replace(beat, workers=kept, events=[], results=[])
        else:
            observed.heartbeat = beat
        session = (beat.pid, beat.started_at)
        if session != observed.session:
            observed.session = session
            if session != agent.process:  # otherwise it is the manager that has started
                tx.edit(agent).process = session
                self._agent_started(tx, agent, beat)
            self._warn_of_strays(tx, agent, beat)
        if beat.ends and agent.kind == "launcher":
            self._launcher_ends(tx, agent, observed)
        else:
            self._mark_connected(tx, agent, observed)
        if host_disks.trouble_of(beat) != observed.disk_trouble:
            self._take_disk(tx, agent, observed, beat)
        if agent.release != beat.release:
            tx.edit(agent).release = beat.release
        acked = self._take_events(tx, agent, beat.events)
        for result in beat.results:
            self._take_result(tx, result, agent.agent_id)
        if beat.usage is not None and beat.usage.gpu_faults:
            self._state.faulty_gpus.add(agent.agent_id)
        for report in beat.workers:
            self._take_report(tx, agent, report)
        self._finish_removals(tx, agent, beat)
        self._gangs.step(tx)  # before leases are granted: workers held by their gang get none
        return acked

    def _show_host(self, agent_id: str, observed: AgentObserved, beat: messages.AgentHeartbeat) -> None:
        """Publish the host's view only if more than measurements has changed, which is rare."""
        usage = beat.usage
        shown = (
            self._state.worker_count(agent_id),
            observed.state,
            observed.reason,
            observed.channel,
            observed.address,
            observed.disk_trouble,
            (len(usage.gpus), usage.gpu_trouble) if usage is not None else None,
            _OF_HOST(beat),
        )
        if shown != observed.shown:
            observed.shown = shown
            self._state.bus.hosts(agent_id)
        elif "hosts" not in self._state.bus.unseen:
            self._state.bus.host_measures(agent_id)

    @staticmethod
    def _charge(observed: AgentObserved, records: int, now: Now) -> None:
        cost = 1 + records // RECORDS_OF_A_CHANGE
        observed.paid_until = max(observed.paid_until, now.monotonic) + cost / CHANGES_PER_S

    def wait_s(self, agent_id: str, monotonic: float) -> float:
        """Seconds until the next heartbeat of this agent may be applied; grows with the changes of earlier ones."""
        observed = self._state.agent_status.get(agent_id)
        if observed is None or observed.paid_until <= monotonic:  # nearly always
            return 0.0
        return max(0.0, observed.paid_until - CHANGES_AT_ONCE_S - monotonic)

    def poll_opened(self, agent_id: str, now: Now) -> None:
        agent, observed = self._state.agent(agent_id), self._state.agent_status[agent_id]
        observed.polls_open += 1
        observed.poll_lost_at = None
        if observed.state in ("suspect", "connected"):
            with self._state.transaction(now, wait="nothing") as tx:
                self._mark_connected(tx, agent, observed)

    def poll_closed(self, agent_id: str, now: Now, peer_closed: bool) -> None:
        """`peer_closed`: the agent's side closed the long poll, which suggests that the agent has died."""
        observed = self._state.agent_status.get(agent_id)
        if observed is None:
            return
        observed.polls_open = max(0, observed.polls_open - 1)
        if peer_closed and observed.polls_open == 0:
            observed.poll_lost_at = now.monotonic
            self._state.bus.poll_lost(agent_id)

    def _room_for_events(self, agent: AgentRecord, now: Now) -> int:
        """The number of events that this agent may still cause at this moment (rate limit)."""
        observed = self._state.agent_status[agent.agent_id]
        if observed.events_at is None:
            observed.events_left = EVENTS_AT_ONCE
        else:
            observed.events_left = min(
                EVENTS_AT_ONCE, observed.events_left + (now.monotonic - observed.events_at) * EVENTS_PER_S
            )
        observed.events_at = now.monotonic
        return int(observed.events_left)

    def _may_emit_or_count(self, tx: Transaction, agent: AgentRecord) -> bool:
        """Whether this agent may cause one more event, of a kind that is not sent again. Events that are left out are
        counted, and the next one reports their number."""
        observed = self._state.agent_status[agent.agent_id]
        if not self._room_for_events(agent, tx.now):
            observed.events_left_out += 1
            return False
        observed.events_left -= 1
        if observed.events_left_out:
            count, observed.events_left_out = observed.events_left_out, 0
            reason = because("agent.events_left_out", agent=agent.agent_id, n=count, limit=EVENTS_PER_S)
            tx.event("warning", host=agent.host, reason=reason, source=agent.agent_id)
        return True

    def _agent_started(self, tx: Transaction, agent: AgentRecord, beat: messages.AgentHeartbeat) -> None:
        if not self._may_emit_or_count(tx, agent):
            return
        process = {"agent": agent.agent_id, "pid": beat.pid, "n": len(beat.workers)}
        tx.event(
            "agent_started",
            worker_id=self._state.worker_of_launcher(agent),
            host=agent.host,
            reason=because("agent.started", release=beat.release, **process)
            if beat.release
            else because("agent.started_no_release", **process),
            source=agent.agent_id,
        )

    def _warn_of_strays(self, tx: Transaction, agent: AgentRecord, beat: messages.AgentHeartbeat) -> None:
        """Record a warning if the agent runs workers that are not assigned to it."""
        known = self._state.own_workers(agent.agent_id)
        strays = [r.worker_id for r in beat.workers if r.worker_id not in known and r.worker_id not in agent.withdrawn]
        if strays and self._may_emit_or_count(tx, agent):
            tx.event(
                "warning",
                host=agent.host,
                reason=because("agent.strays", agent=agent.agent_id, workers=strays[:100]),
                source=agent.agent_id,
            )

    def _launcher_ends(self, tx: Transaction, agent: AgentRecord, observed: AgentObserved) -> None:
        """The launcher's user ended it after its worker had stopped: missing heartbeats are no longer a failure."""
        observed.last_seen, observed.last_seen_wall = tx.now.monotonic, tx.now.wall
        if observed.state == "ended":
            return
        observed.state, observed.reason = "ended", because("agent.launcher_ended")
        tx.edit(agent)
        agent.ended_wall, agent.incident = tx.now.wall, None
        if self._may_emit_or_count(tx, agent):
            own = self._state.worker_of_launcher(agent)
            tx.event("agent_ended", worker_id=own, host=agent.host, reason=observed.reason, source=agent.agent_id)
        self._state.show_agent(tx, agent.agent_id)

    def _mark_connected(self, tx: Transaction, agent: AgentRecord, observed: AgentObserved) -> None:
        before, observed.state = observed.state, "connected"
        observed.last_seen, observed.last_seen_wall = tx.now.monotonic, tx.now.wall
        observed.reason = NONE
        if agent.ended_wall:
            tx.edit(agent).ended_wall = 0.0
        if agent.incident is not None:  # the heartbeat ends the incident
            tx.edit(agent).incident = None
        if before == "connected":
            return
        self._state.show_agent(tx, agent.agent_id)
        if before == "never" and agent.was_connected:
            return  # it is the manager that was away
        if before != "ended" or self._may_emit_or_count(tx, agent):
            tx.edit(agent).was_connected = True
            tx.event(
                "agent_connected",
                worker_id=self._state.worker_of_launcher(agent),
                host=agent.host,
                before=before,
                after="connected",
                reason=_CONNECTED,
                source=agent.agent_id,
            )

    def _take_disk(
        self, tx: Transaction, agent: AgentRecord, observed: AgentObserved, beat: messages.AgentHeartbeat
    ) -> None:
        """Record one event when the host's disk starts or stops refusing writes."""
        if (
            observed.disk_reported_at is not None
            and tx.now.monotonic - observed.disk_reported_at < host_disks.EVENT_EVERY_S
        ):
            return  # reported by one of the next heartbeats
        before, observed.disk_trouble = observed.disk_trouble, host_disks.trouble_of(beat)
        observed.disk_reported_at = tx.now.monotonic
        if observed.disk_trouble:
            kind, reason = "host_disk_full", host_disks.why(beat)
        else:
            kind, reason = "host_disk_ok", because("host.disk_ok")
        tx.event(
            kind,
            host=agent.host,
            before=before,
            after=observed.disk_trouble,
            reason=reason,
            evidence={"trouble": observed.disk_trouble or before, "path": beat.disk_path},
            source=agent.agent_id,
        )

    def _take_report(self, tx: Transaction, agent: AgentRecord, report: messages.WorkerReport) -> None:
        worker = self._state.workers_by_id.get(report.worker_id)
        if worker is None:
            if report.epoch >= self._state.first_epoch and self._has_grant(agent, report, tx.now):
                self._state.rise_above(tx, report.epoch)
            return
        if report.epoch > worker.epoch:
            self._take_claim(tx, agent, worker, report)
        if worker.agent_id != agent.agent_id:
            return
        if report.metrics:  # undeclared names would create an unbounded number of series
            report.metrics = _declared(worker, report.metrics)
        if report.epoch == worker.epoch and worker.generation < report.generation <= ownership.HIGHEST_GENERATION:
            # Sent by a manager that was killed before the change was durable, or lost with a file. Otherwise the agent
            # would consider its assignment newer than any from this manager.
            ownership.adopt(self._state, tx, worker, agent, report.epoch, report.generation)
        observed = self._state.worker_status[worker.worker_id]
        before = observed.report
        observed.report, observed.last_seen = report, tx.now.monotonic
        self._state.fresh_reports.add(report.worker_id)
        if report.attempt > 0 and (before is None or before.attempt == 0):
            seen_agent = self._state.agent_status[agent.agent_id]
            seen_agent.rev, seen_agent.interval = "", None  # its own attempt numbers are used from now on
        self._remember_lease(tx, worker, report)
        self._remember(tx, worker, report)
        for record in self._state.command_queue.converged(tx, report):
            self._state.command_event(tx, record)
        happened = before is None or _something_happened(before, report)
        if happened:
            self._gangs.worker_reported(worker)
        self._show_report(tx, worker.worker_id, None if happened else before, report)

    def _show_report(
        self, tx: Transaction, worker_id: str, before: messages.WorkerReport | None, report: messages.WorkerReport
    ) -> None:
        """`before`: None if more than measurements is known to have changed."""
        bus = self._state.bus
        awaited = worker_id in bus.awaited_workers
        if before is None:
            tx.show("workers", worker_id)
        elif awaited or "workers" not in bus.unseen:
            if not _same_but_measured(before, report) or (awaited and before != report):
                tx.show("workers", worker_id)
            elif before.usage != report.usage or before.metrics != report.metrics:
                tx.once_over(functools.partial(bus.worker_measures, worker_id))

    def _has_grant(self, agent: AgentRecord, report: messages.WorkerReport, now: Now) -> bool:
        """Whether the report carries a valid grant for its worker and epoch."""
        return epochs.believable(report.epoch, self._state.term, now.wall) and self._state.proves(
            agent.agent_id, report
        )

    def _take_claim(
        self, tx: Transaction, agent: AgentRecord, worker: WorkerRecord, report: messages.WorkerReport
    ) -> None:
        """Handle a report with a higher epoch than that in the state. Either the state was restored and is older than
        the running worker, or the report is false. The worker therefore changes its owner only with a valid grant."""
        claim = {"agent": agent.agent_id, "epoch": report.epoch, "known": worker.epoch, "host": worker.host}
        if self._has_grant(agent, report, tx.now):
            running = self._held_by_its_owner(worker, agent, report.epoch)
            if running is None:
                self._say_state(tx, agent, worker, because("state.claim_adopted", **claim))
                ownership.adopt(self._state, tx, worker, agent, report.epoch, report.generation)
                return
            contrary = because("state.claim_contrary", owner=worker.agent_id, running=running, **claim)
            self._refuse_claim(tx, agent, worker, contrary)
        elif worker.agent_id != agent.agent_id:
            self._refuse_claim(tx, agent, worker, because("state.claim_refused", **claim))
        elif report.epoch < self._state.first_epoch and not worker.gang:
            # The reporter is the owner in any case. Epochs of this run exceed all earlier ones, so that the agent
            # accepts the next assignment. The report has no other effect.
            tx.edit(worker).epoch = self._state.next_epoch(tx)
            self._say_state(tx, agent, worker, because("state.claim_new_epoch", new=worker.epoch, **claim))
        else:
            if worker.gang:
                why = because("state.claim_gang", worker=worker.worker_id, **claim)
            else:
                why = because("state.claim_ignores", **claim)
            self._refuse_claim(tx, agent, worker, why)

    def _held_by_its_owner(self, worker: WorkerRecord, agent: AgentRecord, epoch: int) -> int | None:
        """The epoch under which the connected owner runs the worker, if it is the same or higher, so that a claim of
        another agent is refused. None: the claim is valid."""
        if worker.agent_id == agent.agent_id or self._state.agent_status[worker.agent_id].state != "connected":
            return None
        report = self._state.worker_status[worker.worker_id].report
        if report is None or settled(report.state) or report.epoch < epoch:
            return None
        return report.epoch

    def _say_state(self, tx: Transaction, agent: AgentRecord, worker: WorkerRecord, reason: Reason) -> None:
        tx.event(
            "state",
            worker_id=worker.worker_id,
            host=agent.host,
            reason=reason,
            actor="manager",
            source=agent.agent_id,
        )

    def _refuse_claim(self, tx: Transaction, agent: AgentRecord, worker: WorkerRecord, reason: Reason) -> None:
        """Record one event for each worker, because the agent repeats its claim with every heartbeat."""
        refused = self._state.agent_status[agent.agent_id].refused_claims
        if worker.worker_id not in refused and len(refused) < MAX_REFUSED_CLAIMS:
            refused.add(worker.worker_id)
            tx.event("warning", worker_id=worker.worker_id, host=agent.host, reason=reason, source=agent.agent_id)

    def _remember_lease(self, tx: Transaction, worker: WorkerRecord, report: messages.WorkerReport) -> None:
        """Record whether this instance holds a lease. Durable, because a manager that starts while the host is cut off
        cannot query it."""
        leased = report.lease_left_s is not None
        if report.epoch == worker.epoch and worker.leased != leased:
            tx.edit(worker).leased = leased

    def _remember(self, tx: Transaction, worker: WorkerRecord, report: messages.WorkerReport) -> None:
        """Store what the API shows while the agent is unreachable."""
        if (worker.last_state, worker.attempt) == (report.state, report.attempt):
            return
        # A failure of another attempt is a new failure, even if its start was never reported.
        failed_now = report.state == states.FAILED and (
            worker.last_state != states.FAILED or report.attempt > worker.attempt
        )
        tx.edit(worker)
        worker.last_state, worker.attempt = report.state, max(worker.attempt, report.attempt)
        worker.last_reason, worker.last_since = reason_of(report.reason), report.since
        if failed_now and not worker.gang:  # a gang fails as a whole
            self._state.failing(tx, worker)

    def _take_events(self, tx: Transaction, agent: AgentRecord, events: list[messages.WorkerEvent]) -> dict[str, int]:
        """Add the changes of the agent's own workers to the history. Returns what is acknowledged. Events beyond its
        share are not, so the agent sends them again. Events of other workers are acknowledged and otherwise ignored."""
        acked: dict[str, int] = {}
        if not events:
            return acked
        room = self._room_for_events(agent, tx.now)
        if room < min(EVENTS_TOGETHER, len(events)):
            room = 0  # acknowledging a few at a time would make the agent send the rest again at once, each time
        for event in events:
            worker = self._state.workers_by_id.get(event.worker_id)
            own = worker is not None and worker.agent_id == agent.agent_id
            if worker is None or not own or not worker.event_seq < event.seq <= HIGHEST_EVENT_SEQ:
                acked[event.worker_id] = max(acked.get(event.worker_id, 0), event.seq)
                continue
            if room <= 0:
                break
            room -= 1
            self._state.agent_status[agent.agent_id].events_left -= 1
            acked[event.worker_id] = max(acked.get(event.worker_id, 0), event.seq)
            tx.edit(worker).event_seq = event.seq
            tx.event(
                "worker_state",
                worker_id=worker.worker_id,
                host=worker.host,
                before=event.before,
                after=event.after,
                reason=causes.true_reason(reason_of(event.reason), worker),
                attempt=event.attempt,
                at=event.at,
                actor="runner",
                cause=causes.of_worker_event(event, worker),
                evidence=causes.exit_evidence(event.exit),
                source=agent.agent_id,
            )
        return acked

    def _take_result(self, tx: Transaction, result: messages.CommandResult, agent_id: str, worker_id: str = "") -> None:
        record = self._state.command_queue.result(tx, result, agent_id, worker_id)
        if record is not None:
            self._state.command_event(tx, record)

    def _finish_removals(self, tx: Transaction, agent: AgentRecord, beat: messages.AgentHeartbeat) -> None:
        """Delete workers whose removal the agent has received and that it no longer reports."""
        removed = [one for one in self._state.own_workers(agent.agent_id).values() if one.desired == "removed"]
        if not (removed or agent.withdrawn) or beat.assignments_rev != self._assignments.rev(agent.agent_id):
            return
        present = {report.worker_id for report in beat.workers}
        for worker in removed:
            if worker.worker_id not in present:
                ownership.drop_worker(self._state, tx, worker, because("worker.removed"))
        if not present.issuperset(agent.withdrawn):
            kept = {worker_id: one for worker_id, one in agent.withdrawn.items() if worker_id in present}
            tx.edit(agent).withdrawn = kept

    def take_plain(
        self, worker_id: str, beat: messages.WorkerHeartbeat, now: Now, channel: str = "http"
    ) -> messages.WorkerReply:
        """Apply the documented single-worker heartbeat of a plain launcher by the same rules. Durable."""
        worker = self._state.find(worker_id)
        agent, observed = self._state.agents_by_id[worker.agent_id], self._state.agent_status[worker.agent_id]
        worker_status = self._state.worker_status[worker_id]
        worker_status.plain = True
        observed.channel = channel
        with self._state.transaction(now) as tx:
            self._mark_connected(tx, agent, observed)
            before = worker_status.report
            if before is not None and not tx.has_news and self._only_measured(worker, before, beat):
                usage_before = before.usage
                before.usage, worker_status.last_seen = beat.usage, now.monotonic
                self._state.fresh_reports.add(worker_id)
                bus = self._state.bus
                if worker_id in bus.awaited_workers or _gpus(usage_before) != _gpus(beat.usage):
                    tx.show("workers", worker_id)
                elif "workers" not in bus.unseen:
                    tx.once_over(functools.partial(bus.worker_measures, worker_id))
                self._refuse_unless_leading(self._state.leadership.may_direct())
                return self._replies.usual_for_worker(worker, worker_status)
            self._take_plain_report(tx, agent, worker, beat, before)
            if tx.size:
                self._charge(observed, tx.size, now)
        self._refuse_unless_leading(self._state.leadership.may_direct())
        return self._replies.news_for_worker(worker_id, now) or self._replies.worker_base(worker)

    def _refuse_unless_leading(self, allowed: bool) -> None:
        """Raises NotLeading after the report was applied, so that the agent continues with the leader."""
        if not allowed:
            raise NotLeading(self._state.leadership)

    def _take_plain_report(
        self,
        tx: Transaction,
        agent: AgentRecord,
        worker: WorkerRecord,
        beat: messages.WorkerHeartbeat,
        before: messages.WorkerReport | None,
    ) -> None:
        worker_id = worker.worker_id
        for result in beat.results:
            self._take_result(tx, result, agent.agent_id, worker_id)
        same = before is not None and before.state == beat.state
        attempt = beat.attempt if beat.attempt is not None else worker.attempt
        if beat.attempt is None and beat.pid and (before is None or before.pid != beat.pid):
            attempt = worker.attempt + 1
        report = messages.WorkerReport(
            worker_id=worker_id,
            state=beat.state,
            generation=worker.generation,
            epoch=worker.epoch,
            attempt=attempt,
            pid=beat.pid,
            since=before.since if same and before is not None else tx.now.wall,
            reason=beat.reason,
            last_exit=beat.last_exit or (before.last_exit if before else None),
            usage=beat.usage,
        )
        if not same and self._may_emit_or_count(tx, agent):
            tx.event(
                "worker_state",
                worker_id=worker_id,
                host=worker.host,
                before=before.state if before else worker.last_state,
                after=beat.state,
                reason=reason_of(beat.reason) or because("worker.launcher_said"),
                attempt=attempt,
                actor="launcher",
                cause=causes.of_exit(beat.last_exit),
                evidence=causes.exit_evidence(beat.last_exit),
                source=agent.agent_id,
            )
        self._take_report(tx, agent, report)

    def _only_measured(
        self, worker: WorkerRecord, before: messages.WorkerReport, beat: messages.WorkerHeartbeat
    ) -> bool:
        """Whether the heartbeat changes only the worker's resource usage, as nearly every one does."""
        return (
            beat.state == before.state == worker.last_state
            and before.attempt == worker.attempt
            and beat.attempt in (None, before.attempt)
            and beat.pid == before.pid
            and beat.reason == before.reason
            and before.epoch == worker.epoch
            and before.generation == worker.generation
            and not (beat.results or beat.last_exit or worker.leased)
            and not self._state.command_queue.waits_for(worker.worker_id)
        )


def _something_happened(before: messages.WorkerReport, report: messages.WorkerReport) -> bool:
    """Whether the reports differ in anything other than measurements."""
    return (
        before.state != report.state
        or before.attempt != report.attempt
        or before.generation != report.generation
        or before.epoch != report.epoch
    )


def _same_but_measured(before: messages.WorkerReport, report: messages.WorkerReport) -> bool:
    """Whether the reports are equal apart from measurements."""
    usage, metrics = report.usage, report.metrics
    if _gpus(before.usage) != _gpus(usage):
        return False
    report.usage, report.metrics = before.usage, before.metrics
    try:
        return before == report
    finally:
        report.usage, report.metrics = usage, metrics


def _declared(worker: WorkerRecord, metrics: list[messages.LogMetric]) -> list[messages.LogMetric]:
    """The reported metrics that the worker declares, each once, in the order of the declaration."""
    found = {one.name: one for one in metrics}
    return [found[name] for name in worker.spec.metrics if name in found]


def _gpus(usage: messages.WorkerUsage | None) -> list[int] | None:
    """A worker's GPUs, which are not a measurement (shapes/workers.py)."""
    return usage.gpus if usage is not None else None
