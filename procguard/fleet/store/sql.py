"""The store in a database: SQLite for one manager. Each commit is a transaction, and a line of the journal before it.

    procguard_state.db              every record as it is now (WAL, synchronous=FULL)
    procguard_state.db.prev         a copy of a while ago; used with the journal when the database is damaged or lost
    procguard_state.db.j00000012    journal segments (journal.py); dropped when the copy holds them

The journal is what a damaged database, or one that lost its write-ahead log, is brought up to date from; the database
is what a damaged journal costs nothing by. Tables and statements are SQLAlchemy Core with portable types; what only
SQLite knows is below the line "SQLite alone".
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy
from sqlalchemy import Column, Connection, MetaData, String, Table, Text, bindparam, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import StaticPool

from procguard.fleet.store import journal
from procguard.fleet.store.interface import Change, Loaded, Tables, apply
from procguard.fleet.store.journaled import JournaledStore, newer_format, refuse_foreign, saving, set_aside

FORMAT = 1
META = "meta"  # the records about the state itself: one row, keyed by STATE
STATE = "state"
_DIGEST_BYTES = 8
_MODULUS = 1 << (8 * _DIGEST_BYTES)

_metadata = MetaData()
RECORDS = Table(
    "procguard_records",
    _metadata,
    Column("kind", String(64), primary_key=True),
    Column("id", String(255), primary_key=True),
    Column("body", Text, nullable=False),  # JSON
)
_DELETE = RECORDS.delete().where(RECORDS.c.kind == bindparam("old_kind"), RECORDS.c.id == bindparam("old_id"))
_INSERT = RECORDS.insert()

Key = tuple[str, str]
Bodies = dict[Key, "str | None"]  # None deletes


class Damaged(ValueError):
    """What the database holds is not what was written to it."""


class SqlStore(JournaledStore):
    MODULE = "procguard.fleet.store.sql"

    def __init__(self, path: str, **options: Any) -> None:
        super().__init__(path, **options)
        self._connection: Connection | None = None
        self._readable = False  # the database itself, when it was read
        self._digests: dict[Key, int] = {}
        self._digest = 0

    def _read(self) -> tuple[Loaded, int]:
        """The database, brought up to date by the journal; its copy where it is damaged or leads to less."""
        notes: list[str] = []
        found: list[tuple[Tables, journal.Replayed]] = []
        self._readable = False
        for candidate in (self.path, self.path + ".prev"):
            snapshot = _snapshot(self.path, candidate, notes)
            if snapshot is None:
                continue
            self._readable = self._readable or candidate == self.path
            found.append((snapshot[0], journal.replay(self.path, *snapshot)))
            if found[-1][1].intact:
                break  # else: without its write-ahead log a database is whole, but older than it was
        if not found:
            tables: Tables = {}
            found.append((tables, journal.replay(self.path, tables, None)))
            found[-1][1].intact = found[-1][1].intact and not notes
        tables, done = max(found, key=lambda one: (one[1].intact, one[1].last_commit))
        return Loaded(tables, done.intact, notes + done.notes), done.last_commit

    def _opened(self, loaded: Loaded, last_commit: int) -> None:
        """Bring the database to what was loaded, or write it anew where it was not readable."""
        if not self._readable:
            _write_anew(self.path, loaded.tables, last_commit)
        if self._connection is not None:  # of a database that was deleted
            _close(self._connection)
        self._connection = connect(self.path)
        bodies = dict(_rows(self._connection))
        self._digests = {key: _digest_of(key, body) for key, body in bodies.items() if key[0] != META}
        self._digest = sum(self._digests.values()) % _MODULUS
        wanted = {(kind, key): _encode(r) for kind, records in loaded.tables.items() for key, r in records.items()}
        stale: Bodies = {key: None for key in bodies if key not in wanted and key[0] != META}
        stale.update((key, body) for key, body in wanted.items() if bodies.get(key) != body)
        self._transact(stale, last_commit)

    def _payload(self, changes: list[Change]) -> Bodies:
        """Encoded now, in the thread that may change the records."""
        return {(table, key): None if record is None else _encode(record) for table, key, record in changes}

    def _also(self, payloads: list[tuple[int, Bodies]]) -> None:
        together: Bodies = {}
        for _, bodies in payloads:
            together.update(bodies)
        self._transact(together, payloads[-1][0])

    def _transact(self, bodies: Bodies, commit: int) -> None:
        """One transaction: all of it is on disk when this returns, or none of it ever is. Raises OSError."""
        new = {key: _digest_of(key, body) for key, body in bodies.items() if body is not None}
        digest = (self._digest + sum(new.values()) - sum(self._digests.get(key, 0) for key in bodies)) % _MODULUS
        rows: Bodies = {**bodies, (META, STATE): _encode(_meta(commit, digest))}
        with _as_os_error():
            if self._connection is None:
                self._connection = connect(self.path)
            try:
                with self._connection.begin():
                    _put(self._connection, rows)
            except DBAPIError:
                broken, self._connection = (
                    self._connection,
                    None,
                )  # the next attempt begins with a connection of its own
                _close(broken)
                raise
        self._digest = digest
        for key in bodies:
            self._digests.pop(key, None)
        self._digests.update(new)

    def close(self) -> None:
        try:
            super().close()
        finally:
            if self._connection is not None:
                _close(self._connection)
                self._connection = None


def _snapshot(path: str, candidate: str, notes: list[str]) -> tuple[Tables, journal.Position] | None:
    """What the database, or the copy of it, holds. None where it is missing or damaged; `notes` then say so."""
    is_copy = candidate != path
    if not os.path.exists(candidate):
        if not is_copy and os.path.exists(path + ".prev"):
            notes.append(f"{candidate}: missing; the copy of it is used with the journal")
        return None
    try:
        return _read(candidate)
    except Damaged as exc:
        if not is_copy:
            refuse_foreign(path, str(exc))
        notes.append(f"{candidate}: damaged ({exc})" + ("" if is_copy else "; the copy of it is used with the journal"))
        return None


def _read(path: str) -> tuple[Tables, journal.Position]:
    """Every record, checked against what was counted when it was written. Raises Damaged."""
    connection = None
    try:
        with _as_os_error():
            connection = connect(path, writing=False)
            problem = integrity_problem(connection)
            if problem:
                raise Damaged(problem)
            rows = dict(_rows(connection))
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC):
            raise
        raise Damaged(exc.strerror) from exc
    except UnicodeDecodeError as exc:
        raise Damaged("a record is not text") from exc
    finally:
        if connection is not None:
            _close(connection)
    try:
        meta = json.loads(rows.pop((META, STATE), "") or "{}")
        if isinstance(meta.get("format"), int) and meta["format"] > FORMAT:
            raise newer_format(path, meta["format"], FORMAT)
        digest = sum(_digest_of(key, body) for key, body in rows.items()) % _MODULUS
        if meta != _meta(meta.get("commit"), digest):
            raise Damaged("its records are not those that were counted")
        tables: Tables = {}
        for (kind, key), body in rows.items():
            apply(tables, [(kind, key, json.loads(body))])
    except Damaged:
        raise
    except (ValueError, AttributeError, KeyError) as exc:
        raise Damaged(f"a record is not JSON: {exc}") from exc
    return tables, journal.Position(int(meta["commit"]))


def _meta(commit: Any, digest: int) -> dict[str, Any]:
    check = hashlib.blake2b(f"{commit} {digest:x}".encode(), digest_size=_DIGEST_BYTES).hexdigest()
    return {"format": FORMAT, "commit": commit, "digest": f"{digest:x}", "check": check}


def _digest_of(key: Key, body: str) -> int:
    """Of one record. The sum over all of them can be kept up to date without reading the others."""
    text = f"{key[0]}\0{key[1]}\0{body}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest(), "big")


def _encode(record: Any) -> str:
    return json.dumps(record, separators=(",", ":"))


def _rows(connection: Connection) -> Iterator[tuple[Key, str]]:
    with connection.begin():
        for kind, key, body in connection.execute(sqlalchemy.select(RECORDS)):
            if not (isinstance(kind, str) and isinstance(key, str) and isinstance(body, str)):
                raise Damaged("a record is not text")
            yield (kind, key), body


def _put(connection: Connection, rows: Bodies) -> None:
    """Within a transaction. Delete, then insert: every database can do that."""
    connection.execute(_DELETE, [{"old_kind": kind, "old_id": key} for kind, key in rows])
    found = [{"kind": kind, "id": key, "body": body} for (kind, key), body in rows.items() if body is not None]
    if found:
        connection.execute(_INSERT, found)


def _write_anew(path: str, tables: Tables, commit: int) -> None:
    """The damaged one is set aside whole, and never left where its write-ahead log would be taken for the new one's."""
    fresh = path + ".new"
    for leftover in (fresh, fresh + "-wal", fresh + "-shm"):
        if os.path.exists(leftover):
            os.unlink(leftover)
    with _as_os_error():
        connection = connect(fresh)
        try:
            rows: Bodies = {(kind, key): _encode(r) for kind, records in tables.items() for key, r in records.items()}
            digest = sum(_digest_of(key, body or "") for key, body in rows.items()) % _MODULUS
            with connection.begin():
                _metadata.create_all(connection)
                _put(connection, {**rows, (META, STATE): _encode(_meta(commit, digest))})
        finally:
            _close(connection)
    for name in (path, path + "-wal", path + "-shm"):
        set_aside(name)
    os.replace(fresh, path)
    journal.sync_directory(path)


# ------------------------------------------------------------------------------------------------- SQLite alone


def connect(path: str, *, writing: bool = True) -> Connection:
    """One connection, for whichever thread has its turn. What is committed on it is on disk."""
    if writing:  # the file is ours alone from the start, and SQLite gives what it puts beside it the same permissions
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    engine = create_engine(
        sqlalchemy.URL.create("sqlite", database=path),
        poolclass=StaticPool,
        connect_args={"check_same_thread": False, "timeout": 30.0},
    )

    @event.listens_for(engine, "connect")  # type: ignore[untyped-decorator,unused-ignore]
    def _prepare(raw: Any, _record: Any) -> None:
        if writing:
            raw.execute("PRAGMA journal_mode=WAL").close()
        raw.execute("PRAGMA synchronous=FULL").close()

    return engine.connect()


def _close(connection: Connection) -> None:
    try:
        connection.close()
        connection.engine.dispose()
    except DBAPIError:
        pass  # it was broken already


def integrity_problem(connection: Connection) -> str:
    """What SQLite finds wrong with its own file; "" for nothing."""
    with connection.begin():
        found = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(1)")]
    return "" if found == ["ok"] else " ".join("; ".join(found).split())[:200]


@contextmanager
def _as_os_error() -> Iterator[None]:
    """SQLite's words for what the disk said."""
    try:
        yield
    except DBAPIError as exc:
        text = str(exc.orig)
        codes = {"full": errno.ENOSPC, "readonly": errno.EROFS, "unable to open": errno.EACCES}
        code = next((code for word, code in codes.items() if word in text), errno.EIO)
        raise OSError(code, text) from exc


def copy(path: str, segment: int) -> None:
    """The saving process: a whole, checked copy beside the database; then the journal up to `segment` may go."""
    fresh = path + ".copy"
    for leftover in (fresh, fresh + "-wal", fresh + "-shm"):
        if os.path.exists(leftover):
            os.unlink(leftover)
    os.close(os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600))
    with _as_os_error():
        connection = connect(path)
        try:
            raw = connection.connection.dbapi_connection
            assert raw is not None
            raw.execute("VACUUM INTO ?", (fresh,))
        finally:
            _close(connection)
    _read(fresh)  # what cannot be read back never replaces what can
    descriptor = os.open(fresh, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(fresh, path + ".prev")
    journal.sync_directory(path)
    journal.drop(path, segment)


if __name__ == "__main__":
    saving(copy)
