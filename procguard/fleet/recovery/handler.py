"""FailureHandler: carries out the decisions of policy.py; each step is an event.

Owns the open incidents of silent agents (their attempts are durable with the agent's record); reassignment.py owns
the workers that may have to move. Receives `probe` (SSH, in another process) and `spawn`, and knows neither.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, Protocol

from procguard.fleet.fleet import Fleet
from procguard.fleet.history import causes
from procguard.fleet.history.query import Evidence
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentRecord, SpentRecovery, WorkerRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.gpu_failures import GpuFailures
from procguard.fleet.recovery.incident import Incident, IncidentStep, SshProbe
from procguard.fleet.recovery.monitor import Finding, ProcessMonitor
from procguard.fleet.recovery.policy import RecoveryPolicy, decide
from procguard.fleet.recovery.reassignment import Reassignment
from procguard.fleet.transaction import Transaction
from procguard.i18n.reasons import NONE, Reason, because, reason_of

ACTOR = "failure handler"
KEEP_RECOVERIES = 200
URLS_KEPT_S = 1.0


class SshProber(Protocol):
    def __call__(self, agent: AgentRecord, replace_frozen: bool) -> SshProbe:
        """Connect over SSH and start the agent if it is not running; replace a frozen agent only with
        `replace_frozen`."""
        ...


class FailureHandler:
    """`probe` may take long and runs under `spawn`."""

    def __init__(
        self,
        fleet: Fleet,
        *,
        monitor: ProcessMonitor,
        settings: FleetSettings,
        probe: SshProber,
        spawn: Callable[[Callable[[], None]], Any],
        read_clock: Callable[[], Now],
        manager_urls: Callable[[], list[str]] = list,
        rest: Callable[[], None] = lambda: None,
    ) -> None:
        """`manager_urls`: this manager's addresses. Recovery attempts of a manager with other addresses do not count.
        `rest()` yields to other greenlets if due: thousands of agents may become silent or return at once."""
        self._fleet = fleet
        self._monitor = monitor
        self._settings = settings
        self._probe = probe
        self._spawn = spawn
        self._read_clock = read_clock
        self._manager_urls = manager_urls
        self._rest = rest
        self._urls: tuple[float, list[str]] = (float("-inf"), [])  # monotonic time of the query
        self._open: dict[str, Incident] = {}
        self._closed: list[Incident] = []
        self.tasks = Reassignment(fleet, settings)
        self.gpus = GpuFailures(fleet)
        fleet.state.failing.subscribe(self.worker_failed)
        fleet.state.show_incidents(self.incidents)

    def tick(self, now: Now) -> None:
        """One round: processes the monitor's findings, open incidents and tasks that must move to another host.

        Called each interval, at once after a lost connection, and after `due_in_s`."""
        late = self._monitor.lateness(now)
        if late is not None:
            self._fleet.agents.excuse(late.late_s, late.gap_s, now)
        self._close_returned(now)  # before the findings: an agent that returned and was lost again is a new incident
        for finding in self._monitor.tick(now):
            self._take(finding, now)
        for incident in list(self._open.values()):
            self._rest()
            if not self._has_returned(incident):  # changed while other greenlets ran; the next round closes it
                self._advance(incident, now)
        self.tasks.tick(self._policy(now), self._agent_coming_s, now)
        self.gpus.tick(now)
        self._fleet.placement.moved(now)
        with self._later(now) as tx:
            for record in self._fleet.state.command_queue.expire(tx):
                self._fleet.state.command_event(tx, record)

    def _later(self, now: Now) -> Transaction:
        """A transaction that becomes durable with the next commit, so that a round with many findings needs one
        commit."""
        return self._fleet.state.transaction(now, ACTOR, wait="nothing")

    def due_in_s(self, now: Now) -> float:
        """Seconds until a round is needed before the regular interval, because a lease ends; infinity if none does."""
        return self.tasks.due_in_s(now)

    def _policy(self, now: Now) -> RecoveryPolicy:
        return RecoveryPolicy(self._settings, self._monitor.circuit_open, self._monitor.in_grace(now))

    def open_incidents_for_silent_agents(self, now: Now) -> None:
        """After the start grace: open incidents for agents without a heartbeat since this manager started."""
        for agent_id in list(self._fleet.state.agent_status):
            self._rest()
            observed = self._fleet.state.agent_status.get(agent_id)
            if observed is not None and observed.state == "never":  # no heartbeat while other greenlets ran
                self._fleet.agents.mark(agent_id, "unreachable", because("agent.unheard"), now)
                self._open_incident(agent_id, because("agent.unheard"), now)
                self.tasks.host_lost(agent_id)

    # ------------------------------------------------------------------------------------------ findings

    def _take(self, finding: Finding, now: Now) -> None:
        if finding.kind in ("suspect", "unreachable"):
            self._fleet.agents.mark(finding.subject, finding.kind, finding.reason, now)
        if finding.kind in ("lost", "unreachable"):  # a suspicion is only shown
            self._open_incident(finding.subject, finding.reason, now, connection_closed=finding.kind == "lost")
        if finding.kind == "unreachable":
            self._host_lost(finding, now)
        if finding.kind in ("worker_suspect", "worker_clear"):
            suspect = finding.reason if finding.kind == "worker_suspect" else NONE
            self._fleet.workers.set_suspect(finding.subject, suspect, now)
        elif finding.kind in ("circuit_breaker_open", "circuit_breaker_closed"):
            with self._later(now) as tx:
                tx.event(finding.kind, reason=finding.reason, actor="monitor")

    def _host_lost(self, finding: Finding, now: Now) -> None:
        self.tasks.host_lost(finding.subject)
        # otherwise it is probably not this host's failure
        if not self._monitor.circuit_open and not self._monitor.in_grace(now):
            with self._later(now) as tx:
                self._fleet.placement.note_failure(tx, finding.subject, "agent_silent", finding.reason)

    def worker_failed(self, tx: Transaction, worker: WorkerRecord) -> None:
        """Handle a worker whose restart budget is spent: alert, then stop the fleet (stop_all_on_failure) or use a
        spare."""
        report = self._fleet.state.worker_status[worker.worker_id].report
        last_exit = report.last_exit if report else None
        tx.event(
            "worker_failed",
            worker_id=worker.worker_id,
            host=worker.host,
            reason=worker.last_reason,
            actor="runner",
            attempt=worker.attempt,
            cause=causes.of_exit(last_exit),
            evidence=causes.exit_evidence(last_exit),
            source=worker.agent_id,
        )
        self._fleet.placement.note_failure(tx, worker.agent_id, "worker_failed", reason_of(worker.worker_id))
        if not causes.final(last_exit, worker.spec):  # otherwise no spare may start it again
            tx.once_over(lambda: self.tasks.failed(worker.worker_id))
        if self._settings.stop_all_on_failure:
            reason = because("fleet.stopped", worker=worker.worker_id, why=worker.last_reason)
            self._fleet.workers.stop_all(tx, reason)

    # ------------------------------------------------------------------------------------------ incidents

    def _open_incident(self, agent_id: str, reason: Reason, now: Now, *, connection_closed: bool = False) -> None:
        if agent_id in self._open:
            self._step(self._open[agent_id], reason, now)
            return
        agent, observed = self._fleet.state.agents_by_id[agent_id], self._fleet.state.agent_status[agent_id]
        reachable_by_ssh = agent.kind == "deployed" and bool(agent.ssh)
        incident = Incident(
            agent_id, agent.host, now, reachable_by_ssh, connection_closed, last_heartbeat=observed.last_seen
        )
        # Attempts of the previous manager for the same silence count; a heartbeat in between would have reset them.
        urls = self._urls_at(now)
        spent = agent.incident or SpentRecovery()
        counts = observed.last_seen is None and list(spent.manager_urls or urls) == urls
        incident.starts = spent.starts if counts else 0
        self._open[agent_id] = incident
        self._step(incident, reason, now)

    def _close_returned(self, now: Now) -> None:
        # Repeated until there is none, because agents may return while other greenlets run; the monitor comes
        # afterwards.
        while returned := [incident for incident in self._open.values() if self._has_returned(incident)]:
            for incident in returned:
                self._rest()
                if incident.agent_id not in self._fleet.state.agent_status:
                    self._close(incident, "left", because("recovery.left_fleet"), now)
                else:
                    lost_s = now.monotonic - incident.opened.monotonic
                    self._close(incident, "recovered", because("recovery.heard", lost_s=lost_s), now)

    def _has_returned(self, incident: Incident) -> bool:
        """Whether the incident's agent has sent a heartbeat or has left the fleet."""
        observed = self._fleet.state.agent_status.get(incident.agent_id)
        return observed is None or observed.state == "connected"

    def _advance(self, incident: Incident, now: Now) -> None:
        if incident.probing or now.monotonic < incident.next_at:
            return
        decision = decide(incident, self._policy(now), now)
        self._fleet.agents.note(incident.agent_id, decision.reason, now)
        if decision.action == "give_up":
            self._close(incident, "gave_up", decision.reason, now)
        elif decision.action == "leave":
            self._close(incident, "left", decision.reason, now)
        elif decision.action == "wait" or decision.delay_s > 0:
            # Checked every second at least: a return, the circuit breaker or the grace may change the decision.
            incident.next_at = now.monotonic + min(decision.delay_s, 1.0)
        else:
            self._start_probe(incident, decision.replace_frozen)

    def _start_probe(self, incident: Incident, replace_frozen: bool) -> None:
        incident.probing = True
        agent = self._fleet.state.agents_by_id[incident.agent_id]
        self._spawn(lambda: self._probe_and_record(incident, agent, replace_frozen))

    def _probe_and_record(self, incident: Incident, agent: AgentRecord, replace_frozen: bool) -> None:
        try:
            probe = self._probe(agent, replace_frozen)
        except Exception as exc:  # a failed probe is a result, too: the incident continues
            probe = SshProbe(False, "unknown", reason_of(f"{type(exc).__name__}: {exc}"))
        now = self._read_clock()
        incident.probing = False
        first = incident.last_probe is None or incident.last_probe.message != probe.message
        incident.last_probe, incident.last_probe_at = probe, now.monotonic
        if not probe.reached:
            incident.failed_probes += 1
        else:
            incident.failed_probes = 0
            incident.starts += probe.agent != "frozen"
        jitter = random.uniform(0.0, 0.25)  # noqa: S311 - spreads the probes; not for security
        incident.next_at = now.monotonic + (0.0 if probe.reached else jitter)
        if incident.agent_id in self._open:
            self._remember(incident, now)
            self._fleet.agents.set_recovery_ssh(
                incident.host, probe.reached, NONE if probe.reached else probe.message, now
            )
            if first or probe.reached:
                evidence = {"ssh": {"reached": probe.reached, "agent": probe.agent}}
                self._step(incident, because("recovery.ssh", why=probe.message), now, evidence)
        if probe.new_addresses:
            with self._later(now) as tx:
                tx.event(
                    "agent_addresses",
                    host=incident.host,
                    reason=because("agent.addresses", urls=list(probe.new_addresses)),
                    source=incident.agent_id,
                )

    def _agent_coming_s(self, agent_id: str, now: Now) -> float:
        """Seconds within which the agent, found or started over SSH, may still send its first heartbeat; only for the
        first start."""
        incident = self._open.get(agent_id)
        if incident is None or incident.last_probe is None or incident.starts != 1:
            return 0.0
        return max(0.0, incident.last_probe_at + self._settings.recovery_timeout_s - now.monotonic)

    def _urls_at(self, now: Now) -> list[str]:
        """This manager's URLs, cached for a second: thousands of incidents may begin at once."""
        if now.monotonic - self._urls[0] > URLS_KEPT_S:
            self._urls = now.monotonic, sorted(self._manager_urls())
        return self._urls[1]

    def _remember(self, incident: Incident, now: Now, reason: Reason = NONE) -> None:
        """Store the spent attempts with the agent's record for the next manager; a recovered agent has none."""
        agent = self._fleet.state.agents_by_id.get(incident.agent_id)
        kept = None
        if incident.outcome != "recovered" and (incident.outcome != "open" or incident.starts):
            kept = SpentRecovery(incident.starts, incident.outcome, reason, self._urls_at(now))
        if agent is not None and agent.incident != kept:
            with self._later(now) as tx:
                tx.edit(agent).incident = kept

    def _step(self, incident: Incident, text: Reason, now: Now, evidence: Evidence | None = None) -> None:
        incident.steps.append(IncidentStep(now.wall, reason_of(text)))
        del incident.steps[:-50]
        if incident.ended:
            evidence = {"outcome": incident.outcome}
        with self._later(now) as tx:
            tx.event("recovery", host=incident.host, reason=text, evidence=evidence, source=incident.agent_id)

    def _close(self, incident: Incident, outcome: str, reason: Reason, now: Now) -> None:
        self._open.pop(incident.agent_id, None)
        incident.outcome, incident.ended = outcome, now  # type: ignore[assignment]
        self._remember(incident, now, reason)
        self._step(incident, reason, now)
        if outcome == "gave_up":
            with self._later(now) as tx:
                tx.event("recovery_gave_up", host=incident.host, reason=reason, cause="agent_lost")
        self._closed.append(incident)
        del self._closed[:-KEEP_RECOVERIES]

    def incidents(self) -> list[Incident]:
        """Open incidents and the newest closed ones, newest first."""
        return [*self._open.values(), *reversed(self._closed)]
