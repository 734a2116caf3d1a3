"""ProcessMonitor: detects silent agents and workers that appear to hang. An agent is suspect before it is unreachable.

`tick(now)` reads the observed status and returns findings; it does no I/O and changes nothing. Its own state is
limited to what findings need (lost agents, the circuit breaker, idle times). Durations are measured by the monotonic
clock only, so that jumps of the wall clock have no effect. circuit_breaker.py handles many silent agents,
hang_detector.py hangs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, NamedTuple

from procguard.fleet.fleet import Fleet
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import AgentObserved, AgentRecord
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.circuit_breaker import RecoveryCircuitBreaker
from procguard.fleet.recovery.hang_detector import Hangs
from procguard.i18n.reasons import Reason, because

SUSPECT_AFTER_S = 0.15  # a running agent reopens its long poll immediately, within this time
LOST_AFTER_S = 0.5  # by now it would have reconnected: probe over SSH
START_GRACE_TIMEOUTS = 3

# suspect: shown only. lost: its connection was closed and not reopened; probe over SSH. unreachable: silent for the
# whole timeout; its workers are unknown.
FindingKind = Literal[
    "suspect", "lost", "unreachable", "worker_suspect", "worker_clear", "circuit_breaker_open", "circuit_breaker_closed"
]


@dataclass(frozen=True)
class Finding:
    kind: FindingKind
    subject: str  # an agent id, a worker id, or "" for the fleet
    reason: Reason


class Lateness(NamedTuple):
    """A late round. `gap_s`: seconds since the previous round."""

    late_s: float
    gap_s: float


class ProcessMonitor:
    def __init__(self, fleet: Fleet, settings: FleetSettings, started: Now) -> None:
        self._fleet = fleet
        self._settings = settings
        self._last_tick = started.monotonic
        self._grace_until = started.monotonic + START_GRACE_TIMEOUTS * settings.heartbeat_timeout_s
        self._circuit_breaker = RecoveryCircuitBreaker(settings.heartbeat_timeout_s)
        self._hangs = Hangs(fleet, settings)
        self._lost: dict[str, float] = {}  # agent -> poll_lost_at of the last reported loss

    @property
    def circuit_open(self) -> bool:
        return self._circuit_breaker.on

    def in_grace(self, now: Now) -> bool:
        """Whether the start grace is in progress: no host is recovered until agents had time to reconnect."""
        return now.monotonic < self._grace_until

    def tick(self, now: Now) -> list[Finding]:
        findings = self._agents(now)
        findings += self._check_circuit_breaker(now)
        if self._settings.zombie_detection:
            for worker_id, evidence in self._hangs.tick(now):
                kind: FindingKind = "worker_suspect" if evidence else "worker_clear"
                findings.append(Finding(kind, worker_id, evidence or because("worker.clear")))
        return findings

    def lateness(self, now: Now) -> Lateness | None:
        """How late this round is, called before it. If it is late, every agent is granted that much more time
        (AgentService.excuse), since the manager may have been the silent side."""
        gap_s = now.monotonic - self._last_tick
        late_s = gap_s - self._settings.tick_s
        self._last_tick = now.monotonic
        if late_s <= self._settings.heartbeat_interval_s:
            return None
        self._grace_until += late_s
        self._circuit_breaker.later(late_s)
        self._hangs.later(late_s)
        self._lost = {agent_id: min(now.monotonic, at + gap_s) for agent_id, at in self._lost.items()}
        return Lateness(late_s, gap_s)

    # ------------------------------------------------------------------------------------------------ agents

    def _agents(self, now: Now) -> list[Finding]:
        findings = []
        oldest = now.monotonic - self._settings.heartbeat_timeout_s  # agents with a heartbeat since then are connected
        for agent_id, observed in self._fleet.state.agent_status.items():
            if observed.last_seen is None or observed.state not in ("connected", "suspect"):
                continue
            if observed.last_seen < oldest:
                silent_s = now.monotonic - observed.last_seen
                reason = because("agent.no_heartbeat", silent_s=silent_s, timeout_s=self._settings.heartbeat_timeout_s)
                findings.append(Finding("unreachable", agent_id, reason))
                self._circuit_breaker.fell_silent(agent_id, now)
            elif observed.poll_lost_at is not None:
                findings += self._connection(agent_id, observed, now)
        return findings

    def _connection(self, agent_id: str, observed: AgentObserved, now: Now) -> list[Finding]:
        """Findings from a long poll that the agent's side closed: an early hint, valid until the next heartbeat."""
        assert observed.poll_lost_at is not None and observed.last_seen is not None
        if observed.last_seen > observed.poll_lost_at:
            return []
        findings, away_s = [], now.monotonic - observed.poll_lost_at
        if observed.state == "connected" and away_s >= SUSPECT_AFTER_S:
            findings.append(Finding("suspect", agent_id, because("agent.connection_closed")))
        if away_s >= LOST_AFTER_S and self._lost.get(agent_id) != observed.poll_lost_at:
            if len(self._lost) > len(self._fleet.state.agent_status):  # contains agents that left the fleet
                self._lost.clear()
            self._lost[agent_id] = observed.poll_lost_at
            reason = because("agent.connection_lost", limit_s=LOST_AFTER_S)
            findings.append(Finding("lost", agent_id, reason))
        return findings

    # ------------------------------------------------------------------------------------------------ circuit breaker

    def _check_circuit_breaker(self, now: Now) -> list[Finding]:
        testable = self.circuit_open and any(_has_ssh(agent) for agent in self._fleet.state.agents_by_id.values())
        change = self._circuit_breaker.tick(len(self._fleet.state.agent_status), self._is_silent, testable, now)
        return (
            []
            if change is None
            else [Finding("circuit_breaker_open" if change.on else "circuit_breaker_closed", "", change.reason)]
        )

    def _is_silent(self, agent_id: str) -> bool:
        observed = self._fleet.state.agent_status.get(agent_id)
        return observed is not None and observed.state == "unreachable"

    def breaker_probe(self, now: Now) -> AgentRecord | None:
        """The host on which to try SSH now, to learn whether the hosts or this manager lost the network; usually None.
        Pass the result to `ssh_answered`."""
        if not self.circuit_open:
            return None
        agents = [agent for agent in self._fleet.state.agents_by_id.values() if _has_ssh(agent)]
        last_heartbeat = [
            agent.agent_id for agent in agents if self._fleet.state.agent_status[agent.agent_id].state == "connected"
        ]
        silent = [agent.agent_id for agent in agents if self._is_silent(agent.agent_id)]
        return self._fleet.state.agents_by_id.get(self._circuit_breaker.probe(last_heartbeat, silent, now))

    def ssh_answered(self, reached: bool, message: Reason) -> None:
        self._circuit_breaker.ssh_answered(reached, message)


def _has_ssh(agent: AgentRecord) -> bool:
    return agent.kind == "deployed" and bool(agent.ssh)
