"""The store of one manager: a SQLite database, and beside it, if the state file is YAML, its readable snapshot.

    procguard_state.db         the current records and the history (WAL, synchronous=FULL)
    procguard_state.yaml       the snapshot (snapshot.py); `.prev` is the previous one
    *.damaged                  damaged files, kept for inspection only

A commit is one SQL statement, so that a native thread makes it durable without waiting for the interpreter lock. Owns
when each file is written and which of them is authoritative at start; database.py checks a database.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from procguard import __version__
from procguard.errors import ProcGuardError
from procguard.fleet.history.query import Event, EventQuery, read_pages
from procguard.fleet.store import database as files
from procguard.fleet.store import legacy, snapshot
from procguard.fleet.store.database import Damaged, HeldRows, IsCorrupt, IsFenced, Key, Row, encode, os_error
from procguard.fleet.store.group_commit import GroupCommit
from procguard.fleet.store.interface import Change, Fenced, Line, Loaded, NotDurable, RunBlocking, Tables, run_here
from procguard.fleet.store.snapshot import AT_ONCE, GENTLE, SavingProcess, Snapshot, sync_directory
from procguard.i18n.reasons import because

log = logging.getLogger(__name__)

CHECKPOINT_BYTES = 8 * 2**20  # a write-ahead log of this size is checkpointed while commits continue
SAVE_EVERY_S, SAVE_SHARE = 2.0, 10  # interval of snapshots; writing them takes at most a tenth of the time
SAVED_AT_END_S = 8.0  # timeout of the last snapshot when the manager ends; the database is complete without it
PAGE = 200  # events read at once
ROW_BYTES = 200  # size of an event's columns and indexes, in addition to its JSON
DROPPED_AT_ONCE = 200
_GONE = "the database was deleted or moved away, or is damaged"
_COMMIT = "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?)"


class _Commit(NamedTuple):
    bodies: dict[Key, str | None]  # None deletes
    history: list[Row]


class SqliteStore:
    """`readable`: the YAML snapshot's path, "" for none. `auto_save` False: never write the snapshot, but read an
    existing one."""

    displaced_reason = because("state.files_gone")

    def __init__(
        self, database: str, readable: str = "", *, auto_save: bool = True, run_blocking: RunBlocking = run_here
    ) -> None:
        self.database = os.path.abspath(database)
        self.readable = os.path.abspath(readable) if readable else ""
        self.path = self.readable or self.database
        self._auto_save = auto_save and bool(readable)
        self._run_blocking = run_blocking
        self._group = GroupCommit(self._prepare, run_blocking, self._misplaced)
        self._held = HeldRows()
        self._digests: dict[Key, int] = {}
        self._digest = 0
        self._kept: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._writer: sqlite3.Connection | None = None
        self._reader: sqlite3.Connection | None = None
        self._file_stats: list[tuple[str, os.stat_result]] = []
        self._corrupt = self._fenced = False
        self._saver = SavingProcess()
        self._unsaved = True  # records have changed since the last snapshot was started
        self._save_due = 0.0

    # ------------------------------------------------------------------------------------------ starting

    def load(self) -> Loaded:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            migrated = legacy.begin_migration(self.path, self.database)
            if migrated is not None:
                rows = (files.row_of(*line) for line in migrated.history())
                self._rewrite_database(files.held_from(migrated.loaded), rows, keep=False)
                migrated.finish()
            held = self._find()
            if migrated is not None:
                held.intact, held.notes = migrated.loaded.intact, migrated.loaded.notes
            if held.rewrite:
                self._rewrite_database(held, files.history_of(self.database))
            self._open(held)
        except (OSError, sqlite3.Error) as exc:
            raise _cannot_use(self.path, exc) from exc
        loaded, held.bodies = held.loaded(), {}
        return loaded

    def read(self) -> Loaded:
        try:
            if legacy.found(self.path, self.database):
                return legacy.read(self.path)
            return self._find().loaded()
        except (OSError, sqlite3.Error) as exc:
            raise _cannot_use(self.path, exc) from exc

    def _find(self) -> HeldRows:
        """The database if it is complete, otherwise the snapshot. Raises ProcGuardError if an operator has to
        decide."""
        shown = self._find_snapshot(self.readable) if self.readable else None
        held, problem = None, "is missing"
        try:
            held = files.examined(self.database)
        except Damaged as exc:
            problem = f"is damaged ({exc})"
        if held is not None and shown is not None:
            if shown.database != held.line or shown.commit < held.snapshot:
                what = "another database's" if shown.database != held.line else "an earlier one"
                raise _foreign(self.readable, f"{what}, not the one that was written last")
            held.snapshot = shown.commit
            if shown.commit > held.commits:
                problem, held = f"lacks changes: it is older than {self.readable}", None
        if held is not None:
            return held
        if shown is None and self.readable:
            shown = self._find_snapshot(self.readable + ".prev")
        if shown is not None:
            try:
                held = files.held_from(Loaded(shown.tables))
            except snapshot.Changed as exc:
                raise _foreign(self.readable, str(exc)) from exc
            held.line, held.commits, held.snapshot, held.intact = shown.database, shown.commit, shown.commit, False
            if problem == "is missing":
                held.notes.append(because("state.from_snapshot", path=self.database))
            else:
                error = problem.partition("(")[2].removesuffix(")")
                held.notes.append(because("state.from_snapshot_damaged", path=self.database, error=error))
            return held
        if problem != "is missing" or any(os.path.exists(self.database + ending) for ending in ("-wal", "-journal")):
            raise ProcGuardError(
                f"state.state_file: {self.database} is not a whole state of ProcGuard: it {problem}",
                "restore a backup (invoke state.import BACKUP --state NEW); without one, move it and its auxiliary "
                "files away, then invoke state.rebuild FLEET_ID (a folder's name in ~/.procguard on a host), which "
                "adopts the running workers: a new state would start them a second time; docs/operations.md, The state",
                code="bad_state_file",
            )
        return HeldRows(line=secrets.token_hex(8))

    def _find_snapshot(self, path: str) -> Snapshot | None:
        try:
            return snapshot.read(path)
        except snapshot.Changed as exc:
            raise _foreign(path, str(exc)) from exc

    def _open(self, held: HeldRows) -> None:
        for ending in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                os.chmod(self.database + ending, 0o600)
        if self.readable and os.path.exists(self.readable):
            os.chmod(self.readable, 0o600)
        self._writer = writer = files.connect(self.database)
        files.migrate(self.database, writer)
        writer.execute("UPDATE state SET term = term + 1, in_use = 1, release = ?", (__version__,))
        held.term = writer.execute("SELECT term FROM state").fetchone()[0]
        # The database file itself now records it, independent of the write-ahead log, whose directory entry is on disk.
        writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        sync_directory(self.database)
        self._held, self._corrupt = held, False
        self._digests = held.digests
        self._digest = sum(self._digests.values())
        self._reader = files.connect(self.database)
        self._reader.execute("PRAGMA query_only = 1")
        sizes = "SELECT log, sum(length(body) + ?) FROM history GROUP BY log"
        self._bytes = dict(writer.execute(sizes, (ROW_BYTES,)))
        present = [name for name in (self.database, self.database + "-wal") if os.path.exists(name)]
        self._file_stats = [(name, os.stat(name)) for name in present]

    # ------------------------------------------------------------------------------------------ committing

    def commit(self, changes: Sequence[Change], history: Sequence[Line] = ()) -> None:
        if changes or history:
            bodies = {files.key_of(kind, key): None if one is None else encode(one) for kind, key, one in changes}
            self._group.submit(_Commit(bodies, [files.row_of(name, event) for name, event in history]))
        try:
            self._group.flush()
        except IsFenced as exc:
            self._fenced = True
            raise self._ended() from exc
        except OSError as exc:
            self._corrupt = self._corrupt or isinstance(exc, IsCorrupt)
            raise NotDurable(
                f"{self.path}: cannot write the state ({exc.strerror}); the change is not acknowledged",
                "free space or repair the disk, then repeat the request",
            ) from exc

    def _ended(self) -> Fenced:
        return Fenced(
            f"{self.path}: another manager has since opened this state",
            "this manager exits; find the other one, and stop one of the two",
        )

    def _prepare(self, batch: list[_Commit]) -> Callable[[], None]:
        """Combine the writes into one transaction. Its number is assigned here, in the order of writing."""
        held, bodies, rows = self._held, dict[Key, str | None](), list[Row]()
        for one in batch:
            bodies.update(one.bodies)
            rows += one.history
        for key, body in bodies.items():
            self._digest -= self._digests.pop(key, 0)
            if body is not None:
                self._digests[key] = files.digest_of(key, body)
                self._digest += self._digests[key]
        held.commits += 1
        self._unsaved = self._unsaved or bool(bodies)
        changes, added = encode([(*key, body) for key, body in bodies.items()]), dict[str, int]()
        for row in rows:
            added[row[0]] = added.get(row[0], 0) + len(row[-1]) + ROW_BYTES
        values = (
            held.term,
            held.commits,
            files.proof_of(held.line, held.commits, self._digest),
            held.snapshot,
            changes,
        )
        history = encode(rows)

        def write() -> None:
            assert self._writer is not None, "load() first"
            try:
                dropped = self._overflow(added, len(rows))
                upto = encode([(name, seq) for name, (seq, _) in dropped.items()])
                _execute(self._writer, (*values, history, upto))
            except sqlite3.Error as exc:
                raise os_error(exc) from exc
            for name, size in added.items():
                self._bytes[name] = self._bytes.get(name, 0) + size - dropped.get(name, (0, 0))[1]

        return write

    def _overflow(self, added: dict[str, int], rows: int) -> dict[str, tuple[int, int]]:
        """For each log that exceeds its bound: the last event to drop, and the bytes freed."""
        dropped: dict[str, tuple[int, int]] = {}
        assert self._writer is not None
        for name, size in added.items():
            excess = self._bytes.get(name, 0) + size - self._kept.get(name, 2**63)
            if excess > 0:
                oldest = "SELECT seq, length(body) FROM history WHERE log = ? ORDER BY seq LIMIT ?"
                freed = 0
                for seq, length in self._writer.execute(oldest, (name, DROPPED_AT_ONCE + 2 * rows)):
                    freed += length + ROW_BYTES
                    dropped[name] = (seq, freed)
                    if freed > excess + self._kept[name] // 16:
                        break
        return dropped

    # ------------------------------------------------------------------------------------------ the history

    def keep_history(self, log: str, max_bytes: int) -> None:
        self._kept[log] = max_bytes

    def find(self, log: str, query: EventQuery, limit: int, *, after: int | None = None) -> list[Event]:
        return read_pages(query, limit, PAGE, after, lambda *page: self._page(log, query, *page))

    def _page(self, log: str, query: EventQuery, boundary: int | None, count: int, newest: bool) -> list[Event]:
        """One page of events. `newest`: newest first, before `boundary`; otherwise oldest first, after it."""
        where, values = files.condition(log, query)
        if boundary is not None:
            where, values = where + f" AND seq {'<' if newest else '>'} ?", [*values, boundary]
        order = "DESC" if newest else "ASC"
        chosen = f"SELECT body FROM history WHERE {where} ORDER BY seq {order} LIMIT {count}"  # noqa: S608
        text: list[str] = []

        def ask() -> None:
            assert self._reader is not None, "load() first"
            # One row with all of them, because each row releases the interpreter lock and waits for it again.
            row = self._reader.execute(f"SELECT group_concat(body, char(10)) FROM ({chosen})", values).fetchone()  # noqa: S608
            text.append(row[0] or "")

        try:
            self._run_blocking(ask)
        except sqlite3.Error as exc:
            raise ProcGuardError(
                f"{self.database}: cannot read the history ({exc})",
                "check the disk; restarting the manager checks the state",
            ) from exc
        return [json.loads(line) for line in text[0].split("\n") if line]

    # ------------------------------------------------------------------------------------------ keeping in place

    def in_place(self) -> bool:
        return self._misplaced() is None

    def _misplaced(self) -> OSError | None:
        if self._corrupt:
            return OSError(errno.ESTALE, _GONE)
        try:
            if not all(os.path.samestat(os.stat(name), was) for name, was in self._file_stats):
                return OSError(errno.ESTALE, _GONE)
        except FileNotFoundError:
            return OSError(errno.ESTALE, _GONE)
        except OSError as exc:
            return exc
        if not os.access(os.path.dirname(self.path), os.W_OK):
            return OSError(errno.EROFS, "its folder is read-only")
        return None

    def write_again(self, tables: Tables) -> None:
        held, folder = self._held, os.path.dirname(self.path)
        if os.path.isdir(folder) and not os.access(folder, os.W_OK):
            raise _not_again(self.path, "its folder is read-only")
        self._refuse_another(str(tables["fleet"]["fleet"]["fleet_id"]))
        kept = self._writer  # the deleted files are still open: the history is read from them

        def again() -> None:
            os.makedirs(folder, mode=0o700, exist_ok=True)
            fresh = files.held_from(Loaded(tables))
            fresh.line, fresh.commits, fresh.term, fresh.snapshot = held.line, held.commits, held.term, 0
            self._rewrite_database(fresh, files.rows_of(kept))
            try:
                for one in (self._reader, kept):
                    if one is not None:
                        one.close()  # SQLite does not touch files that replaced its own
                self._open(fresh)
            except sqlite3.Error as exc:
                raise os_error(exc) from exc
            fresh.bodies = {}

        try:
            self._group.alone(again)
        except OSError as exc:
            raise _not_again(self.path, exc.strerror) from exc
        self._unsaved, self._save_due = True, 0.0

    def _refuse_another(self, own_fleet_id: str) -> None:
        """Raise ProcGuardError if the files now at the path are not an earlier state of this manager."""
        found: list[tuple[str | None, int]] = []
        with suppress(OSError, Damaged, sqlite3.Error):
            held = files.examined(self.database)
            if held is not None:
                fleet = held.loaded().tables.get("fleet", {}).get("fleet", {})
                newer = held.line != self._held.line or held.term > self._held.term
                found.append((fleet.get("fleet_id"), held.commits if newer else 0))
        with suppress(OSError, snapshot.Changed):
            shown = snapshot.read(self.readable) if self.readable else None
            if shown is not None:
                found.append((shown.fleet_id, shown.commit if shown.database != self._held.line else 0))
        for fleet_id, ahead in found:
            if fleet_id not in (None, own_fleet_id) or ahead:
                raise ProcGuardError(
                    f"{self.path}: the state of another manager (fleet {fleet_id}) has replaced this one's",
                    "stop one of the two managers; this one acknowledges no change until that state is moved away",
                    code="another_state",
                )

    def _rewrite_database(self, held: HeldRows, history: Iterator[Row], *, keep: bool = True) -> None:
        """Replace the remains of a database by a complete one and set them aside. Raises OSError."""
        held.line = held.line or secrets.token_hex(8)
        fresh = self.database + ".new"
        files.create(fresh, held, history)
        for ending in ("-wal", "-shm", "-journal", ""):  # otherwise the new database would use them as its own
            with suppress(FileNotFoundError):
                if keep:
                    os.replace(self.database + ending, self.database + ".damaged" + ending)
                else:
                    os.unlink(self.database + ending)
        os.replace(fresh, self.database)
        sync_directory(self.database)

    # --------------------------------------------------------------------------------------- snapshots and closing

    def save(self) -> None:
        if self._fenced:
            raise self._ended()
        self._checkpoint()
        if self._saver_ended() and time.monotonic() >= self._save_due:
            self._start_saving(GENTLE)

    def _saver_ended(self) -> bool:
        """Whether no saving process is running. Notes the commit that the last one wrote, for the next commit to
        record."""
        if self._saver.running():
            return False
        if self._saver.took_s:
            self._save_due = time.monotonic() + max(SAVE_EVERY_S, SAVE_SHARE * self._saver.took_s)
            self._saver.took_s = 0.0
            if self._saver.failed:
                log.error("no snapshot was written path=%s", self.readable)
                self._unsaved = True
            else:
                self._held.snapshot = max(self._held.snapshot, snapshot.commit_of(self.readable) or 0)
        return True

    def _start_saving(self, niceness: str) -> None:
        if self._auto_save and self._unsaved:
            self._unsaved = False
            self._saver.start(self.database, self.readable, niceness)

    def _checkpoint(self) -> None:
        """Copy the write-ahead log into the database while commits continue."""
        with suppress(FileNotFoundError):
            if os.stat(self.database + "-wal").st_size > CHECKPOINT_BYTES:
                reader = self._reader
                assert reader is not None

                def copy() -> None:
                    with suppress(sqlite3.Error):  # the next commit reports the error
                        reader.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()

                self._run_blocking(copy)

    def close(self) -> None:
        ends = time.monotonic() + SAVED_AT_END_S
        try:
            self.commit([])
            self._saver.wait(ends)
            if self._saver_ended() and time.monotonic() < ends:
                self._start_saving(AT_ONCE)
                self._saver.wait(ends)
                self._saver_ended()
        finally:
            if self._writer is not None and self.in_place():
                try:
                    own = (self._held.snapshot, self._held.term)
                    self._writer.execute("UPDATE state SET in_use = 0, snapshot = ? WHERE term = ?", own)
                    for one in (self._reader, self._writer):
                        if one is not None:
                            one.close()
                    self._reader = self._writer = None
                except sqlite3.Error as exc:  # its connections stay open: closing them would remove the log
                    log.error("the state was not closed path=%s error=%s", self.database, exc)


def _execute(connection: sqlite3.Connection, row: Row) -> None:
    connection.execute(_COMMIT, row)


def _not_again(path: str, problem: str | None) -> NotDurable:
    return NotDurable(
        f"{path}: cannot write the state again ({problem}); changes are not acknowledged",
        "free space or repair the disk; nothing else needs to be done",
    )


def _cannot_use(path: str, exc: Exception) -> ProcGuardError:
    return ProcGuardError(
        f"state.state_file: cannot use {path} ({getattr(exc, 'strerror', None) or exc})",
        "choose another place with --set state.state_file=PATH",
        code="bad_state_file",
    )


def _foreign(path: str, problem: str) -> ProcGuardError:
    return ProcGuardError(
        f"state.state_file: {path} is not the snapshot that this state's manager wrote: {problem}",
        f"to start from it: invoke state.import {path} --state NEW; to continue with the database: move it away",
        code="foreign_snapshot",
    )
