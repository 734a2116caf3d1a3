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
    """The head of its column."""

    en: str
    zh: str


@dataclass(frozen=True)
class PageColumn:
    """In the portal's list. `key`: its name in the page's address, "" for the field's; `width` of a CSS grid, and
    `narrow` on a small screen (None: left out there); `usual`: shown until somebody chooses."""

    key: str = ""
    width: str = "minmax(80px, .8fr)"
    narrow: str | None = None
    usual: bool = False


@dataclass(frozen=True)
class Printed:
    """In tables of the command line (console/grid.py). `title`: "" for the label."""

    title: str = ""
    rank: int = 9
    wide: bool = True
    long: bool = False


@dataclass(frozen=True)
class Metric:
    """In /metrics, after the prefix of its kind; percent become ratios. `help`: one line."""

    name: str
    help: str


@dataclass(frozen=True)
class ShownField(Generic[S]):
    """`type`: as Python writes it; `read`: its value, moments as Unix seconds: an attribute ("worker.host") or what a
    function makes of the record's source or, where `part_of` names an object of the answer ("usage"), of that. `api`:
    a key of its own there; `optional`: one that may be missing.

    With a label it is in the lists: a row of the live feed, a column to choose, a column of `-o wide`. `live` says
    otherwise: "row" (told when something happened), "measure" (once a second), "" (not at all); `live_read`: another
    value for it. `column` or `printed` None: not there."""

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
        """How the live feed tells it."""
        if self.live is not None:
            return self.live
        return ("measure" if self.part_of else "row") if self.label is not None else ""

    @property
    def chosen_as(self) -> str:
        """The key of its column in the portal's list; "": it has none."""
        if self.label is None or self.column is None or not self.fed:
            return ""
        return self.column.key or self.name
