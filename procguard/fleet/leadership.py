"""Whether this manager leads the fleet, as far as the fleet's services need to know.

One manager alone always leads (`SoleManager`). With several managers on one database, manager/seat.py implements
`Leadership`. Assignments, commands and leases leave only while it allows them; every commit is checked by the database
itself (store/postgresql.py). Knows no database and no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from procguard.errors import ProcGuardError

HTTP_MISDIRECTED = 421


class Leadership(Protocol):
    @property
    def term(self) -> int:
        """The leader's term; it only rises. 0: one manager alone, which has none."""

    @property
    def grace_s(self) -> float:
        """How long after this leader's start an earlier leader without its database may continue to renew leases, in
        seconds (the earlier one's `state.database_grace_s`). 0 if all earlier leaders handed over or have no grace."""

    def may_direct(self) -> bool:
        """Whether assignments and commands may leave at this moment."""

    def may_renew(self) -> bool:
        """Whether leases may be renewed for their present holders. True whenever `may_direct` is."""

    def manager_urls(self) -> Sequence[str]:
        """The URLs at which agents reach the managers, the leader's first. Empty with a single manager."""


class SoleManager:
    """One manager with a state of its own."""

    term = 0
    grace_s = 0.0

    def may_direct(self) -> bool:
        return True

    def may_renew(self) -> bool:
        return True

    def manager_urls(self) -> Sequence[str]:
        return ()


class NotLeading(ProcGuardError):
    """This manager does not lead. The body of the answer carries `managers` and `term`, so that agents go on to the
    next URL."""

    http_status = HTTP_MISDIRECTED
    default_code = "standby"

    def __init__(self, leadership: Leadership) -> None:
        urls = list(leadership.manager_urls())
        super().__init__("this manager does not lead the fleet", f"ask the leader: {urls[0]}" if urls else "try again")
        self.extra: dict[str, Any] = {"managers": urls, "term": leadership.term}
