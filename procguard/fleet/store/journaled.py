"""What the stores of one manager share: a journal that makes each change durable, and a snapshot that is made of it.

Owns the course of loading, committing, saving and closing. What a snapshot is, and which process makes one, say the
subclasses: yaml_file.py and sql.py.

Saving never touches the event loop: this process only goes on in the next journal segment; a process of its own
(`saving`) does the rest, at a low priority.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

from procguard.errors import ProcGuardError
from procguard.fleet.store import appendlog, journal
from procguard.fleet.store.interface import Change, Loaded, Tables

GENTLE, AT_ONCE = "5", "0"  # how nice a saving process is: while the manager runs, and where its end waits for it
# A saving process that takes longer is ended, the journal has everything: it lost its disk, or who ends us waits.
SAVED_WITHIN_S, SAVED_AT_END_S = 120.0, 8.0


class JournaledStore:
    """`auto_save` False stops the snapshots; the journal is always written."""

    MODULE = ""  # the saving process

    def __init__(
        self, path: str, *, auto_save: bool = True, run_blocking: appendlog.RunBlocking = appendlog.run_here
    ) -> None:
        self.path = os.path.abspath(path)
        self._auto_save = auto_save
        self._run_blocking = run_blocking
        self._journal = journal.Journal(self.path, run_blocking, self._also)
        self._saver = SavingProcess()
        self._saved_commit = -1

    # ------------------------------------------------------------------------------------------ what snapshots do

    def _read(self) -> tuple[Loaded, int]:
        """Everything that is on disk, and the number of the last commit. Changes nothing on disk."""
        raise NotImplementedError

    def _opened(self, loaded: Loaded, last_commit: int) -> None:
        """The journal is open. Make the snapshot whole where it was found damaged."""
        raise NotImplementedError

    def _also(self, payloads: list[Any]) -> None:
        """What else makes a commit durable; in the thread that wrote the journal."""

    def _payload(self, changes: list[Change]) -> Any:
        return changes

    # ------------------------------------------------------------------------------------------ a store's life

    def load(self) -> Loaded:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            loaded, last_commit = self._read()
            self._journal.open(last_commit, loaded.tables)
            self._opened(loaded, last_commit)
        except OSError as exc:
            raise _cannot_use(self.path, exc) from exc
        return loaded

    def read(self) -> Loaded:
        """What `load` would find. Changes nothing on disk."""
        try:
            return self._read()[0]
        except OSError as exc:
            raise _cannot_use(self.path, exc) from exc

    def commit(self, changes: list[Change], *, wait: bool = True) -> None:
        self._journal.commit(changes, self._payload(changes), wait=wait)

    def in_place(self) -> bool:
        found: list[bool] = []
        self._run_blocking(lambda: found.append(self._journal.log.in_place()))
        return bool(found and found[0])

    def write_again(self, tables: Tables) -> None:
        commit = self._journal.last_commit  # what is committed from here on is not in `tables`
        self._refuse_another(str(tables["fleet"]["fleet"]["fleet_id"]))
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            self._journal.open_again()
            # Not intact, as far as the files go: a whole snapshot replaces whatever is left of them.
            self._opened(Loaded(tables, intact=False), commit)
        except OSError as exc:
            raise appendlog.NotDurable(
                f"{self.path}: cannot write the state again ({exc.strerror}); changes are not acknowledged",
                "free space or repair the disk; nothing else needs to be done",
            ) from exc
        self._saved_commit = -1

    def _refuse_another(self, own_fleet_id: str) -> None:
        """Raises ProcGuardError where what lies at the path now is not an earlier state of this manager."""
        try:
            loaded, commit = self._read()
        except OSError:
            return  # nothing that can be read; writing tells
        found = loaded.tables.get("fleet", {}).get("fleet", {}).get("fleet_id")
        if found not in (None, own_fleet_id) or commit > self._journal.last_commit:
            raise ProcGuardError(
                f"{self.path}: the state of another manager (fleet {found}) was put in place of this one's",
                "end one of the two managers; this one acknowledges no change until that state is moved away",
                code="another_state",
            )

    def save(self) -> None:
        self._save(GENTLE)

    def _save(self, niceness: str) -> None:
        if not self._auto_save or self._journal.last_commit == self._saved_commit or self._saver.running():
            return
        commit = self._journal.last_commit
        closed = self._journal.rotate()
        self._saver.start([self.MODULE, self.path, str(closed), niceness])
        self._saved_commit = commit

    def wait_saved(self) -> None:
        self._saver.wait()

    def close(self) -> None:
        """With a last snapshot, where that does not take long."""
        ends = time.monotonic() + SAVED_AT_END_S
        try:
            self._saver.wait(ends)
            if time.monotonic() < ends:
                self._save(AT_ONCE)
                self._saver.wait(ends)
        finally:
            self._journal.close()


def _cannot_use(path: str, exc: OSError) -> ProcGuardError:
    return ProcGuardError(
        f"state.state_file: cannot use {path} ({exc.strerror})",
        "choose another place with --set state.state_file=PATH",
        code="bad_state_file",
    )


class SavingProcess:
    """Started without a copy of this process's memory (posix_spawn), which would hold up the event loop."""

    def __init__(self) -> None:
        self._pid = 0

    def start(self, words: list[str]) -> None:
        package_root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
        self._pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", *words],
            {**os.environ, "PYTHONPATH": package_root},
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        )

    def running(self) -> bool:
        if self._pid:
            try:
                ended = os.waitpid(self._pid, os.WNOHANG)[0] == self._pid
            except ChildProcessError:  # somebody who waits for every child has had it
                ended = True
            if ended:
                self._pid = 0
        return bool(self._pid)

    def wait(self, until: float | None = None) -> None:
        """Until it has ended. One that has not by then (monotonic seconds) is killed."""
        deadline = time.monotonic() + SAVED_WITHIN_S if until is None else until
        while self.running():
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
                return
            time.sleep(0.005)


# --------------------------------------------------------------------------------------- what both kinds of file need


def refuse_foreign(path: str, problem: str) -> None:
    """A file that is no state and has nothing of a state beside it is somebody's: never to be replaced."""
    if not os.path.exists(path + ".prev") and not journal.segments(path):
        raise ProcGuardError(
            f"state.state_file: {path} is not a state of ProcGuard ({problem}), and nothing of one lies beside it",
            "restore it from a backup, move it away to begin anew, or choose another: --set state.state_file=PATH",
            code="bad_state_file",
        )


def newer_format(path: str, found: Any, known: int) -> ProcGuardError:
    return ProcGuardError(
        f"state.state_file: {path} was written in format {found}; this release reads up to {known}",
        "start the newer release, or let it write an export (invoke state export) that this one can import",
        code="newer_state",
    )


def set_aside(path: str) -> None:
    """A damaged file is kept, for who wants to look at it; it takes no part any more."""
    with contextlib.suppress(FileNotFoundError):
        os.replace(path, path + ".damaged")


def saving(save: Callable[[str, int], None]) -> None:
    """What a saving process does: `python -m <module> STATE_FILE SEGMENT NICENESS`; others go before it."""
    path, segment, niceness = sys.argv[1:]
    with contextlib.suppress(OSError):
        os.nice(int(niceness))
    try:
        save(path, int(segment))
    except (ProcGuardError, OSError, ValueError) as exc:
        sys.exit(f"procguard: {path}: no snapshot was written: {exc}")
