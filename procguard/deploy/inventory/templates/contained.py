"""Runs work on untrusted templates in a separate process with limits on memory and on the time of each template.

A template can run arbitrary computations: `'a' * 10**9`, nested loops or `**` use unlimited resources, and a call
implemented in C cannot be interrupted. The kernel therefore enforces the limits, and only the process that exceeds
them is killed. Knows nothing of templates.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
import resource
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

from procguard.errors import InventoryError, ProcGuardError

T = TypeVar("T")

MEMORY_BYTES = 512 * 1024 * 1024  # in addition to the memory of the process at its start
SOFT_S, HARD_S = 2.0, 4.0  # processor time of one template: an error is raised; the process is killed
STUCK_S = 20.0  # wall-clock limit of one template, for one that waits
ALL_S = 300  # processor time of all templates
MAX_RESULT_BYTES = 256 * 1024 * 1024
NOTE_BYTES = 512


class OutOfTime(Exception):
    """A template has exceeded its time limit."""


class Bounds:
    """Passed to the work, which wraps each template in `of(what)`."""

    def __init__(self, note: mmap.mmap) -> None:
        self._note = note
        signal.signal(signal.SIGVTALRM, self._expired)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)  # these two signals end the process unconditionally
        signal.signal(signal.SIGALRM, signal.SIG_DFL)

    @contextlib.contextmanager
    def of(self, what: str) -> Iterator[None]:
        self._note[:] = what.encode("utf-8", "replace")[: NOTE_BYTES - 1].ljust(NOTE_BYTES, b"\0")
        self._arm(SOFT_S, HARD_S, STUCK_S)
        try:
            yield
        finally:
            self._arm(0, 0, 0)

    @staticmethod
    def _arm(soft_s: float, hard_s: float, stuck_s: float) -> None:
        signal.setitimer(signal.ITIMER_VIRTUAL, soft_s)
        signal.setitimer(signal.ITIMER_PROF, hard_s)
        signal.setitimer(signal.ITIMER_REAL, stuck_s)

    @staticmethod
    def _expired(_number: int, _frame: Any) -> NoReturn:
        raise OutOfTime(f"it takes more than {SOFT_S:g} s of processor time")


def run(work: Callable[[Bounds], T]) -> T:
    """Run `work` in the process and return its result, which is pickled. Raises the ProcGuardError that `work` raised,
    and an InventoryError that names the template if a limit was exceeded."""
    note = mmap.mmap(-1, NOTE_BYTES)
    reads, writes = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, note, reads, writes)
    os.close(writes)
    try:
        data = _received(reads)
    finally:
        os.close(reads)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)  # its result has been received, or is not expected any more
        _, status = os.waitpid(child, 0)
    if not data:
        where = bytes(note).rstrip(b"\0").decode("utf-8", "replace") or "the inventory's templates"
        most = f"{HARD_S:g} s of processor time, {STUCK_S:g} s by the clock and {MEMORY_BYTES >> 20} MiB of memory"
        raise InventoryError(
            f"{where}: exceeds the limits of a template ({most})",
            f"simplify it (ended with {os.waitstatus_to_exitcode(status)})",
        )
    good, result = pickle.loads(data)  # noqa: S301 - from a child of this process, through a private pipe
    if not good:
        raise result
    return result  # type: ignore[no-any-return]


def _work(work: Callable[[Bounds], Any], note: mmap.mmap, reads: int, writes: int) -> NoReturn:
    try:
        os.close(reads)
        _limit()
        try:
            answer = (True, work(Bounds(note)))
        except ProcGuardError as exc:
            answer = (False, exc)
        data = memoryview(pickle.dumps(answer))
        while data:
            data = data[os.write(writes, data) :]
        os._exit(0)
    finally:
        os._exit(1)


def _limit() -> None:
    with contextlib.suppress(OSError, ValueError):  # if the system lacks this limit, the others apply
        with open("/proc/self/statm", "rb") as file:
            has = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (has + MEMORY_BYTES, resource.RLIM_INFINITY))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (ALL_S, ALL_S))
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _received(descriptor: int) -> bytes:
    """Everything up to the end of the pipe; nothing if that takes too long or is too large."""
    data, deadline = bytearray(), time.monotonic() + ALL_S * 2
    while len(data) <= MAX_RESULT_BYTES and time.monotonic() < deadline:
        if not select.select([descriptor], [], [], 1.0)[0]:
            continue
        piece = os.read(descriptor, 1 << 20)
        if not piece:
            return bytes(data)
        data += piece
    return b""
