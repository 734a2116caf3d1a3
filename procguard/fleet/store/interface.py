"""What the registry asks of a store: tables of JSON records, changed by durable commits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

Record = dict[str, Any]
Tables = dict[str, dict[str, Record]]
# (table, key, record); record None deletes.
Change = tuple[str, str, "Record | None"]


@dataclass
class Loaded:
    """`intact` is False when anything acknowledged may be missing: the registry then opens a higher term."""

    tables: Tables = field(default_factory=dict)
    intact: bool = True
    notes: list[str] = field(default_factory=list)  # what was found damaged, one readable line each


class Store(Protocol):
    def load(self) -> Loaded:
        """Read everything back; called once, before the first commit."""

    def commit(self, changes: list[Change], *, wait: bool = True) -> None:
        """Make the changes durable together; returns when they are (or, without `wait`, at once).

        Raises NotDurable: then they follow with the next commit that succeeds, also an empty one.
        """

    def read(self) -> Loaded:
        """What `load` would return; changes nothing. For who only looks."""

    def in_place(self) -> bool:
        """Whether what is committed still lands where the state's path says: not once its folder was deleted."""

    def write_again(self, tables: Tables) -> None:
        """The state's files are gone while the manager runs: write all of `tables`, and go on from there.

        Raises NotDurable where the disk refuses, ProcGuardError where the state of another manager lies there now.
        """

    def save(self) -> None:
        """Fold what was committed into the readable snapshot. May return before that is done."""

    def close(self) -> None:
        """Everything handed in is durable and the snapshot is up to date when this returns."""


def apply(tables: Tables, changes: list[Change]) -> None:
    for table, key, record in changes:
        if record is None:
            tables.setdefault(table, {}).pop(key, None)
        else:
            tables.setdefault(table, {})[key] = record
