"""The users' own patterns (recovery.causes), matched in a child process that may be killed."""

from __future__ import annotations

import os

from remote_agent.runner.failure_causes.decision import Cause

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

OWN_LINES = 20  # the last lines, in which the users' own patterns are looked for
OWN_TIME_S = 0.5


def own_cause(lines: Sequence[str], own: Mapping[str, str]) -> Cause | None:
    """The first of `own` that matches one of the last lines, newest line first. Matched in a child process, because an
    expression may take unbounded time: the child is killed after OWN_TIME_S, and nothing counts as found."""
    import select
    import signal
    import time

    first = max(0, len(lines) - OWN_LINES)
    until = time.monotonic() + OWN_TIME_S
    read, write = os.pipe()
    try:
        pid = os.fork()
    except OSError:
        os.close(read)
        os.close(write)
        return None
    if pid == 0:
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(2)  # even if the runner dies
            os.write(write, _match(lines, first, own))
        finally:
            os._exit(0)
    os.close(write)
    said = b""
    if select.select([read], [], [], max(0.0, until - time.monotonic()))[0]:
        said = os.read(read, 4096)
    os.close(read)
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError:
        pass
    at, _, word = said.decode("ascii", "replace").partition(" ")
    return Cause(word, int(at)) if at.isdigit() and word in own else None


def _match(lines: Sequence[str], first: int, own: Mapping[str, str]) -> bytes:
    import re

    compiled = []
    for word, expression in own.items():
        try:
            compiled.append((word, re.compile(expression).search))
        except (re.error, ValueError, RecursionError, OverflowError):
            continue  # an expression that this host's Python does not accept matches nothing
    for at in range(len(lines) - 1, first - 1, -1):
        for word, search in compiled:
            if search(lines[at]):
                return f"{at} {word}".encode("ascii")
    return b""
