"""Tables: columns that fit the terminal, for any view.

A column declares its content, its rank and whether it may be shortened. In a narrow terminal, empty columns are
dropped first, then long texts are shortened, then columns of low rank are dropped. A pipe gets all columns in full.
Knows no views and no HTTP; standard library only, to keep `procguard ps` fast.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

from procguard.console import terminal

V = TypeVar("V")
GAP = "  "
_PIECE = re.compile(r"\s*[\u2e80-\u9fff\uff00-\uffef]|\s*[^\s\u2e80-\u9fff\uff00-\uffef]+|\s+$")
SHORTEST = 14  # minimum length of a shortened text
_SGR = {
    "bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "blue": "34", "magenta": "35", "cyan": "36",
    "bright_red": "91",
}  # fmt: skip


class Cell(NamedTuple):
    text: str
    colour: str = ""
    after: str = ""  # uncoloured text that follows


@dataclass(frozen=True)
class Column(Generic[V]):
    """A column of a table. `rank`: 0 for a column that is never dropped; otherwise the highest rank is dropped first.
    `wide`: shown only in the wide format. `long`: may be shortened."""

    title: str
    cell: Callable[[V], object]
    rank: int = 0
    wide: bool = False
    long: bool = False


def width_of(text: str) -> int:
    """The number of terminal columns that `text` takes: two for a Chinese character, none for a combining one."""
    if text.isascii():
        return len(text)
    wide = sum(unicodedata.east_asian_width(one) in "WF" for one in text)
    return len(text) + wide - sum(unicodedata.combining(one) != 0 for one in text)


def shortened(text: str, width: int) -> str:
    if width_of(text) <= width:
        return text
    kept = text[: max(width - 1, 0)]
    while width_of(kept) > width - 1 and kept:
        kept = kept[:-1]
    return kept.rstrip() + "…"


def wrapped(text: str, width: int | None, hang: str = "    ") -> list[str]:
    """The lines of `text`, each at most `width` columns wide (None: no limit), broken at blanks and between Chinese
    characters. Every line but the first begins with `hang`."""
    if width is None or width_of(text) <= width:
        return [text]
    lines, line, used = [], "", 0
    for found in _PIECE.findall(text):
        piece = found
        if used + width_of(piece.rstrip()) > width and line.strip():
            lines.append(line.rstrip())
            line, used = hang, len(hang)
            piece = piece.lstrip()
        line, used = line + piece, used + width_of(piece)
    return [*lines, line.rstrip()]


def terminal_width(stream: Any) -> int | None:
    """The number of columns of a terminal; None for a pipe or a file, where nothing is shortened."""
    return shutil.get_terminal_size().columns if terminal.raw(stream).isatty() else None


def say_wrapped(text: str, *, hang: str = "    ", err: bool = False) -> None:
    """Print one line of untrusted text or text that is translated already, wrapped at the width of the terminal."""
    for line in wrapped(terminal.line(text), terminal_width(sys.stderr if err else sys.stdout), hang):
        terminal.say_as_is(line, err=err)


def render(
    columns: Sequence[Column[V]],
    views: Iterable[V],
    width: int | None,
    *,
    everything: bool = False,
    colour: bool = False,
) -> list[str]:
    """The lines of a table, titles first. `width`: maximum, in terminal columns; None for no limit. `everything`:
    include the columns marked `wide`."""
    shown = [one for one in columns if everything or not one.wide]
    rows = [[_cell(one.cell(view)) for one in shown] for view in views]
    kept = [number for number, one in enumerate(shown) if not one.rank or any(row[number].text for row in rows)]
    natural = [
        max([width_of(one.title), *(width_of(row[number].text + row[number].after) for row in rows)])
        for number, one in enumerate(shown)
    ]
    widths = dict(zip(kept, (natural[number] for number in kept), strict=True))
    if width is not None:
        widths = _fitted(shown, widths, width)
    lines = [_line([(Cell(shown[number].title, "bold"), widths[number]) for number in widths], colour)]
    return lines + [_line([(row[number], widths[number]) for number in widths], colour) for row in rows]


def show(columns: Sequence[Column[V]], views: Iterable[V], *, everything: bool = False) -> None:
    """Print a table to stdout."""
    out = terminal.raw(sys.stdout)
    is_terminal = out.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else None
    lines = render(columns, views, width, everything=everything, colour=is_terminal and coloured())
    out.write("".join(f"{one}\n" for one in lines))


def coloured() -> bool:
    """Whether colours are allowed: not with NO_COLOR (https://no-color.org) or on a dumb terminal."""
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def painted(cell: Cell, colour: bool = True) -> str:
    code = _SGR.get(cell.colour) if colour else None
    return (f"\x1b[{code}m{cell.text}\x1b[0m" if code else cell.text) + cell.after


def _cell(value: object) -> Cell:
    if isinstance(value, Cell):
        return Cell(terminal.line(value.text), value.colour, terminal.line(value.after))
    return Cell("" if value is None else terminal.line(value))


def _fitted(columns: Sequence[Column[Any]], widths: dict[int, int], width: int) -> dict[int, int]:
    widths = dict(widths)
    while True:
        over = sum(widths.values()) + len(GAP) * (len(widths) - 1) - width
        if over <= 0:
            return widths
        longs = [number for number in widths if columns[number].long]
        room = sum(max(0, widths[number] - _least(columns[number])) for number in longs)
        if room >= over:
            break
        droppable = [number for number in widths if columns[number].rank]
        if not droppable:
            longs = longs or [max(widths, key=lambda number: widths[number])]
            break
        del widths[max(droppable, key=lambda number: columns[number].rank)]
    while over > 0:  # shorten the widest column first
        widest = max(longs, key=lambda number: widths[number])
        if widths[widest] <= 3:
            return widths
        widths[widest] -= 1
        over -= 1
    return widths


def _least(column: Column[Any]) -> int:
    return max(SHORTEST, len(column.title))


def _line(cells: Sequence[tuple[Cell, int]], colour: bool) -> str:
    parts = []
    for number, (cell, size) in enumerate(cells):
        text = shortened(cell.text, size)
        after = shortened(cell.after, size - width_of(text)) if cell.after and size > width_of(text) else ""
        last = number == len(cells) - 1
        padding = "" if last else " " * (size - width_of(text + after))
        parts.append(painted(Cell(text, cell.colour, after), colour) + padding)
    return GAP.join(parts).rstrip()
