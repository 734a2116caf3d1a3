"""The database file of a state: its schema, migrations and proofs of completeness. Reads, checks, copies; never
commits.

Three things prove that nothing is missing: `proof` covers every record; `in_use` requires a write-ahead log; and the
log's index, as left by a killed process, shows how much of the log was durable.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import sqlite3
import struct
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from procguard import __version__
from procguard.errors import ProcGuardError
from procguard.fleet.history.query import Event, EventQuery, operation_of
from procguard.fleet.store.interface import Line, Loaded, Tables, apply
from procguard.fleet.store.snapshot import free_name, sync_directory
from procguard.i18n.reasons import because

APPLICATION_ID = 0x50475354
BUSY_TIMEOUT_S = 5.0  # another program has the database locked
OPEN_LOCK_BYTE = 128  # byte of the log's index on which each connection holds a shared lock (UNIX_SHM_DMS in os_unix.c)
CHECKPOINT_PAGES = 10_000  # pages of write-ahead log after which a commit checkpoints it
NETWORK = (
    "nfs",
    "cifs",
    "smb",
    "9p",
    "lustre",
    "gpfs",
    "beegfs",
    "ceph",
    "gluster",
    "afs",
    "fuse.sshfs",
    "ocfs",
    "gfs",
)
_DIGEST_BYTES = 8
_MODULUS = 1 << (8 * _DIGEST_BYTES)

# The database's user_version is the number of those applied. Existing entries never change; new ones are appended.
MIGRATIONS = (
    """
CREATE TABLE state (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    line TEXT NOT NULL,          -- which history of commits this is; another after an import
    term INTEGER NOT NULL,       -- rises with each start; commits of an earlier one are refused
    commits INTEGER NOT NULL,    -- the number of the last commit
    proof TEXT NOT NULL,         -- over all records and the two above it
    in_use INTEGER NOT NULL,     -- not closed yet: the write-ahead log must be there
    snapshot INTEGER NOT NULL,   -- the commit of the last snapshot that was written
    release TEXT NOT NULL        -- that wrote it last
);
CREATE TABLE records (kind TEXT NOT NULL, id TEXT NOT NULL, body TEXT NOT NULL, PRIMARY KEY (kind, id));
CREATE TABLE history (
    log TEXT NOT NULL, seq INTEGER NOT NULL, at TEXT NOT NULL, kind TEXT, worker_id TEXT, host TEXT, operation TEXT,
    cause TEXT, actor TEXT, body TEXT NOT NULL
);
CREATE UNIQUE INDEX history_seq ON history (log, seq);
CREATE INDEX history_at ON history (log, at);
CREATE INDEX history_worker ON history (log, worker_id, seq) WHERE worker_id IS NOT NULL;
CREATE INDEX history_host ON history (log, host, seq) WHERE host IS NOT NULL;
CREATE INDEX history_operation ON history (log, operation, seq) WHERE operation IS NOT NULL;
CREATE VIEW commits AS
    SELECT 0 AS term, 0 AS number, '' AS proof, 0 AS snapshot, '' AS changes, '' AS history, '' AS dropped;
CREATE TRIGGER commits_insert INSTEAD OF INSERT ON commits BEGIN
    SELECT RAISE(ABORT, 'fenced') FROM state WHERE term <> NEW.term;
    UPDATE state SET commits = NEW.number, proof = NEW.proof, snapshot = NEW.snapshot;
    DELETE FROM records WHERE (kind, id) IN
        (SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(NEW.changes)
            WHERE json_extract(value, '$[2]') IS NULL);
    INSERT INTO records
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]')
        FROM json_each(NEW.changes) WHERE json_extract(value, '$[2]') IS NOT NULL
        ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body;
    INSERT OR IGNORE INTO history
        SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
            json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
            json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
            json_extract(value, '$[9]') FROM json_each(NEW.history);
    DELETE FROM history WHERE rowid IN
        (SELECT h.rowid FROM json_each(NEW.dropped) AS d JOIN history AS h
            ON h.log = json_extract(d.value, '$[0]') AND h.seq <= json_extract(d.value, '$[1]'));
END;
""",
)
_COLUMNS = ("worker_id", "host", "kind", "cause", "actor")

Key = tuple[str, str]
Row = tuple[Any, ...]


class Damaged(ValueError):
    """The content of the database differs from what was written to it."""


class IsFenced(OSError):
    """The database has a later term."""


class IsCorrupt(OSError):
    """The file is not a valid database."""


@dataclass
class HeldRows:
    """The rows read at start. `rewrite`: the database is missing or damaged and is rewritten from these rows."""

    bodies: dict[Key, str] = field(default_factory=dict)
    digests: dict[Key, int] = field(default_factory=dict)
    line: str = ""
    term: int = 0
    commits: int = 0
    snapshot: int = 0
    intact: bool = True
    notes: list[str] = field(default_factory=list)
    rewrite: bool = True

    def loaded(self) -> Loaded:
        tables: Tables = {}
        records = _parsed(f"[{','.join(self.bodies.values())}]")
        apply(tables, [(kind, key, one) for (kind, key), one in zip(self.bodies, records, strict=True)])
        return Loaded(tables, self.intact, self.notes)


def connect(path: str) -> sqlite3.Connection:
    """Open a connection for use by one thread at a time. Commits are synchronous."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=BUSY_TIMEOUT_S)
    connection.execute(f"PRAGMA journal_mode = {'DELETE' if on_network(path) else 'WAL'}").fetchone()
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}").fetchone()
    return connection


def on_network(path: str) -> bool:
    """Whether the file is on a file system that other machines share: SQLite's WAL needs shared memory."""
    place, found = os.path.realpath(path), ("", "")
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            words = line.split()
            at = words[4].replace("\\040", " ")
            if (place + "/").startswith(at.rstrip("/") + "/") and len(at) >= len(found[0]):
                found = (at, words[words.index("-") + 1])
    return found[1].startswith(NETWORK)


@contextmanager
def reading(path: str) -> Iterator[sqlite3.Connection]:
    """Open a consistent view of a database, also while a manager writes to it. Changes nothing. Raises OSError.

    If the write-ahead log lacks frames that its index marks as durable, SQLite rebuilds the index. The original index
    is restored unless another process has the database open, because a running manager's log also shrinks when it
    restarts.
    """
    index, claimed = _index(path), _durable_frames(path)
    is_wal = _is_wal(path)
    # Without a write-ahead log no process has it open; a normal open would create one.
    how = "mode=ro&immutable=1" if is_wal and not os.path.exists(path + "-wal") else "mode=ro"
    if not is_wal and os.path.exists(path + "-journal"):
        how = "mode=rw"  # an unfinished transaction of a killed manager has to be rolled back first
    try:
        with closing(sqlite3.connect(f"file:{quote(path)}?{how}", uri=True, isolation_level=None)) as connection:
            connection.execute("BEGIN")
            yield connection
    except sqlite3.Error as exc:
        raise os_error(exc) from exc
    finally:
        if claimed and (_durable_frames(path) or 0) < claimed:
            _restore_index(path, index, claimed)


def _restore_index(path: str, index: bytes, claimed: int) -> None:
    """Restore the index in which `claimed` frames are marked as durable. Changes nothing while a connection is open."""
    with suppress(OSError), open(path + "-shm", "r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, OPEN_LOCK_BYTE)
        if (_frames_by(file.read(96), _log_header(path)) or 0) < claimed:
            file.seek(0)
            file.write(index)


def _is_wal(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(20)[18:19] == b"\x02"


def examined(path: str) -> HeldRows | None:
    """The checked content of the database; None if there is none. Raises Damaged, or ProcGuardError for a newer
    format."""
    if not os.path.exists(path):
        return None
    had_log, claimed = os.path.exists(path + "-wal"), _durable_frames(path)
    try:
        with reading(path) as connection:
            if connection.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
                raise Damaged("it is not a database of ProcGuard")
            _refuse_newer(path, connection)
            columns = "line, term, commits, proof, in_use, snapshot"
            row = connection.execute(f"SELECT {columns} FROM state").fetchone()  # noqa: S608
            rows = connection.execute("SELECT kind, id, body FROM records").fetchall()
            sound = _schema(connection) == _own_schema(connection)
            sound = sound and connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
            frames = _durable_frames(path)
    except OSError as exc:
        if exc.errno in (errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EISDIR):
            raise
        raise Damaged(exc.strerror) from exc
    except UnicodeDecodeError as exc:
        raise Damaged("a record is not text") from exc
    if row is None or not all(isinstance(value, str) for record in rows for value in record):
        raise Damaged("it is not what was written")
    bodies = {(kind, key): body for kind, key, body in rows}
    line, term, commits, proof, in_use, shown = row
    digests = digests_of(bodies)
    if proof != proof_of(line, commits, sum(digests.values())):
        raise Damaged("its records are not those that were written")
    held = HeldRows(bodies, digests, line, term, commits, shown, rewrite=not sound)
    if not sound:
        held.notes.append(because("state.half_damaged", path=path))
    if in_use and not had_log and _is_wal(path):
        held.intact = False
        held.notes.append(because("state.log_missing", path=f"{path}-wal"))
    elif claimed is not None and (frames or 0) < claimed:
        held.intact = False
        held.notes.append(because("state.log_damaged", path=f"{path}-wal"))
    return held


def _index(path: str) -> bytes:
    with suppress(OSError), open(path + "-shm", "rb") as file:
        return file.read(96)
    return b""


def _durable_frames(path: str) -> int | None:
    """The number of durable frames in the write-ahead log by its index (https://sqlite.org/walformat.html)."""
    return _frames_by(_index(path), _log_header(path))


def _log_header(path: str) -> bytes:
    with suppress(OSError), open(path + "-wal", "rb") as wal:
        return wal.read(32)
    return b""


def _frames_by(header: bytes, log: bytes) -> int | None:
    if len(header) < 96 or header[:48] != header[48:]:
        return None  # missing, or being written
    frames: int = struct.unpack("=I", header[16:20])[0]
    # A complete log of another generation: the index is from before a power loss.
    return None if frames and _is_log_header(log) and header[32:40] != log[16:24] else frames


def _is_log_header(data: bytes) -> bool:
    if len(data) < 32:
        return False
    *words, sum_1, sum_2 = struct.unpack(f"{'>' if data[3] & 1 else '<'}6I", data[:24]) + struct.unpack(
        ">2I", data[24:]
    )
    one = two = 0
    for first, second in zip(words[::2], words[1::2], strict=True):
        one = (one + first + two) % 2**32
        two = (two + second + one) % 2**32
    return (one, two) == (sum_1, sum_2)


def _schema(connection: sqlite3.Connection) -> list[Row]:
    tables = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY name"
    return connection.execute(tables).fetchall()


def _own_schema(connection: sqlite3.Connection) -> list[Row]:
    """The schema rows, in the form that a database of this version has."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as fresh:
        run_migrations(fresh, 0, connection.execute("PRAGMA user_version").fetchone()[0])
        return _schema(fresh)


def _refuse_newer(path: str, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        release = "a newer release"
        with suppress(sqlite3.Error, TypeError):
            (found,) = connection.execute("SELECT release FROM state").fetchone()
            release = f"ProcGuard {found}"
        raise ProcGuardError(
            f"state.state_file: {path} was written by {release} in format {version}; "
            f"this release, {__version__}, reads up to {len(MIGRATIONS)}",
            f"start {release} or a later one, or let it write an export (invoke state.export) that this one can import",
            code="newer_state",
        )


def create(path: str, held: HeldRows, history: Iterator[Row]) -> None:
    """Create a database with these records and events; it is complete on disk on return. Raises OSError."""
    for ending in ("", "-wal", "-shm", "-journal"):
        with suppress(FileNotFoundError):
            os.unlink(path + ending)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            run_migrations(connection, 0)
            connection.execute("BEGIN")
            held.digests = digests_of(held.bodies)
            proof = proof_of(held.line, held.commits, sum(held.digests.values()))
            state = (1, held.line, held.term, held.commits, proof, 0, held.snapshot, __version__)
            connection.execute("INSERT INTO state VALUES (?, ?, ?, ?, ?, ?, ?, ?)", state)
            records = ((*key, body) for key, body in held.bodies.items())
            connection.executemany("INSERT INTO records VALUES (?, ?, ?)", records)
            connection.executemany("INSERT OR IGNORE INTO history VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", history)
            connection.execute("COMMIT")
    except sqlite3.Error as exc:
        raise os_error(exc) from exc


def migrate(path: str, connection: sqlite3.Connection) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version < len(MIGRATIONS):
        _copy(connection, free_name(f"{path}.v{version}"))
        run_migrations(connection, version)


def run_migrations(connection: sqlite3.Connection, version: int, upto: int | None = None) -> None:
    for number, script in enumerate(MIGRATIONS[version:upto], version + 1):
        connection.executescript(f"BEGIN; {script}; PRAGMA user_version = {number}; COMMIT")


def backup(path: str, target: str) -> None:
    """Copy a database to `target`, also while a manager writes to it. Raises OSError, also if `target` exists."""
    with reading(path) as source:
        _copy(source, target)


def _copy(source: sqlite3.Connection, target: str) -> None:
    os.close(os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            copy.execute("PRAGMA synchronous = FULL")
            source.backup(copy)
    except sqlite3.Error as exc:
        os.unlink(target)
        raise os_error(exc) from exc
    sync_directory(target)


def history_of(path: str) -> Iterator[Row]:
    """The history rows of a database, as far as they can be read."""
    with suppress(OSError, sqlite3.Error), reading(path) as connection:
        yield from rows_of(connection)


def history(path: str) -> Iterator[Line]:
    """The events in a database, as far as they can be read."""
    return ((row[0], json.loads(row[-1])) for row in history_of(path))


def rows_of(connection: sqlite3.Connection | None) -> Iterator[Row]:
    with suppress(sqlite3.Error, UnicodeDecodeError):
        if connection is not None:
            yield from connection.execute("SELECT * FROM history ORDER BY log, seq")


def condition(log: str, query: EventQuery) -> tuple[str, list[Any]]:
    """The SQL condition and its values for the part of the query that SQL can decide; `query.matches` decides the
    rest."""
    where: list[str] = ["log = ?"]
    values: list[Any] = [log]
    if query.after:
        where, values = [*where, "seq > ?"], [*values, query.after]
    for column, wanted in zip(
        (*_COLUMNS, "operation"),
        (query.worker, query.host, query.kind, query.cause, query.actor, query.operation),
        strict=True,
    ):
        if wanted:
            where.append(f"{column} IN ({', '.join('?' * len(wanted))})")
            values += wanted
    for bound, sign in ((query.since_text, ">="), (query.until_text, "<=")):
        if bound is not None:
            where, values = [*where, f"at {sign} ?"], [*values, bound]
    if query.reason_code:  # a code is only in `body`, in its JSON form; `matches` decides the rest
        where.append(f"({' OR '.join(['body LIKE ?'] * len(query.reason_code))})")
        values += [f'%"{code}%' for code in query.reason_code]
    for word in query.words:
        if word.isascii() and word.isalnum():  # in its JSON form; `matches` decides the rest
            where, values = [*where, "body LIKE ?"], [*values, f"%{word}%"]
    return " AND ".join(where), [
        one.encode(errors="replace").decode() if isinstance(one, str) else one for one in values
    ]


# ------------------------------------------------------------------------------------------------------- encoding


def row_of(name: str, event: Event) -> Row:
    """The table row of a history line."""
    texts = (event.get(column) for column in ("at", "kind", "worker_id", "host"))
    more = (operation_of(event), event.get("cause"), event.get("actor"))
    shown = [None if one is None else str(one).encode(errors="replace").decode() for one in (*texts, *more)]
    return (name, event["seq"], *shown, json.dumps(event, separators=(",", ":"), default=str))


def key_of(kind: str, key: str) -> Key:
    """The key of a record. Raises ValueError for text that SQLite would not return unchanged."""
    key.encode()
    if "\0" in key:
        raise ValueError(f"a record's id with NUL in it: {key!r}")
    return kind, key


def held_from(loaded: Loaded) -> HeldRows:
    bodies = {(kind, key): encode(one) for kind, records in loaded.tables.items() for key, one in records.items()}
    return HeldRows(bodies, intact=loaded.intact, notes=list(loaded.notes))


def _parsed(text: str) -> Any:
    """As json.loads, in two thirds of the time."""
    try:
        from pydantic_core import from_json  # noqa: PLC0415 - a process that writes the snapshot parses no record

        return from_json(text)
    except ValueError:  # it does not know surrogates
        return json.loads(text)


_ENCODER = json.JSONEncoder(separators=(",", ":"))  # json.dumps would create an encoder for each record


def encode(record: Any) -> str:
    return _ENCODER.encode(record)


def digest_of(key: Key, body: str) -> int:
    """The digest of one record. The sum of all digests can be updated without reading the other records."""
    text = f"{key[0]}\0{key[1]}\0{body}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest(), "big")


def digests_of(bodies: dict[Key, str]) -> dict[Key, int]:
    return {key: digest_of(key, body) for key, body in bodies.items()}


def proof_of(line: str, commits: int, digest: int) -> str:
    return hashlib.blake2b(f"{line} {commits} {digest % _MODULUS:x}".encode(), digest_size=16).hexdigest()


def os_error(exc: sqlite3.Error) -> OSError:
    """The OSError that corresponds to an error of SQLite."""
    text = str(exc)
    code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_CONSTRAINT and text == "fenced":
        return IsFenced(errno.ESTALE, text)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return IsCorrupt(errno.EIO, text)
    for known, number in (
        (sqlite3.SQLITE_FULL, errno.ENOSPC),
        (sqlite3.SQLITE_READONLY, errno.EROFS),
        (sqlite3.SQLITE_PERM, errno.EACCES),
        (sqlite3.SQLITE_CANTOPEN, errno.EACCES),
    ):
        if code == known:
            return OSError(number, os.strerror(number))
    return OSError(errno.EIO, text)
