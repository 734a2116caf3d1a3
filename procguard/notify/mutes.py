"""Mutes: suppress the alerts of some workers or hosts for a time, starting now or later (a maintenance window).

Events stay in the history; only messages are suppressed. A mute ends by itself. Mutes are stored in the table `mutes`,
so that every leader knows them; the caller that changes one writes its row in the same transaction.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from typing_extensions import TypedDict

from procguard.errors import LimitExceeded, NotFound, UsageError
from procguard.fleet.model.clock import iso
from procguard.fleet.store.interface import StoredRecord, Tables
from procguard.fleet.workers import selectors
from procguard.fleet.workers.selectors import Selector

TABLE = "mutes"
MAX_MUTES = 500
LONGEST_S = 366 * 86_400.0  # so that a forgotten mute ends eventually
AHEAD_S = 366 * 86_400.0


class MuteView(TypedDict):
    mute_id: str
    select: str
    begins: str | None
    ends: str | None
    active: bool
    note: str
    by: str
    made: str | None


@dataclass(frozen=True)
class Mute:
    """Times are Unix seconds. `by`: the actor who created it at `made`. `ends`: exclusive."""

    mute_id: str
    select: str
    begins: float
    ends: float
    note: str = ""
    by: str = ""
    made: float = 0.0

    def row(self) -> StoredRecord:
        return asdict(self)

    def view(self, wall: float) -> MuteView:
        return {
            "mute_id": self.mute_id,
            "select": self.select,
            "begins": iso(self.begins),
            "ends": iso(self.ends),
            "active": self.begins <= wall < self.ends,
            "note": self.note,
            "by": self.by,
            "made": iso(self.made),
        }


class Mutes:
    def __init__(self) -> None:
        self._mutes: dict[str, tuple[Mute, Selector]] = {}

    def restore(self, rows: Mapping[str, Mapping[str, Any]], wall: float) -> None:
        """Load the stored mutes, without those that have ended."""
        known = Mute.__dataclass_fields__
        for row in rows.values():
            mute = Mute(**{name: value for name, value in row.items() if name in known})
            if mute.ends > wall:
                self.put(mute)

    def put(self, mute: Mute) -> None:
        self._mutes[mute.mute_id] = (mute, selectors.parse(mute.select))

    def take_out(self, mute_id: str) -> None:
        self._mutes.pop(mute_id, None)

    def find(self, mute_id: str) -> Mute:
        if mute_id not in self._mutes:
            raise NotFound(f"no mute {mute_id[:80]!r}", "list them: invoke notify.mutes")
        return self._mutes[mute_id][0]

    def made(self, select: str, begins: float | None, for_s: float, note: str, by: str, wall: float) -> Mute:
        """Create a mute without adding it. `begins`: None for now. Raises UsageError or LimitExceeded."""
        selectors.parse(select)
        if not 0 < for_s <= LONGEST_S:
            raise UsageError(f"a mute of {for_s:g} s", "write how long, more than 0 s and at most 366 days")
        begins = wall if begins is None else begins
        if not wall - LONGEST_S <= begins <= wall + AHEAD_S or begins + for_s <= wall:
            raise UsageError("a mute that has already ended, or begins in more than a year", "check begins and for_s")
        if len(self._mutes) - len(self.ended(wall)) >= MAX_MUTES:
            raise LimitExceeded(
                f"there are {MAX_MUTES} mutes already", "remove some: invoke notify.unmute ID", status=429
            )
        return Mute("m-" + secrets.token_hex(4), select, begins, begins + for_s, note, by, wall)

    def ended(self, wall: float) -> list[Mute]:
        return [mute for mute, _ in self._mutes.values() if mute.ends <= wall]

    def views(self, wall: float) -> list[MuteView]:
        """Views of the mutes that have not ended, ordered by begin."""
        going = sorted((mute for mute, _ in self._mutes.values() if mute.ends > wall), key=lambda one: one.begins)
        return [mute.view(wall) for mute in going]

    def cover(self, at: str, facts: Mapping[str, Any]) -> bool:
        """Whether an alert with these facts at the time `at` (ISO 8601) is muted."""
        return bool(self._mutes) and self.covering(datetime.fromisoformat(at).timestamp(), facts) is not None

    def covering(self, wall: float, facts: Mapping[str, Any]) -> Mute | None:
        """The mute that covers `facts` at the time `wall`; of several, the one that ends last. None if there is
        none."""
        active = [mute for mute, one in self._mutes.values() if mute.begins <= wall < mute.ends and one.matches(facts)]
        return max(active, key=lambda mute: mute.ends, default=None)

    def tables(self) -> Tables:
        return {TABLE: {mute_id: mute.row() for mute_id, (mute, _) in self._mutes.items()}}
