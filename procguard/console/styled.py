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
    """Fill a template: `styled("[blue]{}[/] {:<11}", host, state)`. Values are inserted as one line of text, or as Text
    that is already styled; they are never interpreted as markup."""
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
    """A rich console whose text cannot control the terminal (see the module). Writes to the raw stream, because its own
    styles are escape sequences."""

    def __init__(self, stderr: bool = False, **options: Any) -> None:
        options.setdefault("file", terminal.raw(sys.stderr if stderr else sys.stdout))
        super().__init__(markup=False, emoji=False, highlight=False, soft_wrap=True, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a str, printed or in a cell, as one line of plain text."""
        style = options.get("style") or ""
        return Text(
            terminal.line(language.shown(text)), style, justify=options.get("justify"), overflow=options.get("overflow")
        )

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else Segment(terminal.clean(segment.text), segment.style)


def console(stderr: bool = False) -> CleanConsole:
    """A console for stdout or stderr. In a file or a pipe it is WIDTH_WITHOUT_TERMINAL columns wide, so that tables are
    not cut to 80 columns."""
    made = CleanConsole(stderr)
    return made if made.is_terminal else CleanConsole(stderr, width=WIDTH_WITHOUT_TERMINAL)
