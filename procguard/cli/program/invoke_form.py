"""The commands as invoke tasks, for `invoke --list` and for lines with several tasks (`invoke stop a start b`).

A single command does not use this module: tasks.py passes its arguments to the program, so that both forms are
identical.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping
from typing import Any

from invoke import Collection, Context, Task, task

from procguard.cli.program import process
from procguard.cli.program.command import LETTERS, CliCommand


def collection(commands: Mapping[str, CliCommand], groups: Mapping[str, Iterable[CliCommand]]) -> Collection:
    made = Collection()
    for name, command in commands.items():
        made.add_task(as_task(command), name=name)
    for name, parts in groups.items():
        made.add_collection(Collection(*map(as_task, parts)), name=name)
    return made


class _Task(Task):  # type: ignore[misc]
    def arg_opts(self, name: str, default: Any, taken_names: set[str]) -> dict[str, Any]:
        """Only the short options of LETTERS; by default, invoke creates one from any free letter."""
        made: dict[str, Any] = super().arg_opts(name, default, taken_names)
        if name in LETTERS:
            made["names"] = (*made["names"], LETTERS[name])
        return made


def as_task(command: CliCommand) -> Task:
    def body(_context: Context, **given: Any) -> None:
        several = {one.name: [given[one.name]] for one in command.positionals if one.several}
        code = process.guarded(lambda: command.run({**given, **several}))
        if code:
            raise SystemExit(code)

    parameters = [inspect.Parameter("_context", inspect.Parameter.POSITIONAL_OR_KEYWORD)]
    for one in command.positionals:
        default = one.default if one.optional else inspect.Parameter.empty
        parameters.append(inspect.Parameter(one.name, inspect.Parameter.POSITIONAL_OR_KEYWORD, default=default))
    for option in command.options:
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        default = None if option.kind is list else option.default
        parameters.append(inspect.Parameter(option.name, kind, default=default))
    body.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    body.__name__ = command.name
    body.__doc__ = command.doc
    return task(
        klass=_Task,
        auto_shortflags=False,
        name=command.name,
        default=command.is_default,
        positional=[one.name for one in command.positionals],
        iterable=[option.name for option in command.options if option.kind is list],
        help={one.name: one.help for one in command.positionals} | {one.name: one.help for one in command.options},
    )(body)
