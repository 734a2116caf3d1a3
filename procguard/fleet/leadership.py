"""Leadership of the fleet, as the interface that the fleet's services use.

A single manager always leads (`SoleManager`). With several managers on one database, manager/seat.py implements
`Leadership`. Assignments, commands and leases are sent only while it permits them; the database checks every commit
itself (store/postgresql.py). Knows no database and no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from procguard.errors import ProcGuardError

HTTP_MISDIRECTED = 421


class Leadership(Protocol):
    @property
    def term(self) -> int:
        """The leader's term, which only increases. 0: a single manager, which has none."""

    @property
    def grace_s(self) -> float:
        """For how long after this manager's start an earlier leader may continue to renew leases without its database
        (that leader's `state.database_grace_s`). 0: all earlier leaders have handed over, or have no such time."""

    def may_direct(self) -> bool:
        """Whether assignments and commands may be sent now."""

    def may_renew(self) -> bool:
        """Whether leases may be renewed for their present holders. True whenever `may_direct` is."""

    def manager_urls(self) -> Sequence[str]:
        """The URLs at which agents reach the managers, the leader's first. Empty with a single manager."""


class SoleManager:
    """The leadership of a single manager with its own state."""

    term = 0
    grace_s = 0.0

    def may_direct(self) -> bool:
        return True

    def may_renew(self) -> bool:
        return True

    def manager_urls(self) -> Sequence[str]:
        return ()


class NotLeading(ProcGuardError):
    """This manager does not lead. The body of the response has `managers` and `term`, so that agents continue with the
    next URL."""

    http_status = HTTP_MISDIRECTED
    default_code = "standby"

    def __init__(self, leadership: Leadership) -> None:
        urls = list(leadership.manager_urls())
        super().__init__("this manager does not lead the fleet", f"ask the leader: {urls[0]}" if urls else "try again")
        self.extra: Mapping[str, object] = {"managers": urls, "term": leadership.term}
