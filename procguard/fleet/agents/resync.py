"""After a start that could not prove that nothing is missing: first hear what the agents know, then tell them anything.

A state that lost its newest changes may have a worker on the host it has left since, or to be started where another
epoch of it runs. So nobody is told what to run until every agent was heard, or has had time to be; leases are renewed
meanwhile, and what runs, runs on. What the agents report is taken by the highest epoch (heartbeat.py).
"""

from __future__ import annotations

from procguard.fleet.model.clock import Now
from procguard.fleet.state import FleetState
from procguard.i18n.reasons import because

LASTS_TIMEOUTS = 3  # heartbeat_timeouts: as long as the monitor gives agents to return after a start


class StateResync:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._until: float | None = None

    def begin(self, now: Now) -> None:
        self._until = now.monotonic + LASTS_TIMEOUTS * self._state.settings.heartbeat_timeout_s

    def open(self, now: Now) -> bool:
        """Whether what the state says of the workers may be older than what runs."""
        if self._until is None:
            return False
        silent = [agent_id for agent_id, observed in self._state.agent_status.items() if observed.heartbeat is None]
        if silent and now.monotonic < self._until:
            return True
        self._until = None
        missing = (
            because("state.resynced_without", agents=sorted(silent)[:100]) if silent else because("state.resynced")
        )
        with self._state.transaction(now, "manager", wait="nothing") as tx:
            tx.event("state", reason=missing)
            for agent_id in self._state.agent_status:
                tx.wake(agent_id)
        return False
