"""Settings of the fleet as plain numbers; main.py derives them from the configuration."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field

from procguard.config.groups import GroupPolicy

HEARTBEATS_PER_S = 500.0  # of all agents together, as far as heartbeat_timeout permits
LOG_POSTS_PER_S = 1_000.0  # of all workers together, if each prints continuously
# lower bound: agents poll at this interval; upper bound: longer delays would be noticed
LOG_GATHER_FROM_S, LOG_GATHER_MOST_S = 0.1, 2.0


@dataclass(frozen=True)
class FleetSettings:
    """`monitoring.*`, `recovery.*`, `logs.*` of the configuration; times in seconds, thresholds in percent."""

    tick_s: float = 1.0
    heartbeat_timeout_s: float = 10.0
    zombie_detection: bool = True
    cpu_threshold_percent: float = 0.1
    memory_threshold_percent: float = 0.1
    enable_auto_recovery: bool = True
    stop_all_on_failure: bool = False
    task_reassignment: bool = False
    recovery_timeout_s: float = 30.0
    max_recovery_attempts: int = 3
    keep_local_bytes: int = 256 * 1024 * 1024  # logs.keep_local, for the agents
    keep_attempts: int = 50  # logs.keep_attempts, for the agents
    pending_launchers: int = 100  # web.limits.pending_launchers
    gpu_failures: str = "log"  # recovery.gpu_failures: log, cordon or move
    causes: dict[str, str] = field(default_factory=dict)  # recovery.causes, for Python's re
    groups: Mapping[str, GroupPolicy] = field(default_factory=dict)  # `groups`; takes precedence over inventories

    @functools.cached_property
    def heartbeat_interval_s(self) -> float:
        """The interval in a small fleet: a fifth of the timeout, so that four heartbeats may be lost before
        suspicion."""
        return min(10.0, max(0.2, self.heartbeat_timeout_s / 5))

    @staticmethod
    def log_gather_s(workers: int) -> float:
        """Seconds for which an agent gathers output before it sends a request: requests cost more than bytes. 0 in a
        small fleet, whose logs are sent at once."""
        wanted_s = workers / LOG_POSTS_PER_S
        return min(LOG_GATHER_MOST_S, wanted_s) if wanted_s > LOG_GATHER_FROM_S else 0.0

    def interval_for(self, agents: int) -> float:
        """Heartbeat interval of each agent in a fleet of this size: longer in a large fleet, so that the manager
        receives no more than HEARTBEATS_PER_S; but always three times within one timeout."""
        thrice_s = self.heartbeat_timeout_s / 3
        return max(self.heartbeat_interval_s, min(thrice_s, agents / HEARTBEATS_PER_S))
