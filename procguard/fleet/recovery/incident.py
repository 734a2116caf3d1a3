"""Records of one silent agent: what SSH found on its host, and the steps that the manager took."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from procguard.fleet.model.clock import Now
from procguard.i18n.reasons import Reason


class SshProbe(NamedTuple):
    """What SSH found on a host. `reached` False: no connection, so nothing is known about the agent.

    `new_addresses`: manager addresses written to the agent because none of its own worked. `no_way`: no manager address
    works from that host; the message lists those that were tried."""

    reached: bool
    agent: Literal["running", "started", "absent", "frozen", "failed", "unknown"]
    message: Reason
    new_addresses: tuple[str, ...] = ()
    no_way: bool = False


class IncidentStep(NamedTuple):
    at: float  # Unix seconds
    text: Reason


@dataclass
class Incident:
    """One agent that became silent, from the first suspicion to its return. Times are monotonic seconds."""

    agent_id: str
    host: str
    opened: Now
    reachable_by_ssh: bool  # False for hand-started launchers
    connection_closed: bool = False  # its end closed the connection, so that a start of the manager is not the cause
    last_heartbeat: float | None = None  # None: not in this run of the manager
    failed_probes: int = 0  # consecutive failed probes
    starts: int = 0  # starts without a subsequent heartbeat, limited by max_recovery_attempts; durable
    last_probe: SshProbe | None = None
    last_probe_at: float = 0.0
    next_at: float = 0.0
    probing: bool = False
    outcome: Literal["open", "recovered", "gave_up", "left"] = "open"
    ended: Now | None = None
    steps: list[IncidentStep] = field(default_factory=list)
