"""The index of the archive: maps the bytes of each stream to objects.

With several managers, tables in the shared PostgreSQL database, changed by the leader only. Otherwise a SQLite file
beside the state: it may grow to gigabytes, which the checks of the state at each start must not read, and it can be
rebuilt from the objects (rebuild.py). Streams are named as their files are: folder (`<worker>-<digest>`, with the
suffix `.gone` for removed workers), attempt, stream.
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import gevent.lock

from procguard.errors import ProcGuardError
from procguard.fleet.store import postgres_schema
from procguard.fleet.store.interface import Fenced
from procguard.fleet.store.postgres_link import Connection, DatabaseLink, DatabasePlace
from procguard.portal.logs.archive.coverage import Range, merged
from procguard.portal.logs.archive.object_store import RunInThread
from procguard.portal.logs.archive.objects import Piece

ROWS_AT_ONCE = 500
DELETED_AT_ONCE = 5_000
BUSY_TIMEOUT_S = 5.0
TRANSACTION_S = 20.0
T = TypeVar("T")
Key = tuple[str, int, str]  # folder, attempt, stream
Execute = Callable[..., Any]  # (statement with ?, values) -> a cursor
_MIGRATIONS = (
    """
CREATE TABLE archive_object (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    at REAL NOT NULL,              -- when its upload began, Unix seconds
    size INTEGER NOT NULL,         -- 0: it is not known yet whether it was uploaded
    live INTEGER NOT NULL          -- how many pieces name it
);
CREATE TABLE archive_stream (
    id INTEGER PRIMARY KEY,
    folder TEXT NOT NULL, attempt INTEGER NOT NULL, stream TEXT NOT NULL,
    covered TEXT NOT NULL,         -- JSON: [[start, end], …], rising
    at REAL NOT NULL,              -- when its last piece was written
    UNIQUE (folder, attempt, stream)
);
CREATE TABLE archive_piece (
    stream INTEGER NOT NULL, start INTEGER NOT NULL, length INTEGER NOT NULL, object INTEGER NOT NULL,
    position INTEGER NOT NULL,
    packed INTEGER NOT NULL,       -- bytes in the object; 0: these bytes were lost
    at REAL NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (stream, start)
) WITHOUT ROWID;
""",
)
_PLACED = ("length", "object", "position", "packed", "at", "digest")
_COLUMNS = ", ".join(("stream", "start", *_PLACED))
_PIECES = (
    "SELECT o.name, p.start, p.length, p.position, p.packed, p.at, p.digest FROM archive_stream AS s "
    "JOIN archive_piece AS p ON p.stream = s.id JOIN archive_object AS o ON o.id = p.object "
    "WHERE s.folder = ? AND s.attempt = ? AND s.stream = ? AND p.start < ? AND p.start + p.length > ? "
    "ORDER BY p.start DESC LIMIT ?"
)
_TIMES = (  # one key lookup for each, instead of reading all
    "WITH RECURSIVE place (stream, start) AS (SELECT s.id, (SELECT min(p.start) FROM archive_piece AS p "
    "WHERE p.stream = s.id) FROM archive_stream AS s WHERE s.folder = ? AND s.attempt = ? AND s.stream = ? "
    "UNION ALL SELECT place.stream, (SELECT p.start FROM archive_piece AS p WHERE p.stream = place.stream "
    "AND p.start >= place.start + ? ORDER BY p.start LIMIT 1) FROM place WHERE place.start IS NOT NULL) "
    "SELECT p.start, p.at FROM place JOIN archive_piece AS p ON p.stream = place.stream AND p.start = place.start "
    "WHERE p.packed > 0 ORDER BY p.start"
)


class ArchivedStream(NamedTuple):
    folder: str
    attempt: int
    stream: str
    covered: list[Range]
    at: float


class StoredPiece(NamedTuple):
    """`packed` 0: these bytes were lost, at `at`."""

    name: str
    start: int
    length: int
    position: int
    packed: int
    at: float
    digest: bytes


class Tables(Protocol):
    is_new: bool  # newly created: it may have to be rebuilt from the objects

    def transaction(self, task: Callable[[Execute], T]) -> T:
        """Run `task(execute)` in one transaction, durable on return. Raises OSError, Fenced."""

    def close(self) -> None: ...


class SqliteTables:
    """Creates `path` if it is missing; a damaged file is moved away, because the index can be rebuilt."""

    def __init__(self, path: str, in_thread: RunInThread) -> None:
        self._path = path
        self._in_thread = in_thread  # one at a time
        self._connection: sqlite3.Connection | None = None
        self.is_new = not os.path.exists(path)

    def transaction(self, task: Callable[[Execute], T]) -> T:
        result: T | OSError | ProcGuardError = self._in_thread(self._run, task)
        if isinstance(result, (OSError, ProcGuardError)):
            raise result
        return result

    def _run(self, task: Callable[[Execute], T]) -> T | OSError | ProcGuardError:
        try:
            if self._connection is None:
                self._connection = self._open()
            with self._connection:
                self._connection.execute("BEGIN IMMEDIATE")
                return task(self._connection.execute)
        except sqlite3.DatabaseError as exc:
            code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
            if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                return ProcGuardError(
                    f"{self._path}: the index of the log archive is damaged ({exc})",
                    "stop the manager, move the file away, and rebuild it from the objects: procguard state reindex",
                    code="archive_index_damaged",
                )
            return OSError(errno.ENOSPC if code == sqlite3.SQLITE_FULL else errno.EIO, f"{self._path}: {exc}")
        except (OSError, ProcGuardError) as exc:
            return exc

    def _open(self) -> sqlite3.Connection:
        os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        found = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
        found.execute("PRAGMA journal_mode = WAL").fetchone()
        found.execute("PRAGMA synchronous = FULL")
        version = found.execute("PRAGMA user_version").fetchone()[0]
        if version > len(_MIGRATIONS):
            raise ProcGuardError(
                f"{self._path}: written by a newer release, in format {version}",
                "start that release or a later one, or move the file away and run procguard state reindex",
                code="newer_state",
            )
        for number, script in enumerate(_MIGRATIONS[version:], version + 1):
            found.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT")
        return found

    def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with closing(connection):
                pass


class PostgresTables:
    """`term`: of this manager; 0: of a tool that works while no manager leads."""

    is_new = False

    def __init__(self, place: DatabasePlace, term: int = 0) -> None:
        self._link = DatabaseLink(place, "archive")
        self._term = term
        self._turn = gevent.lock.BoundedSemaphore()  # a link has one caller at a time

    def transaction(self, task: Callable[[Execute], T]) -> T:
        """The term is checked but not locked, because a lock on the leader's row would delay its heartbeat. A write
        just after the end of a term is harmless: an offset in a log always has the same bytes."""

        def whole(connection: Connection) -> T:
            if self._term:
                held = "SELECT 1 FROM leader WHERE cell = %s AND term = %s"
                if connection.execute(held, (postgres_schema.CELL, self._term)).fetchone() is None:
                    raise Fenced("the log archive's index: another manager leads", "this manager exits")
            return task(lambda statement, values=(): connection.execute(statement.replace("?", "%s"), values))

        with self._turn:
            return self._link.transaction(whole, TRANSACTION_S)

    def close(self) -> None:
        self._link.close()


class ArchiveIndex:
    """Each method is one transaction unless it says otherwise, and raises OSError or Fenced."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def close(self) -> None:
        self._tables.close()

    def streams(self) -> list[ArchivedStream]:
        statement = "SELECT folder, attempt, stream, covered, at FROM archive_stream"
        rows = self._tables.transaction(lambda execute: execute(statement).fetchall())
        ranges = [merged((one, other) for one, other in json.loads(row[3])) for row in rows]
        return [ArchivedStream(row[0], row[1], row[2], known, row[4]) for row, known in zip(rows, ranges, strict=True)]

    def begin(self, name: str, at: float) -> int:
        """Record an upload before it begins, so that it can be found after a crash. Returns the object's id."""
        statement = "INSERT INTO archive_object (name, at, size, live) VALUES (?, ?, 0, 0) RETURNING id"
        return int(self._tables.transaction(lambda execute: execute(statement, (name, at)).fetchone()[0]))

    def finish(self, number: int, size: int, pieces: Sequence[tuple[Key, Piece]], covered: dict[Key, list[Range]],
               ) -> None:  # fmt: skip
        """Record a completed upload. `pieces`: none overlaps the index; `covered`: the coverage of their streams
        including them."""
        newest: dict[Key, float] = {}
        for key, piece in pieces:
            newest[key] = max(newest.get(key, 0.0), piece.at)

        def write(execute: Execute) -> None:
            ids = {}
            for key, ranges in covered.items():
                ids[key] = execute(
                    "INSERT INTO archive_stream (folder, attempt, stream, covered, at) VALUES (?, ?, ?, ?, ?) "
                    "ON CONFLICT (folder, attempt, stream) DO UPDATE SET covered = excluded.covered, at = excluded.at "
                    "RETURNING id",
                    (*key, json.dumps(ranges), newest.get(key, 0.0)),
                ).fetchone()[0]
            rows = iter(
                [(ids[key], one.start, one.length, number, one.position, one.packed, one.at, one.digest)
                 for key, one in pieces]
            )  # fmt: skip
            while some := list(islice(rows, ROWS_AT_ONCE)):
                values = ", ".join(["(?, ?, ?, ?, ?, ?, ?, ?)"] * len(some))
                # A piece at the same place is from a manager whose term ended during its upload.
                latest = ", ".join(f"{one} = excluded.{one}" for one in _PLACED)
                execute(
                    f"INSERT INTO archive_piece ({_COLUMNS}) VALUES {values} "  # noqa: S608
                    f"ON CONFLICT (stream, start) DO UPDATE SET {latest}",
                    [one for row in some for one in row],
                )
            # Without its entry, the object of the pieces would be unknown, and its id may be assigned again.
            named = "UPDATE archive_object SET size = ?, live = live + ? WHERE id = ? RETURNING id"
            if execute(named, (size, len(pieces), number)).fetchone() is None:
                raise OSError(errno.ESTALE, "the log archive's index has no record of this upload")

        self._tables.transaction(write)

    def unfinished(self) -> list[tuple[int, str, float]]:
        """(id, name, start time) of incomplete uploads, oldest first."""
        statement = "SELECT id, name, at FROM archive_object WHERE size = 0 ORDER BY id"
        return [(int(row[0]), row[1], row[2]) for row in
                self._tables.transaction(lambda execute: execute(statement).fetchall())]  # fmt: skip

    def without_pieces(self, limit: int) -> list[tuple[int, str]]:
        statement = "SELECT id, name FROM archive_object WHERE size > 0 AND live = 0 ORDER BY id LIMIT ?"
        return [(int(row[0]), row[1]) for row in
                self._tables.transaction(lambda execute: execute(statement, (limit,)).fetchall())]  # fmt: skip

    def forget(self, numbers: Iterable[int]) -> None:
        """Remove deleted objects from the index."""

        def write(execute: Execute) -> None:  # fmt: skip
            for number in numbers:
                execute("DELETE FROM archive_object WHERE id = ? AND live = 0", (number,))

        self._tables.transaction(write)

    def pieces(self, key: Key, start: int, end: int, limit: int) -> list[StoredPiece]:
        """Pieces that overlap [start, end), last first."""
        rows = self._tables.transaction(lambda execute: execute(_PIECES, (*key, end, start, limit)).fetchall())
        return [StoredPiece(row[0], row[1], row[2], row[3], row[4], row[5], bytes(row[6])) for row in rows]

    def times(self, key: Key, step: int = 0) -> list[tuple[int, float]]:
        """(offset, wall time) of the beginning of each piece of a stream, ascending; only the first of those that begin
        within `step` bytes."""
        rows = self._tables.transaction(lambda execute: execute(_TIMES, (*key, max(1, step))).fetchall())
        return [(int(start), float(at)) for start, at in rows]

    def drop(self, folder: str, below: int | None = None) -> None:
        """Remove the attempts below a number, or all. In several transactions: the pieces of a stream, then the
        stream."""
        find, values = "SELECT id FROM archive_stream WHERE folder = ?", (folder,)
        if below is not None:
            find, values = find + " AND attempt < ?", (folder, below)  # type: ignore[assignment]
        for (number,) in self._tables.transaction(lambda execute: execute(find, values).fetchall()):
            while self._tables.transaction(lambda execute, number=number: _drop_some(execute, number)):  # type: ignore[misc]
                pass

    def rename(self, folder: str, to: str) -> None:
        statement = "UPDATE archive_stream SET folder = ? WHERE folder = ?"
        self._tables.transaction(lambda execute: execute(statement, (to, folder)))

    def totals(self) -> tuple[int, int]:
        """Returns (number of objects, their bytes)."""
        statement = "SELECT count(*), coalesce(sum(size), 0) FROM archive_object WHERE size > 0"
        row = self._tables.transaction(lambda execute: execute(statement).fetchone())
        return int(row[0]), int(row[1])

    def known_names(self) -> set[str]:
        rows = self._tables.transaction(lambda execute: execute("SELECT name FROM archive_object").fetchall())
        return {row[0] for row in rows}


def _drop_some(execute: Execute, stream: int) -> bool:
    """Remove some pieces. Returns whether there are more."""
    found = execute("SELECT start, object FROM archive_piece WHERE stream = ? ORDER BY start LIMIT ?",
                    (stream, DELETED_AT_ONCE)).fetchall()  # fmt: skip
    if not found:
        execute("DELETE FROM archive_stream WHERE id = ?", (stream,))
        return False
    execute("DELETE FROM archive_piece WHERE stream = ? AND start <= ?", (stream, found[-1][0]))
    lost: dict[int, int] = {}
    for _, number in found:
        lost[number] = lost.get(number, 0) + 1
    for number, count in lost.items():
        execute("UPDATE archive_object SET live = live - ? WHERE id = ?", (count, number))
    return True
