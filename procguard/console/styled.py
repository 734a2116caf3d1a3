"""Styled text for the operator's terminal: templates and markup are trusted, the values inserted are not.

`CleanConsole` treats a str as plain text, never as markup, and cleans every piece that it renders; only styles
control the terminal. Knows rich and terminal.py.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from procguard.console import language, terminal

WIDTH_WITHOUT_TERMINAL = 200


def styled(template: str, *values: object) -> Text:
    """`styled("[blue]{}[/] {:<11}", host, state)`: values are text of one line, or Text that is styled already. None of
    them is ever read as markup."""
    made, given = Text(), iter(values)
    for piece, spec in _pieces(language.template(template)):
        if spec is None:
            made.append_text(piece)
            continue
        number, _, form = spec.partition(":")
        value = values[int(number)] if number else next(given)
        filled = value.copy() if isinstance(value, Text) else Text(format(terminal.line(_shown(value)), form))
        for span in piece.spans:
            filled.stylize_before(span.style)
        made.append_text(filled)
    return made


def _shown(value: object) -> str:
    return str(value) if isinstance(value, (int, float)) else language.shown(str(value))


@functools.lru_cache(maxsize=256)
def _pieces(template: str) -> tuple[tuple[Text, str | None], ...]:
    """The template in pieces: (text, None), or for a `{}` (a text with its styles, "number:form")."""
    whole = Text.from_markup(template, emoji=False)
    found: list[tuple[Text, str | None]] = []
    position = 0
    for field in re.finditer(r"\{(\d?(?::[^{}]*)?)\}", whole.plain):
        found += [(whole[position : field.start()], None), (whole[field.start() : field.end()], field[1] or "")]
        position = field.end()
    return (*found, (whole[position:], None))


def joined(parts: Iterable[str | Text], by: str = "") -> Text:
    return Text(by).join(one if isinstance(one, Text) else Text(terminal.line(language.shown(one))) for one in parts)


class CleanConsole(Console):
    """See the module. Writes to the stream itself: its own colours are no text."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        options.setdefault("file", terminal.raw(sys.stderr if stderr else sys.stdout))
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """A str that is printed, or stands in a cell, is text of one line."""
        style = options.get("style") or ""
        return Text(
            terminal.line(language.shown(text)), style, justify=options.get("justify"), overflow=options.get("overflow")
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal.clean(segment.text), segment.style)


def console(stderr: bool = False) -> CleanConsole:
    """Wide where nobody looks: a table in a file or a pipe is not cut to 80 columns."""
    made = CleanConsole(stderr)
    return made if made.is_terminal else CleanConsole(stderr, width=WIDTH_WITHOUT_TERMINAL)
