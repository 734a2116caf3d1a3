"""Declares a field of a worker, host or event: its name, type, unit and labels, and where it is shown.

The lists of fields are in `fleet/shapes`; the API, OpenAPI, the live feed, /metrics, the command line and the
portal's columns are generated from them. Imports no records, because the command line reads these lists too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, Literal, NamedTuple, TypeVar

S = TypeVar("S")
Unit = Literal["", "moment", "percent", "bytes", "bytes_per_s", "count", "labels"]


class Label(NamedTuple):
    """The title of the field's column."""

    en: str
    zh: str


@dataclass(frozen=True)
class PageColumn:
    """The field's column in the portal's list. `key`: its name in the page's address; "" for the field's name. `width`:
    of a CSS grid. `narrow`: width on a small screen; None to hide it there. `usual`: shown by default."""

    key: str = ""
    width: str = "minmax(80px, .8fr)"
    narrow: str | None = None
    usual: bool = False


@dataclass(frozen=True)
class Printed:
    """The field's column in tables of the command line (console/grid.py). `title`: "" for the label."""

    title: str = ""
    rank: int = 9
    wide: bool = True
    long: bool = False


@dataclass(frozen=True)
class Metric:
    """The field's metric in /metrics. `name`: without the prefix of its kind. Percentages are exported as ratios.
    `help`: one line."""

    name: str
    help: str


@dataclass(frozen=True)
class ShownField(Generic[S]):
    """A field of a worker, a host or an event.

    `type`: as a Python annotation. `read`: the attribute ("worker.host") or the function that yields the value from the
    record's source or, if `part_of` names an object of the response ("usage"), from that object; times are Unix
    seconds. `api`: whether the field is a key of the response. `optional`: whether that key may be missing.

    A field with a label is part of the lists: the live feed, the portal's columns, and `-o wide`. `live` overrides how
    the live feed sends it: "row" (on a change), "measure" (once a second), "" (not at all); `live_read`: another value
    for the feed. `column` or `printed`: None if the field has no such column.
    """

    name: str
    type: str
    read: str | Callable[[S], Any]
    says: str = ""
    label: Label | None = None
    unit: Unit = ""
    part_of: str = ""
    api: bool = True
    optional: bool = False
    live: Literal["row", "measure", "", None] = None
    live_read: Callable[[S], Any] | None = None
    column: PageColumn | None = PageColumn()
    printed: Printed | None = Printed()
    metric: Metric | None = None
    sortable: bool = False

    @property
    def fed(self) -> Literal["row", "measure", ""]:
        """How the live feed sends it; "" for not at all."""
        if self.live is not None:
            return self.live
        return ("measure" if self.part_of else "row") if self.label is not None else ""

    @property
    def chosen_as(self) -> str:
        """The key of its column in the portal's list; "" if it has none."""
        if self.label is None or self.column is None or not self.fed:
            return ""
        return self.column.key or self.name
