"""Verifies by polling that an agent has sent a heartbeat, once for all hosts that wait.

Compares times of the manager's clock only. Knows neither SSH nor what was deployed.
"""

from __future__ import annotations

import threading
import time
from datetime import datetime
from typing import Any

from procguard.client.api import ManagerClient
from procguard.client.types import HostInfo, HostsInfo, SshTriedInfo
from procguard.errors import HostError

POLL_S = 0.15
QUICK_POLL_S = 0.02  # poll interval for a manager that answers quickly
POLL_SHARE = 0.1  # polls take at most this share of the manager's time
RECHECK_S = 900.0  # validity of the manager's last SSH check of an unchanged host


class HostSeen(HostInfo):
    """The view of a host, with the manager's time."""

    server_time: str


class AgentVerifier:
    """Waits for an agent's heartbeat after a given time; one poll of /api/hosts serves all waiting hosts."""

    def __init__(self, client: ManagerClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._polled_at = 0.0  # monotonic time at which the newest answer was requested
        self._pause_s = POLL_S
        self._answer: HostsInfo = {"hosts": [], "server_time": ""}

    def now(self) -> datetime | None:
        """The manager's time, as `since` for `wait_for`; None if unknown."""
        return _time(self._fresh(time.monotonic())["server_time"])

    def wait_for(
        self, agent_id: str, deadline: float, since: datetime | None = None, *, connected_is_enough: bool = False
    ) -> HostSeen:
        """Wait for a heartbeat after `since`, by default the time of this call. Returns the host's view.

        Raises HostError at the deadline. Compares times of the manager's clock only: `server_time` and `last_seen`.
        """
        since = since or self.now()
        while True:
            answer = self._fresh(time.monotonic() - self._pause_s)
            mine = next((one for one in answer["hosts"] if one.get("agent") == agent_id), None)
            seen = _time(mine.get("last_seen")) if mine else None
            connected = connected_is_enough and mine is not None and mine.get("agent_state") == "connected"
            if mine is not None and ((seen and since and seen > since) or connected):
                return {**mine, "server_time": answer["server_time"]}
            if time.monotonic() > deadline:
                when = f"last heartbeat {seen.isoformat()}" if seen else "never sent a heartbeat"
                raise HostError(
                    f"{agent_id}: the agent is running, but has sent no heartbeat since the SSH session ended ({when})",
                    "see agent.log on the host; check whether the host ends a user's processes at logout",
                    code="no_heartbeat",
                )
            time.sleep(self._pause_s)

    def _fresh(self, not_before: float) -> HostsInfo:
        """A response requested after `not_before`; threads share one request."""
        with self._lock:
            if self._polled_at <= not_before:
                self._polled_at = time.monotonic()
                self._answer = self._client.hosts()
                took_s = time.monotonic() - self._polled_at
                self._pause_s = min(max(QUICK_POLL_S, took_s / POLL_SHARE), POLL_S)
            return self._answer


def known_recovery(seen: HostSeen) -> SshTriedInfo:
    """The manager's recent SSH check of this host; {} if there is none and it should be
    repeated."""
    known = seen.get("recovery_ssh") or {}
    then, now = _time(known.get("checked_at")), _time(seen.get("server_time"))
    fresh = then is not None and now is not None and 0 <= (now - then).total_seconds() < RECHECK_S
    return {"ok": True, "reason": ""} if known.get("ok") and fresh else {}


def _time(text: Any) -> datetime | None:
    try:
        return datetime.fromisoformat(str(text).replace("Z", "+00:00"))
    except ValueError:
        return None
