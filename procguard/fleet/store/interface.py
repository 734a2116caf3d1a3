"""The interface of a store: tables of JSON records and an event history, changed by durable commits.

Every commit carries the store's term, which increases with each `load`. It has one of three outcomes: it is durable
when `commit` returns; the disk refused it (NotDurable: it is written with the next successful commit); or a later
term holds the state (Fenced: terminal, this process must exit).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from procguard.errors import ProcGuardError
from procguard.fleet.history.query import Event, EventQuery
from procguard.i18n.reasons import Reason
from procguard.json_types import Json

StoredRecord = Json
Tables = dict[str, dict[str, StoredRecord]]
# (table, key, record); record None deletes.
Change = tuple[str, str, "StoredRecord | None"]
# (log, event): one line of the history; an event's `seq` is unique and increasing within its log.
Line = tuple[str, Event]
RunBlocking = Callable[[Callable[[], None]], None]

EVENTS = "events"


class NotDurable(ProcGuardError):
    """The disk refused the write: the change is not acknowledged. It is written once the disk accepts writes again."""

    http_status = 503
    default_code = "not_durable"


class Fenced(ProcGuardError):
    """Another manager has taken over the state. Decisions of this process are invalid; it must exit."""

    http_status = 503
    default_code = "fenced"


def run_here(task: Callable[[], None]) -> None:
    task()


@dataclass
class Loaded:
    """`intact` is False when anything acknowledged may be missing: the fleet then asks its agents first."""

    tables: Tables = field(default_factory=dict)
    intact: bool = True
    notes: list[str] = field(default_factory=list)  # damaged or missing parts, one line each


class Store(Protocol):
    path: str  # its location, for people
    displaced_reason: Reason  # the consequence of missing files, for people

    def load(self) -> Loaded:
        """Read the whole state and begin a new term; called once, before the first commit."""

    def commit(self, changes: Sequence[Change], history: Sequence[Line] = ()) -> None:
        """Write changes and history lines atomically, with those that an earlier commit failed to write.

        Raises NotDurable or Fenced.
        """

    def keep_history(self, log: str, max_bytes: int) -> None:
        """Bound one log: its oldest events are dropped as new ones are committed."""

    def find(self, log: str, query: EventQuery, limit: int, *, after: int | None = None) -> list[Event]:
        """Committed events that match, oldest first: the newest `limit`, or the first `limit` with seq > `after`."""

    def read(self) -> Loaded:
        """As `load`, without beginning a term or changing anything."""

    def in_place(self) -> bool:
        """Whether the state's files are still at the state's path and writable."""

    def write_again(self, tables: Tables) -> None:
        """Recreate the state from `tables` after its files were deleted while the manager runs.

        Raises NotDurable if the disk refuses, ProcGuardError if the path now holds another manager's state.
        """

    def save(self) -> None:
        """Start an update of the readable snapshot if it is due; called every few seconds, does not wait for it."""

    def close(self) -> None:
        """Commit everything queued, update the snapshot and close."""


def apply(tables: Tables, changes: Sequence[Change]) -> None:
    for table, key, record in changes:
        if record is None:
            tables.setdefault(table, {}).pop(key, None)
        else:
            tables.setdefault(table, {})[key] = record
