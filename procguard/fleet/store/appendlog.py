"""A file of JSON lines that only grows: one line is durable when it was fsynced. Group commit.

Owns writing, syncing and reading back of one file. Knows nothing of what the lines mean.
Each line carries a CRC, so that a line torn by a power cut is recognised and dropped, never misread.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import threading
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from procguard.errors import ProcGuardError

GONE = "the file was deleted or moved away"
LOOK_AGAIN_S = 5.0  # a waiter does, whatever happens to whoever was to wake it

RunBlocking = Callable[[Callable[[], None]], None]


class NotDurable(ProcGuardError):
    """The disk refused; what was asked is not acknowledged. It is written as soon as the disk takes it again."""

    http_status = 503
    default_code = "not_durable"


def run_here(task: Callable[[], None]) -> None:
    task()


class _Waiter:
    """`mine`: the line it waits for; None: its turn to lead. `woken` is released once."""

    __slots__ = ("mine", "woken")

    def __init__(self, mine: int | None) -> None:
        self.mine = mine
        self.woken = threading.Lock()
        self.woken.acquire()


class AppendLog:
    """`run_blocking` runs the write and the fsync off the event loop (the manager hands in gevent's thread pool).

    `also`: called there with the payloads of the lines that were just synced, in their order; they count as durable
    when it has returned. It raises OSError where it can't.

    A line counts as durable only while the file is where its path says: a file that was deleted or moved takes writes
    like any other. `reopens`: such a file is created again and goes on with what is pending; else all is refused.
    """

    def __init__(
        self,
        path: str,
        run_blocking: RunBlocking = run_here,
        also: Callable[[list[Any]], None] | None = None,
        *,
        reopens: bool = False,
    ) -> None:
        self.path = path
        self.lines_written = 0
        self._reopens = reopens
        self._replaced = False  # another log has taken over what was pending here
        self._run_blocking = run_blocking
        self._also = also
        self._lock = threading.Lock()
        self._waiters: deque[_Waiter] = deque()  # in the order of what they wait for, nearly
        self._pending: list[tuple[bytes, Any]] = []  # (line, payload)
        self._submitted = 0  # lines handed in, ever
        self._durable = 0  # lines fsynced, ever
        self._flushing = False
        self._fd = _open(path)
        self._good_bytes = os.fstat(self._fd).st_size
        self._torn = False  # something stands after the good bytes, and could not be cut off yet
        sync_directory(path)

    @property
    def size_bytes(self) -> int:
        return self._good_bytes

    @property
    def pending_lines(self) -> int:
        """Handed in and not on disk."""
        return self._submitted - self._durable

    def append(self, records: Iterable[Any], *, wait: bool = True, payload: Any = None) -> int:
        """Write `records`, one line each. With `wait` it returns when they are on disk; raises NotDurable otherwise.

        Returns what `wait_durable` takes. `payload` goes to `also` with the last of them.
        """
        lines: list[tuple[bytes, Any]] = [(_line(record), None) for record in records]
        if not lines:
            return self._submitted
        lines[-1] = (lines[-1][0], payload)
        with self._lock:
            self._pending.extend(lines)
            self._submitted += len(lines)
            mine = self._submitted
        if wait:
            self.wait_durable(mine)
        return mine

    def flush(self) -> None:
        """Return when everything handed in so far is on disk."""
        self.wait_durable(self._submitted)

    def close(self) -> None:
        try:
            self.flush()
        finally:
            os.close(self._fd)

    def wait_durable(self, mine: int) -> None:
        while self._durable < mine:
            if self._replaced:
                raise self._refusal(OSError(errno.ESTALE, GONE))
            if self._lead_or_wait(mine):
                self._lead(None)

    def in_place(self) -> bool:
        """Whether the path still names the file that is written to. Raises OSError where the disk does not say."""
        try:
            return os.path.samestat(os.stat(self.path), os.fstat(self._fd))
        except (FileNotFoundError, NotADirectoryError):
            return False

    def hand_over(self, successor: AppendLog) -> None:
        """Give what is pending to a log that takes this one's place, after its own. Whoever waits here is refused."""
        while not self._lead_or_wait(None):
            pass
        with self._lock:
            successor._pending, self._pending = successor._pending + self._pending, []
            successor._submitted = successor._durable + len(successor._pending)
            self._replaced, self._flushing = True, False
            while self._waiters:
                self._waiters.popleft().woken.release()
        # The descriptor stays open: a write that was given up may still be under way on it.

    def switch(self, path: str, first: Iterable[Any], last: Any) -> None:
        """Go on in another file, which begins with `first`; this one ends with what is pending and `last`.

        The next file is whole on disk before this one says that it has ended: after a power cut in between both are
        read. Raises NotDurable, and goes on in this file.
        """
        while not self._lead_or_wait(None):
            pass
        self._lead(lambda: self._switch(path, b"".join(map(_line, first)), _line(last)))

    def _lead_or_wait(self, mine: int | None) -> bool:
        """True: nobody writes, and the caller must `_lead` now. False: it has waited until line `mine` may be on disk,
        or until it is the next to lead. Only who has a reason is woken: hundreds may wait for one write."""
        with self._lock:
            if mine is not None and self._durable >= mine:
                return False
            if not self._flushing:
                self._flushing = True
                return True
            waiter = _Waiter(mine)
            self._waiters.append(waiter)
        try:
            waiter.woken.acquire(timeout=LOOK_AGAIN_S)
        except BaseException:  # ended while it waited: if it was its turn to lead, it is the next one's
            with self._lock:
                self._forget(waiter)
                self._wake()
            raise
        with self._lock:
            self._forget(waiter)
        return False

    def _forget(self, waiter: _Waiter) -> None:
        if waiter in self._waiters:
            self._waiters.remove(waiter)

    def _wake(self) -> None:
        """Everybody whose line is on disk, and where nobody writes, whoever is the next to."""
        waiters = self._waiters
        while waiters and waiters[0].mine is not None and waiters[0].mine <= self._durable:
            waiters.popleft().woken.release()
        if waiters and not self._flushing:
            waiters.popleft().woken.release()

    def _lead(self, then: Callable[[], None] | None) -> None:
        """Write all that is pending, then do `then`, for everybody who waits. Only who has set `_flushing` may call it.

        A waiter that is ended in here (a killed greenlet) leaves the write going on in its thread; it is seen through
        all the same: nobody else may write meanwhile, and nobody may wait for ever.
        """
        with self._lock:
            batch, self._pending = self._pending, []
        outcome: list[tuple[bool, OSError | None]] = []  # was the batch written, and what went wrong
        begun: list[bool] = []
        given_up: list[bool] = []

        def task() -> None:
            begun.append(True)
            written = False
            try:
                if given_up:
                    raise OSError(errno.EAGAIN, "nobody waits for it any more")
                if batch:
                    self._write(batch)
                written = True
                if then is not None:
                    then()
                outcome.append((written, None))
            except OSError as exc:
                outcome.append((written, exc))
            except BaseException as exc:
                outcome.append((written, OSError(errno.EIO, f"{type(exc).__name__}: {exc}")))
                raise

        try:
            self._run_blocking(task)
        finally:
            given_up.append(True)  # first this, then the look: a task either saw it, or is seen to have begun
            while begun and not outcome:
                time.sleep(0.002)
            written, error = outcome[0] if outcome else (False, OSError(errno.EAGAIN, "no thread could be started"))
            with self._lock:
                if written:
                    self._durable += len(batch)
                    self.lines_written += len(batch)
                else:
                    self._pending = batch + self._pending
                self._flushing = False
                self._wake()
        if error is not None:
            raise self._refusal(error) from error

    def _refusal(self, error: OSError) -> NotDurable:
        return NotDurable(
            f"{self.path}: cannot write the state ({error.strerror}); the change is not acknowledged",
            "free space or repair the disk, then repeat the request",
        )

    def _write(self, batch: list[tuple[bytes, Any]]) -> None:
        self._put(b"".join(line for line, _ in batch))
        payloads = [payload for _, payload in batch if payload is not None]
        if self._also is not None and payloads:
            try:
                self._also(payloads)
            except BaseException:
                self._cut_to(self._good_bytes - sum(len(line) for line, _ in batch))
                raise

    def _put(self, data: bytes) -> None:
        """Write and sync. A half-written batch is taken back: nothing may ever follow a torn line."""
        if self._reopens and not self.in_place():
            self._reopen()
        if self._torn:
            os.ftruncate(self._fd, self._good_bytes)
            self._torn = False
        try:
            _write_all(self._fd, data)
            os.fdatasync(self._fd)
            if not self.in_place():
                raise OSError(errno.ESTALE, GONE)
        except OSError:
            self._cut_to(self._good_bytes)
            raise
        self._good_bytes += len(data)

    def _reopen(self) -> None:
        os.makedirs(os.path.dirname(os.path.abspath(self.path)), mode=0o700, exist_ok=True)
        fresh = _open(self.path)
        os.close(self._fd)
        self._fd, self._good_bytes, self._torn = fresh, os.fstat(fresh).st_size, False
        sync_directory(self.path)

    def _cut_to(self, good_bytes: int) -> None:
        self._good_bytes = good_bytes
        try:
            os.ftruncate(self._fd, good_bytes)
            self._torn = False
        except OSError:
            self._torn = True  # cut before the next write

    def _switch(self, path: str, first: bytes, last: bytes) -> None:
        fresh = _open(path)
        try:
            os.ftruncate(fresh, 0)  # of a switch that failed
            _write_all(fresh, first)
            os.fsync(fresh)
            sync_directory(path)
            self._put(last)
        except OSError:
            os.close(fresh)
            try:
                os.unlink(path)
            except OSError:
                pass
            raise
        os.close(self._fd)
        self.path, self._fd, self._good_bytes, self._torn, self.lines_written = path, fresh, len(first), False, 0


@dataclass
class Found:
    """What a file holds: every line whose checksum is right, also beyond a damaged one.

    `torn`: its end was never acknowledged (a line without its end, or space that was never filled).
    `damaged`: something that may have been acknowledged cannot be read.
    """

    records: list[Any]
    good_bytes: int = 0  # to the end of the last good line
    torn: bool = False
    damaged: bool = False


def examine(path: str, only_last: bool = False) -> Found:
    """`only_last`: of the records none but the last is read."""
    found = Found([])
    newest = b""
    with open(path, "rb") as file:
        position, bad_since_good = 0, b""
        for raw in file:
            position += len(raw)
            body = _body(raw)
            if body is None:
                bad_since_good += raw
                continue
            found.damaged = found.damaged or bool(bad_since_good)
            bad_since_good = b""
            if only_last:
                newest = body
            else:
                found.records.append(json.loads(body))
            found.good_bytes = position
    if newest:
        found.records.append(json.loads(newest))
    if bad_since_good:
        unfilled = bad_since_good.endswith(b"\0")
        one_line_cut = b"\n" not in bad_since_good and _body(bad_since_good[:-1] + b"\n") is None
        found.torn = unfilled or one_line_cut
        found.damaged = found.damaged or not found.torn
    return found


def each(path: str) -> Iterator[Any]:
    """The records of a file one by one, up to the first damaged line; none where there is no file."""
    file = opened(path)
    if file is not None:
        with file:
            yield from records(file)


def opened(path: str) -> BinaryIO | None:
    """The file to read from, None where there is none."""
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def records(file: BinaryIO) -> Iterator[Any]:
    """Up to the first damaged line."""
    for raw in file:
        body = _body(raw)
        if body is None:
            return
        yield json.loads(body)


def truncate_damaged_tail(path: str) -> None:
    """Cut a file back to its last whole line, so that appending to it stays readable."""
    file = opened(path)
    if file is None:
        return
    with file:
        good = sum(len(raw) for raw in itertools.takewhile(lambda raw: _body(raw) is not None, file))
    os.truncate(path, good)


def _body(raw: bytes) -> bytes | None:
    """What a line holds, None where it is not whole."""
    crc, _, body = raw.rstrip(b"\n").partition(b" ")
    return body if raw.endswith(b"\n") and crc == b"%08x" % zlib.crc32(body) else None


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _line(record: Any) -> bytes:
    body = json.dumps(record, separators=(",", ":"), ensure_ascii=True).encode()
    return b"%08x %s\n" % (zlib.crc32(body), body)


def sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
