"""The process of a command: fast start-up, and ProcGuard's exit codes instead of tracebacks.

0 success, 1 usage error, 2 some hosts or workers failed, 3 the manager is unreachable, 130 Ctrl-C.
"""

from __future__ import annotations

import atexit
import errno
import gc
import os
import sys
from collections.abc import Callable
from types import TracebackType

from procguard import hints
from procguard.console import grid, language
from procguard.console.terminal import cleaned, install, say, say_as_is
from procguard.errors import ProcGuardError


def begin() -> None:
    """Set up the process of a command: output, garbage collection, and reports of output errors.

    By default Python collects garbage repeatedly during imports, and once more at exit over all that was imported. This
    takes a fifth of the time of a short command, so collections are made rare and the last one is skipped.
    """
    install()
    gc.set_threshold(20_000, 20, 20)
    atexit.register(gc.freeze)
    atexit.register(_flush)
    sys.excepthook = _report_output_errors


def guarded(action: Callable[[], None]) -> int:
    """Run `action`, print a ProcGuardError as one message, and return the exit code."""
    try:
        with cleaned():
            action()
    except ProcGuardError as exc:
        say_error(exc)
        return exc.exit_code
    except BrokenPipeError:
        _discard_output()
    except KeyboardInterrupt:
        return 130
    return 0


def say_error(exc: ProcGuardError) -> None:
    """Print an error and its next step to standard error; lines after the first are indented."""
    first, *rest = hints.local(f"procguard: {language.sentence(exc.message, exc.next_step)}").split("\n")
    grid.say_wrapped(first, hang="  ", err=True)
    for line in rest:
        say_as_is(f"  {line}", err=True)


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()


def _discard_output() -> None:
    """Redirect standard output to /dev/null after the reader of a pipe, such as `head`, has closed it, so that further
    output raises no error."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _report_output_errors(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """The excepthook: handles a closed pipe and a full disk without a traceback. Also covers output of invoke itself
    outside of any task: `invoke --list | head`, `invoke --list >/full/disk`."""
    if isinstance(error, BrokenPipeError):
        _discard_output()
        os._exit(0)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and not error.filename:
        say(f"procguard: cannot write the output ({error.strerror}); free space, then repeat", err=True)
        _discard_output()
        return
    sys.__excepthook__(kind, error, trace)
