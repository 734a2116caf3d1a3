"""The interface of a store: tables of JSON records and an event history, changed by durable commits.

Every commit carries the store's term, which increases with each `load`. It has one of three outcomes: it is durable
when `commit` returns; the disk refused it (NotDurable: it is written with the next successful commit); or a later
term holds the state (Fenced: terminal, this process must exit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from procguard.errors import ProcGuardError
from procguard.fleet.history.query import EventQuery
from procguard.i18n.reasons import Reason

Record = dict[str, Any]
Tables = dict[str, dict[str, Record]]
# (table, key, record); record None deletes.
Change = tuple[str, str, "Record | None"]
# (log, event): one line of the history; an event's `seq` is unique within its log, and rises.
Line = tuple[str, dict[str, Any]]
RunBlocking = Callable[[Callable[[], None]], None]

EVENTS = "events"


class NotDurable(ProcGuardError):
    """The disk refused; what was asked is not acknowledged. It is written as soon as the disk takes it again."""

    http_status = 503
    default_code = "not_durable"


class Fenced(ProcGuardError):
    """Another manager has taken over the state; nothing that this process decides may count any more."""

    http_status = 503
    default_code = "fenced"


def run_here(task: Callable[[], None]) -> None:
    task()


@dataclass
class Loaded:
    """`intact` is False when anything acknowledged may be missing: the fleet then asks its agents first."""

    tables: Tables = field(default_factory=dict)
    intact: bool = True
    notes: list[str] = field(default_factory=list)  # what was found damaged or missing, one readable line each


class Store(Protocol):
    path: str  # where it is, for people
    displaced_reason: Reason  # what it means that it is not in place

    def load(self) -> Loaded:
        """Read everything back and begin a new term; called once, before the first commit."""

    def commit(self, changes: Sequence[Change], history: Sequence[Line] = ()) -> None:
        """Make them durable together, with all that an earlier commit failed to write; returns when they are.

        Raises NotDurable or Fenced.
        """

    def keep_history(self, log: str, max_bytes: int) -> None:
        """Bound one log: its oldest events are dropped as new ones are committed."""

    def find(self, log: str, query: EventQuery, limit: int, *, after: int | None = None) -> list[dict[str, Any]]:
        """Committed events that match, oldest first: the newest `limit`, or the first `limit` with seq > `after`."""

    def read(self) -> Loaded:
        """What `load` would return; changes nothing. For who only looks."""

    def in_place(self) -> bool:
        """Whether what is committed lands where the state's path says, and can be replaced there."""

    def write_again(self, tables: Tables) -> None:
        """The state's files are gone while the manager runs: write all of `tables`, and go on from there.

        Raises NotDurable where the disk refuses, ProcGuardError where the state of another manager lies there now.
        """

    def save(self) -> None:
        """Called every few seconds: bring the readable snapshot up to date where it is due. Returns before it is."""

    def close(self) -> None:
        """Everything handed in is durable and the snapshot is up to date when this returns."""


def apply(tables: Tables, changes: Sequence[Change]) -> None:
    for table, key, record in changes:
        if record is None:
            tables.setdefault(table, {}).pop(key, None)
        else:
            tables.setdefault(table, {})[key] = record
