"""The recovery circuit breaker: suspends host recovery when many hosts become silent at once.

Many silent hosts usually mean a failed network or a failed manager rather than failed hosts. The breaker opens when
max(3, 20 % of the fleet) became silent within one heartbeat_timeout. It closes when they are back, or after 5 min if
SSH to other hosts works. Pure: `probe` selects the host to try over SSH, `ssh_answered` receives the result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from procguard.fleet.model.clock import Now
from procguard.i18n.reasons import NONE, Reason, because

MIN_HOSTS = 3
SHARE = 0.2
LASTS_S = 300.0
PROBE_EVERY_S = 15.0


class BreakerChange(NamedTuple):
    """A change of the breaker: opened (`on`), closed, or open longer than expected (`on` again, with the reason)."""

    on: bool
    reason: Reason


class RecoveryCircuitBreaker:
    """`window_s`: heartbeat_timeout. All times are monotonic seconds."""

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        # newest last; while it is open: all agents that became silent
        self._fell_silent: deque[tuple[float, str]] = deque()
        self._since: float | None = None
        self._probed_at = 0.0
        self._probes = 0
        self._works = False  # SSH, to a host that is not silent
        self._trouble: Reason = NONE  # why the newest try failed
        self._said_so = False

    @property
    def on(self) -> bool:
        return self._since is not None

    def fell_silent(self, agent_id: str, now: Now) -> None:
        self._fell_silent.append((now.monotonic, agent_id))

    def later(self, late_s: float) -> None:
        """The manager was stalled for `late_s`: extend all deadlines by it."""
        self._fell_silent = deque((at + late_s, agent_id) for at, agent_id in self._fell_silent)
        if self._since is not None:
            self._since += late_s

    def tick(self, fleet_size: int, is_silent: Callable[[str], bool], testable: bool, now: Now) -> BreakerChange | None:
        """Returns a change, if any. `testable`: there is a host on which SSH can be tried."""
        limit = max(MIN_HOSTS, SHARE * fleet_size)
        if self._since is None:
            return self._pull(limit, fleet_size, now)
        silent = sum(1 for agent_id in {agent_id for _, agent_id in self._fell_silent} if is_silent(agent_id))
        if silent < limit:
            return self._release(because("breaker.few_silent", n=silent))
        if now.monotonic - self._since < LASTS_S:
            return None
        if self._works:
            return self._release(because("breaker.ssh_works", n=silent))
        if not testable:
            return self._release(because("breaker.no_test", n=silent))
        if self._trouble and not self._said_so:
            self._said_so = True
            return BreakerChange(True, because("breaker.stays", why=self._trouble))
        return None

    def _pull(self, limit: float, fleet_size: int, now: Now) -> BreakerChange | None:
        while self._fell_silent and now.monotonic - self._fell_silent[0][0] > self._window_s:
            self._fell_silent.popleft()
        silent = len({agent_id for _, agent_id in self._fell_silent})
        if silent < limit:
            return None
        self._since, self._works, self._trouble, self._said_so = now.monotonic, False, NONE, False
        return BreakerChange(
            True,
            because("breaker.silent", silent=silent, hosts=fleet_size, window_s=self._window_s, limit_s=LASTS_S),
        )

    def _release(self, reason: Reason) -> BreakerChange:
        self._since = None
        self._fell_silent.clear()
        return BreakerChange(False, reason)

    # ----------------------------------------------------------------------------------------------------- SSH tests

    def probe(self, others: Sequence[str], silent: Sequence[str], now: Now) -> str:
        """The agent on whose host to try SSH now, "" for none. `others`: agents with heartbeats; `silent`: agents
        without, used if all are silent, because a host that answers over SSH has a network."""
        if self._since is None or self._works or now.monotonic - self._since < LASTS_S:
            return ""
        candidates = others or silent
        if not candidates or (self._probes and now.monotonic - self._probed_at < PROBE_EVERY_S):
            return ""
        self._probed_at, self._probes = now.monotonic, self._probes + 1
        return candidates[self._probes % len(candidates)]

    def ssh_answered(self, reached: bool, message: Reason) -> None:
        self._works = self._works or reached
        self._trouble = NONE if reached else message
