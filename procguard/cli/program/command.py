"""The declaration of a command: a function whose parameters are the options and whose docstring is the help.

    @operator_task(("worker",), help={"worker": "its id", "follow": "follow the log"})
    def logs(worker: str, follow: bool = False) -> None:
        \"\"\"Show the log of a worker. Example: invoke logs worker1 -f\"\"\"

A positional name that ends in `+` takes one or more values. Imports the standard library only, because every command
loads this module.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

T = TypeVar("T")
JSON_TEXT = "the same as --output json"
LANG_TEXT = "en or zh (default: LC_ALL, LC_MESSAGES, LANG)"
OUTPUTS = ("table", "wide", "json", "yaml", "name")
LETTERS = {  # short options, the same as in Ansible, kubectl or grep; all other options have none
    "hosts": "i",
    "limit": "l",
    "forks": "f",
    "check": "C",
    "diff": "D",
    "ask_pass": "k",
    "ask_become_pass": "K",
    "config": "c",
    "daemon": "d",
    "follow": "f",
    "ignore_case": "i",
    "json_": "j",
    "output": "o",
    "port": "p",
    "tail": "n",
    "yes": "y",
}


@dataclass(frozen=True)
class OptionGroup:
    """Options that several commands share. The fields of a subclass, created by `option`, are the options.

    A parameter whose default is a group is replaced by the group's options; the group's values are their defaults.
    """


def option(default: T, text: str, choices: tuple[str, ...] = ()) -> T:
    """A field of an OptionGroup; `text` is the option's help."""
    made: T = field(default=default, metadata={"help": text, "choices": choices})
    return made


@dataclass(frozen=True)
class AnswerOptions(OptionGroup):
    """Options of commands that start work which takes a while."""

    no_wait: bool = option(False, "begin and return")
    json_: bool = option(False, "print the result as JSON")


@dataclass(frozen=True)
class OutputOptions(OptionGroup):
    """Options of commands that print a list."""

    output: str = option("table", f"one of {', '.join(OUTPUTS)}", OUTPUTS)
    json_: bool = option(False, JSON_TEXT)
    lang: str = option("", LANG_TEXT)

    @property
    def form(self) -> str:
        return "json" if self.json_ else self.output


ANSWER = AnswerOptions()
OUTPUT = OutputOptions()


@dataclass(frozen=True)
class Option:
    """`name`: the function's parameter. `kind`: str, int, float, bool, or list of str."""

    name: str
    kind: type
    default: Any
    help: str
    choices: tuple[str, ...] = ()

    @property
    def flag(self) -> str:
        return "--" + self.name.strip("_").replace("_", "-")

    @property
    def letter(self) -> str:
        """The letter of the short option; "" if there is none."""
        return LETTERS.get(self.name, "")


@dataclass(frozen=True)
class Positional:
    name: str
    help: str
    several: bool = False
    optional: bool = False
    default: Any = None


@dataclass(frozen=True)
class CliCommand:
    """A declared command; calling it calls its function."""

    name: str
    function: Callable[..., None]
    positionals: tuple[Positional, ...]
    options: tuple[Option, ...]
    groups: Mapping[str, OptionGroup]
    is_default: bool = False  # command of its group: `procguard token` runs `procguard token list`

    def __call__(self, **given: Any) -> None:
        self.function(**given)

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.function) or ""

    @property
    def summary(self) -> str:
        """The first sentence of the help, without its full stop: "Start workers"."""
        return self.doc.partition("\n")[0].partition(" Example: ")[0].rstrip(".")

    @property
    def example(self) -> str:
        return (
            " ".join(self.doc.split()).partition("Example: ")[2].partition("  ")[0] if "Example: " in self.doc else ""
        )

    def run(self, given: Mapping[str, Any]) -> None:
        """Call the function. `given`: values by names of options and positionals; those of a group's options are passed
        as a group."""
        values = dict(given)
        for name, group in self.groups.items():
            mine = [one.name for one in fields(group) if one.name in values]
            values[name] = replace(group, **{one: values.pop(one) for one in mine})
        self.function(**values)


def operator_task(
    positional: tuple[str, ...] = (), *, name: str = "", default: bool = False, help: Mapping[str, str] | None = None
) -> Callable[[Callable[..., None]], CliCommand]:
    """Declare a command. `positional`: parameters that are positional arguments. `name`: default: the function's.
    `default`: whether it is the default command of its group. `help`: texts by parameter."""
    texts = dict(help or {})
    several = {one.rstrip("+") for one in positional if one.endswith("+")}
    first = [one.rstrip("+") for one in positional]

    def wrap(function: Callable[..., None]) -> CliCommand:
        parameters = inspect.signature(function).parameters
        groups = {key: one.default for key, one in parameters.items() if isinstance(one.default, OptionGroup)}
        positionals = []
        for key in first:
            given = parameters[key].default
            optional = given is not inspect.Parameter.empty
            positionals.append(
                Positional(key, texts.get(key, ""), key in several, optional, given if optional else None)
            )
        options: list[Option] = []
        for key, one in parameters.items():
            if key in groups:
                for part in fields(groups[key]):
                    options.append(_option(part.name, getattr(groups[key], part.name), part.metadata))
            elif key not in first:
                options.append(_option(key, one.default, {"help": texts.get(key, "")}))
        return CliCommand(name or function.__name__, function, tuple(positionals), tuple(options), groups, default)

    return wrap


def _option(name: str, default: Any, about: Mapping[str, Any]) -> Option:
    kind = list if isinstance(default, (list, tuple)) else type(default)
    return Option(name, kind, default, str(about.get("help", "")), tuple(about.get("choices") or ()))
