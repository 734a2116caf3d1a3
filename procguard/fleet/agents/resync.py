"""Resync after a start that could not prove that the state is complete: first collect reports, then assign.

A state that lost its newest changes may place a worker on a host that it has left, or start it while another epoch
runs. Therefore nothing is assigned until every agent has sent a heartbeat or a timeout has passed. Leases are renewed
in the meantime, and running workers continue. Of conflicting reports the highest epoch wins (heartbeat.py).
"""

from __future__ import annotations

from procguard.fleet.model.clock import Now
from procguard.fleet.state import FleetState
from procguard.i18n.reasons import because

LASTS_TIMEOUTS = 3  # in heartbeat timeouts: the time within which the monitor expects agents to return after a start


class StateResync:
    def __init__(self, state: FleetState) -> None:
        self._state = state
        self._until: float | None = None

    def begin(self, now: Now) -> None:
        self._until = now.monotonic + LASTS_TIMEOUTS * self._state.settings.heartbeat_timeout_s

    def open(self, now: Now) -> bool:
        """Whether the resync is in progress, in which the stored state may be older than the running workers."""
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
