"""Prints one list in the selected format: table, wide, JSON, YAML, or names only."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from procguard.cli.output.language import chosen
from procguard.cli.program.command import OutputOptions
from procguard.console import grid, terminal
from procguard.console.grid import Column
from procguard.console.terminal import say, say_as_is, say_json
from procguard.hints import commands

if TYPE_CHECKING:
    from procguard.console.tables import View


def listed(
    views: Sequence[View],
    columns: Sequence[Column[View]],
    output: OutputOptions,
    name: str,
    *,
    whole: Any = None,
    empty: str = "",
) -> None:
    """Print `views` as a list. `name`: the key whose value `--output name` prints. `whole`: printed as JSON or YAML
    instead of the views. `empty`: printed instead of an empty table."""
    form = output.form
    if form == "json":
        say_json(views if whole is None else whole)
    elif form == "yaml":
        say_yaml(views if whole is None else whole)
    elif form == "name":
        for view in views:
            say_as_is(view.get(name) or "")
    elif not views and empty:
        say(commands(empty))
    else:
        words = chosen(output.lang)
        heads = [dataclasses.replace(one, title=words.head(one.title)) for one in columns]
        grid.show(heads, words.translated(list(views)), everything=form == "wide")


def say_yaml(value: Any) -> None:
    import yaml

    text = yaml.safe_dump(value, allow_unicode=True, sort_keys=False, default_flow_style=False)
    sys.stdout.write(terminal.clean(text))


def say_styled(what: Any, *, err: bool = False) -> None:
    """Print a renderable of rich. Imports rich, which takes long, only when called."""
    from procguard.console.styled import console

    console(stderr=err).print(what)


def say_painted(text: str) -> None:
    """Print a line with ProcGuard's own colours, whose texts are already cleaned of control sequences."""
    terminal.raw(sys.stdout).write(text + "\n")


def is_coloured() -> bool:
    return terminal.raw(sys.stdout).isatty() and grid.coloured()
