"""What every operator's task has in common: exit codes instead of tracebacks, help instead of accidents."""

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
from types import TracebackType
from typing import Any, TypeVar

from invoke import Context, task

from procguard.errors import ProcGuardError
from procguard.terminal import cleaned, install, say, say_block

F = TypeVar("F", bound=Callable[..., Any])


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
                _discard_output()
            except KeyboardInterrupt as exc:
                raise SystemExit(130) from exc

        return task(positional=list(positional), **options)(guarded)

    return wrap


def help_text(function: Callable[..., Any], positional: tuple[str, ...]) -> str:
    usage = " ".join([function.__name__.rstrip("_"), *(name.upper() for name in positional)])
    text = inspect.getdoc(function) or ""
    return f"usage: invoke {usage} [options]\n\n{text}\n\nAll options: invoke --help {function.__name__}"
