"""Parses a command's arguments by its declaration, and formats its help. Raises UsageError that suggests the closest
word.
"""

from __future__ import annotations

import argparse
import difflib
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from procguard import hints
from procguard.cli.program.command import LANG_TEXT, CliCommand, Option, Positional
from procguard.console.grid import wrapped
from procguard.console.language import of_environment, shown
from procguard.errors import UsageError

WIDEST = 120


class CommandParser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError, with the command that shows the help, instead of exiting."""

    def __init__(self, command: CliCommand, path: str) -> None:
        super().__init__(prog=path, add_help=False, allow_abbrev=False)
        self.command = command
        self.path = path

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{self.path}: {message}", f"its options: {hints.program(f'{self.path} -h')}")


def parse(command: CliCommand, path: str, words: Sequence[str]) -> dict[str, Any]:
    """Parse the arguments of a command. `path`: as typed, e.g. "token create". Returns values by names of positionals
    and options. Raises UsageError."""
    parser = CommandParser(command, path)
    for one in command.positionals:
        parser.add_argument(one.name, metavar=_shown(one), **_of_positional(one))
    for option in command.options:
        flags = [option.flag, *([f"-{option.letter}"] if option.letter else [])]
        parser.add_argument(*flags, dest=option.name, **_of_option(option))
    found, unknown = parser.parse_known_intermixed_args(list(words))
    if unknown:
        flags = [option.flag for option in command.options]
        wrong = next((word for word in unknown if word.startswith("-")), unknown[0])
        near = did_you_mean(wrong.partition("=")[0], flags)
        raise UsageError(
            f"{path}: unknown option {wrong}{near}" if wrong[0] == "-" else f"{path}: unknown argument {wrong}{near}",
            f"its options: {hints.program(f'{path} -h')}",
        )
    return vars(found)


def _of_positional(one: Positional) -> dict[str, Any]:
    if one.several:
        return {"nargs": "*" if one.optional else "+"}
    return {"nargs": "?", "default": one.default} if one.optional else {}


def _of_option(one: Option) -> dict[str, Any]:
    if one.kind is bool:
        return {"action": "store_true", "default": one.default}
    if one.kind is list:
        return {"action": "append", "default": list(one.default)}
    made: dict[str, Any] = {"default": one.default, "type": one.kind}
    return made | ({"choices": one.choices} if one.choices else {})


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """`; did you mean ps?` with the closest known words; "" if none is close."""
    near = difflib.get_close_matches(word, list(known), 2, 0.5) if len(word) > 2 else []  # -o is close to every option
    return f"; did you mean {' or '.join(near)}?" if near else ""


# ----------------------------------------------------------------------------------------------------- help


def width() -> int:
    return min(shutil.get_terminal_size().columns, WIDEST) if sys.stdout.isatty() else WIDEST


def help_text(command: CliCommand, path: str, columns: int | None = None) -> str:
    """The help of a command: usage, description, arguments and options. `columns`: line width; default: of the
    terminal, at most 120."""
    wide = columns or width()
    positionals = " ".join(_usage(one) for one in command.positionals)
    usage = f"{shown('usage:')} {hints.program(path)} {positionals}".rstrip()
    lines = [usage + f" [{shown('options')}]", "", *_paragraphs(hints.commands(command.doc), wide)]
    rows = [(_shown(one), shown(one.help)) for one in command.positionals]
    if rows:
        lines += ["", shown("arguments:"), *_columns(rows, wide)]
    rows = [(_flags(one), _help(one)) for one in command.options]
    if all(one.name != "lang" for one in command.options):
        rows.append(("    --lang LANG", shown(LANG_TEXT)))
    lines += ["", shown("options:"), *_columns([*rows, ("-h, --help", shown("this help"))], wide)]
    return "\n".join(lines)


def _paragraphs(text: str, wide: int) -> list[str]:
    head, _, example = text.partition("Example: ")
    example, _, rest = example.partition("\n")
    lines: list[str] = []
    for paragraph in (*head.split("\n\n"), *rest.split("\n\n")):
        if paragraph.strip():
            lines += ([""] if lines else []) + _wrapped(shown(" ".join(paragraph.split())), wide)
    return lines + (["", f"{shown('example:')} {example.strip()}"] if example.strip() else [])


def _columns(rows: Sequence[tuple[str, str]], wide: int) -> list[str]:
    left = min(max(len(name) for name, _ in rows), 30) + 4
    lines = []
    for name, text in rows:
        wrapped = _wrapped(hints.commands(text), max(wide - left, 20)) or [""]
        head = f"  {name}".ljust(left)
        if len(head) > left:
            lines.append(head)
            head = " " * left
        lines.append((head + wrapped[0]).rstrip())
        lines += [" " * left + one for one in wrapped[1:]]
    return lines


def _wrapped(text: str, wide: int) -> list[str]:
    if not text.isascii() and of_environment() == "zh":
        return wrapped(text, wide, "")
    return textwrap.wrap(text, wide, break_on_hyphens=False, break_long_words=False)


def _usage(one: Positional) -> str:
    name = _shown(one) + (" ..." if one.several else "")
    return f"[{name}]" if one.optional else name


def _shown(one: Positional) -> str:
    return one.name.rstrip("_").upper()


def _flags(one: Option) -> str:
    value = "" if one.kind is bool else f" {_value(one)}"
    return (f"-{one.letter}, " if one.letter else "    ") + one.flag + value


def _value(one: Option) -> str:
    return {int: "N", float: "S"}.get(one.kind, one.name.strip("_").upper().replace("_", "-"))


def _help(one: Option) -> str:
    is_shown = one.default not in (False, "", 0, None, [], ()) and str(one.default) not in one.help
    default = f"（{one.default}）" if of_environment() == "zh" else f" ({one.default})"
    return shown(one.help) + (default if is_shown else "")
