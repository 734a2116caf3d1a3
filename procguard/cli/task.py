"""What operators' tasks have in common: exit codes instead of tracebacks, help instead of accidents, shared options."""

from __future__ import annotations

import atexit
import errno
import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from types import TracebackType
from typing import Any, TypeVar

from invoke import Context, task

from procguard.console.terminal import cleaned, install, say, say_block
from procguard.errors import ProcGuardError

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
JSON_TEXT = "machine-readable result on stdout"


def begin() -> None:
    """What a command's process does first. Python would look for garbage again and again while it imports, and at its
    end once more among all that was imported: a fifth of the time that a short command takes."""
    install()
    gc.set_threshold(20_000, 20, 20)
    atexit.register(gc.freeze)
    atexit.register(_flush)
    sys.excepthook = _report_output_errors


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """`| head` has read enough and closed the pipe: what is still to be printed goes nowhere, without a complaint."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_output_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Also for what invoke itself prints outside of any task: `invoke --list | head`, `invoke --list >/full/disk`."""
    if isinstance(error, BrokenPipeError):
        _discard_output()
        os._exit(0)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        say(f"procguard: cannot write the output ({error.strerror}); free space, then repeat", err=True)
        _discard_output()
        return
    sys.__excepthook__(kind, error, trace)


@dataclass(frozen=True)
class OptionGroup:
    """Options that several tasks share. The fields of a subclass, made by `option`, are the options.

    In an operator task, a parameter whose default is a group stands for the group's options, in its place among the
    others; the group's values are their defaults.
    """


def option(default: T, text: str) -> T:
    """A field of an OptionGroup; `text` is the option's help."""
    made: T = field(default=default, metadata={"help": text})
    return made


@dataclass(frozen=True)
class AnswerOptions(OptionGroup):
    """What is said of something that goes on for a while, and when."""

    no_wait: bool = option(False, "begin and return")
    json_: bool = option(False, JSON_TEXT)


ANSWER = AnswerOptions()


def operator_task(positional: tuple[str, ...] = (), **options: Any) -> Callable[[F], Any]:
    """An invoke task that ends with ProcGuard's exit codes and never with a traceback.

    A positional value that begins with `-` prints the help and does nothing: `invoke stop --help` would otherwise
    stop a worker of that name.
    """

    def wrap(function: F) -> Any:
        groups = {
            name: parameter.default
            for name, parameter in inspect.signature(function).parameters.items()
            if isinstance(parameter.default, OptionGroup)
        }
        signature = _without_groups(inspect.signature(function), groups)

        @functools.wraps(function)
        def guarded(context: Context, *args: Any, **kwargs: Any) -> None:
            given = signature.bind(context, *args, **kwargs).arguments
            dashed = [
                given[name] for name in positional if re.match("-.", str(given.get(name, "")))
            ]  # - alone is stdout
            if dashed:
                say_block(help_text(function, positional))
                raise SystemExit(0 if dashed[0] in ("-h", "--help") else 1)
            try:
                with cleaned():
                    function(**_with_groups(given, groups))
            except ProcGuardError as exc:
                say_block(f"procguard: {exc}", err=True)
                raise SystemExit(exc.exit_code) from exc
            except BrokenPipeError:
                _discard_output()
            except KeyboardInterrupt as exc:
                raise SystemExit(130) from exc

        guarded.__signature__ = signature  # type: ignore[attr-defined]
        texts = {one.name: one.metadata["help"] for group in groups.values() for one in fields(group)}
        texts.update(options.pop("help", {}))
        return task(positional=list(positional), help=texts, **options)(guarded)

    return wrap


def _without_groups(signature: inspect.Signature, groups: dict[str, OptionGroup]) -> inspect.Signature:
    """With each group's options in the group's place, which is what invoke reads options and their letters from."""
    parameters: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        group = groups.get(name)
        if group is None:
            parameters.append(parameter)
            continue
        for one in fields(group):
            parameters.append(parameter.replace(name=one.name, default=getattr(group, one.name), annotation=one.type))
    return signature.replace(parameters=parameters)


def _with_groups(given: dict[str, Any], groups: dict[str, OptionGroup]) -> dict[str, Any]:
    """`given` values by name, those of a group's options in a group."""
    values = dict(given)
    for name, group in groups.items():
        mine = [one.name for one in fields(group) if one.name in values]
        values[name] = replace(group, **{one: values.pop(one) for one in mine})
    return values


def print_table(what: Any, stderr: bool = False) -> None:
    """A table, or another thing of rich's, which takes long to import: only tasks that print one pay for it."""
    from procguard.cli.output import deployment

    deployment.console(stderr=stderr).print(what)


def help_text(function: Callable[..., Any], positional: tuple[str, ...]) -> str:
    usage = " ".join([function.__name__.rstrip("_"), *(name.upper() for name in positional)])
    text = inspect.getdoc(function) or ""
    return f"usage: invoke {usage} [options]\n\n{text}\n\nAll options: invoke --help {function.__name__}"
