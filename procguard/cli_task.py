"""What every operator's task has in common: exit codes instead of tracebacks, help instead of accidents."""

from __future__ import annotations

import atexit
import functools
import gc
import inspect
import os
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

from invoke import Context, task

from procguard.errors import ProcGuardError
from procguard.terminal import cleaned, install, say_block

F = TypeVar("F", bound=Callable[..., Any])


def begin() -> None:
    """What a command's process does first. Python would look for garbage again and again while it imports, and at its
    end once more among all that was imported: a fifth of the time that a short command takes."""
    install()
    gc.set_threshold(20_000, 20, 20)
    atexit.register(gc.freeze)


def operator_task(positional: tuple[str, ...] = (), **options: Any) -> Callable[[F], Any]:
    """An invoke task that ends with ProcGuard's exit codes and never with a traceback.

    A positional value that begins with `-` prints the help and does nothing: `invoke stop --help` would otherwise
    stop a worker of that name.
    """

    def wrap(function: F) -> Any:
        @functools.wraps(function)
        def guarded(context: Context, *args: Any, **kwargs: Any) -> None:
            given = inspect.signature(function).bind(context, *args, **kwargs).arguments
            dashed = [
                given[name] for name in positional if re.match("-.", str(given.get(name, "")))
            ]  # - alone is stdout
            if dashed:
                say_block(help_text(function, positional))
                raise SystemExit(0 if dashed[0] in ("-h", "--help") else 1)
            try:
                with cleaned():
                    function(context, *args, **kwargs)
            except ProcGuardError as exc:
                say_block(f"procguard: {exc}", err=True)
                raise SystemExit(exc.exit_code) from exc
            except BrokenPipeError:
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # `| head` has seen enough
            except KeyboardInterrupt as exc:
                raise SystemExit(130) from exc

        return task(positional=list(positional), **options)(guarded)

    return wrap


def help_text(function: Callable[..., Any], positional: tuple[str, ...]) -> str:
    usage = " ".join([function.__name__.rstrip("_"), *(name.upper() for name in positional)])
    text = inspect.getdoc(function) or ""
    return f"usage: invoke {usage} [options]\n\n{text}\n\nAll options: invoke --help {function.__name__}"
