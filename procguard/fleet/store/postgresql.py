"""The store that several managers share: a PostgreSQL database, changed by one server-side call for each commit.

Owns what the leader writes (`PostgresqlStore`) and the copy of it that a standby keeps up to date (`WarmCopy`).
A commit whose answer was lost may have taken effect: it is sent again with the next one, and changes nothing twice.
manager/seat.py decides which manager leads; postgres_schema.py owns the schema, postgres_link.py the connections.
"""

from __future__ import annotations

import errno
import itertools
import json
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from procguard.errors import Conflict, ProcGuardError
from procguard.fleet.history.query import Event, EventQuery, read_pages
from procguard.fleet.store import database as rows
from procguard.fleet.store import leader_row, postgres_schema
from procguard.fleet.store.database import IsFenced, Key, Row, encode
from procguard.fleet.store.group_commit import GroupCommit
from procguard.fleet.store.interface import Change, Fenced, Line, Loaded, StoredRecord, Tables, apply, run_here
from procguard.fleet.store.leader_row import LeaderRow, Taken
from procguard.fleet.store.postgres_link import (
    LOAD_TIMEOUT_S,
    Connection,
    DatabaseLink,
    DatabasePlace,
    DatabaseUnreachable,
    name_of_this_machine,
)
from procguard.i18n.reasons import because

PAGE = 1_000  # events read at once
ROW_BYTES = 200  # size of an event's columns and indexes, in addition to its JSON
DROPPED_AT_ONCE = 200
PURGE_EVERY_S = 600.0
WRITTEN_AT_ONCE = 5_000  # events per statement when a state is imported
PRESENT_S = 5.0  # a manager seen within this time counts as present
LISTED_COMMITS = 100_000  # number of commits for which deletions stay listed, for standbys that lag behind
_COMMIT = "SELECT commit_changes(" + ", ".join(["%s"] * 16) + ")"
_INSERT = "INSERT INTO records SELECT * FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[])"
_LOST = because("state.commits_lost")


class _Submitted(NamedTuple):
    bodies: dict[Key, str | None]  # None deletes
    history: list[Row]


class HistoryUnreadable(ProcGuardError):
    http_status = 503
    default_code = "database_unreachable"


class WarmCopy:
    """A copy of every record, kept up to date by reading changes. Records are parsed as they arrive, because a
    takeover of thousands of agents leaves no time for it."""

    def __init__(self) -> None:
        self.tables: Tables = {}
        self.upto = -1  # the last commit included; -1: nothing has been read yet

    def follow(self, connection: Connection) -> LeaderRow:
        """Read the changes; returns the leader's row from the same transaction, which the caller begins."""
        connection.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        leader = leader_row.read(connection)
        if self.upto < leader.purged or self.upto > leader.commits:  # too far behind, or the database was replaced
            self.tables.clear()
            self.upto = -1
        if self.upto == leader.commits:
            return leader
        found = connection.execute("SELECT kind, id, body FROM records WHERE changed > %s", (self.upto,)).fetchall()
        apply(self.tables, [(kind, key, None if body is None else json.loads(body)) for kind, key, body in found])
        self.upto = leader.commits
        return leader

    def record(self, kind: str, key: str) -> StoredRecord | None:
        return self.tables.get(kind, {}).get(key)


class PostgresqlStore:
    """`name`: of this manager. `load` begins a new term unless `took` was called."""

    displaced_reason = _LOST

    def __init__(self, place: DatabasePlace, name: str = "") -> None:
        self.path = str(place)
        self.place = place
        self.name = name or name_of_this_machine()
        self._writer = DatabaseLink(place, "writer")
        self._reader = DatabaseLink(place, "reader")
        self._group = GroupCommit(self._prepare, run_here, self._problem)
        self._kept: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._warm = WarmCopy()
        self._taken: Taken | None = None
        self.term = 0
        self.acknowledged = 0  # the last commit that the database acknowledged
        self._fenced = self._rolled_back = False
        self._purge_due = time.monotonic() + PURGE_EVERY_S

    # ------------------------------------------------------------------------------------------ starting

    def took(self, taken: Taken, warm: WarmCopy) -> None:
        """Record that this manager has begun a term; `warm`: its copy of the records."""
        self._taken, self._warm = taken, warm

    def load(self) -> Loaded:
        try:
            self._writer.call(postgres_schema.migrate, LOAD_TIMEOUT_S)
            before, term, _ = self._taken or self._writer.transaction(self._take)
            leader = self._writer.transaction(self._warm.follow, LOAD_TIMEOUT_S)
            identity = self._writer.call(leader_row.identity)
            sizes = f"SELECT log, sum(length(body) + {ROW_BYTES})::bigint FROM history GROUP BY log"  # noqa: S608
            self._bytes = dict(self._writer.call(lambda it: it.execute(sizes).fetchall(), LOAD_TIMEOUT_S))
        except OSError as exc:
            raise cannot_use(self.path, exc) from exc
        self.term, self.acknowledged = term, leader.commits
        loaded = Loaded(_without_empty(self._warm.tables))
        self._warm = WarmCopy()
        was = before.identity
        if was and was != identity:
            loaded.intact = False
            loaded.notes.append(because("state.other_history", path=self.path, before=str(was), now=str(identity)))
        return loaded

    def _take(self, connection: Connection) -> Taken:
        leader_row.read(connection)
        taken = leader_row.take(connection, self.name, 0.0)
        assert taken is not None, "there was nothing to compare"
        return taken

    def read(self) -> Loaded:
        warm = WarmCopy()

        def check(connection: Connection) -> bool:
            if not postgres_schema.exists(connection):
                return False
            postgres_schema.check_version(connection)
            return True

        try:
            if self._reader.call(check):
                self._reader.transaction(warm.follow, LOAD_TIMEOUT_S)
        except OSError as exc:
            raise cannot_use(self.path, exc) from exc
        return Loaded(_without_empty(warm.tables))

    # ------------------------------------------------------------------------------------------ committing

    def commit(self, changes: Sequence[Change], history: Sequence[Line] = ()) -> None:
        if self._fenced:
            raise self._ended()
        if changes or history:
            bodies = {rows.key_of(kind, key): None if one is None else encode(one) for kind, key, one in changes}
            self._group.submit(_Submitted(bodies, [_clean(rows.row_of(name, event)) for name, event in history]))
        try:
            self._group.flush()
        except IsFenced as exc:
            self._fenced = True
            raise self._ended() from exc
        except OSError as exc:
            raise DatabaseUnreachable(self.place, exc.strerror or str(exc)) from exc

    def _ended(self) -> Fenced:
        return Fenced(
            f"{self.path}: term {self.term} has ended: another manager leads",
            "this manager exits; after a restart it is a standby",
        )

    def _prepare(self, batch: list[_Submitted]) -> Callable[[], None]:
        """Combine the writes into one idempotent call."""
        bodies, history = dict[Key, str | None](), list[Row]()
        for one in batch:
            bodies.update(one.bodies)
            history += one.history
        added: dict[str, int] = {}
        for row in history:
            added[row[0]] = added.get(row[0], 0) + len(row[-1]) + ROW_BYTES
        columns: list[list[Any]] = [[kind for kind, _ in bodies], [key for _, key in bodies], list(bodies.values())]
        columns += [list(column) for column in zip(*history, strict=True)] if history else [[] for _ in range(10)]

        def write() -> None:
            self._writer.call(lambda connection: self._write(connection, columns, added, len(history)))

        return write

    def _write(self, connection: Connection, columns: list[list[Any]], added: dict[str, int], count: int) -> None:
        dropped = self._overflow(connection, added, count)
        values = [*columns, list(dropped), [seq for seq, _ in dropped.values()]]
        number = connection.execute(_COMMIT, [self.term, *values]).fetchone()[0]
        if number is None:
            raise IsFenced(errno.ESTALE, "fenced")
        self._rolled_back = self._rolled_back or number <= self.acknowledged
        self.acknowledged = max(self.acknowledged, number)
        for name, size in added.items():
            self._bytes[name] = self._bytes.get(name, 0) + size - dropped.get(name, (0, 0))[1]

    def _problem(self) -> OSError | None:
        return OSError(errno.ESTALE, _LOST) if self._rolled_back else None

    def _overflow(self, connection: Connection, added: dict[str, int], count: int) -> dict[str, tuple[int, int]]:
        """For each log that exceeds its bound: the last event to drop, and the bytes freed."""
        dropped: dict[str, tuple[int, int]] = {}
        for name, size in added.items():
            excess = self._bytes.get(name, 0) + size - self._kept.get(name, 2**63)
            if excess > 0:
                oldest = "SELECT seq, length(body) FROM history WHERE log = %s ORDER BY seq LIMIT %s"
                freed = 0
                for seq, length in connection.execute(oldest, (name, DROPPED_AT_ONCE + 2 * count)).fetchall():
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

    def _page(self, log: str, query: EventQuery, edge: int | None, count: int, newest: bool) -> list[Event]:
        """One page of events. `newest`: newest first, before `edge`; otherwise oldest first, after it."""
        where, values = rows.condition(log, query)
        where = where.replace("%", "%%").replace("?", "%s").replace("body LIKE", "body ILIKE")
        if edge is not None:
            where, values = where + f" AND seq {'<' if newest else '>'} %s", [*values, edge]
        order = "DESC" if newest else "ASC"
        chosen = f"SELECT body FROM history WHERE {where} ORDER BY seq {order} LIMIT {count}"  # noqa: S608
        given = list(_clean(tuple(values)))
        try:
            found = self._reader.call(lambda connection: connection.execute(chosen, given).fetchall())
        except OSError as exc:
            raise HistoryUnreadable(
                f"database {self.path}: cannot read the history ({exc.strerror})", "try again; check the database"
            ) from exc
        return [json.loads(body) for (body,) in found]

    # ------------------------------------------------------------------------------------------ keeping in place

    def in_place(self) -> bool:
        return not self._rolled_back

    def compare(self, commits: int, acknowledged: int) -> None:
        """Compare the database's last commit with the last one acknowledged before the query; a lower one means lost
        commits."""
        self._rolled_back = self._rolled_back or commits < acknowledged

    def write_again(self, tables: Tables) -> None:
        bodies = {rows.key_of(kind, key): encode(one) for kind, found in tables.items() for key, one in found.items()}

        def whole(connection: Connection) -> int:
            raised = connection.execute(
                "UPDATE leader SET commits = greatest(commits, %s) + 1, identity = %s WHERE cell = %s AND term = %s "
                "RETURNING commits",
                (self.acknowledged, leader_row.identity(connection), postgres_schema.CELL, self.term),
            ).fetchone()
            if raised is None:
                raise IsFenced(errno.ESTALE, "fenced")
            number = int(raised[0])
            connection.execute("DELETE FROM records")
            columns = [[kind for kind, _ in bodies], [key for _, key in bodies], list(bodies.values())]
            connection.execute(_INSERT, [*columns, [number] * len(bodies)])
            connection.execute("UPDATE leader SET purged = %s WHERE cell = %s", (number - 1, postgres_schema.CELL))
            return number

        def again() -> None:
            self.acknowledged = self._writer.transaction(whole, LOAD_TIMEOUT_S)
            self._rolled_back = False

        try:
            self._group.alone(again)
        except IsFenced as exc:
            self._fenced = True
            raise self._ended() from exc
        except OSError as exc:
            raise DatabaseUnreachable(self.place, exc.strerror or str(exc)) from exc

    # ------------------------------------------------------------------------------------------ occasional work

    def save(self) -> None:
        """Remove deletions that every standby has read from the list; the database needs no snapshot."""
        if self._fenced:
            raise self._ended()
        if time.monotonic() < self._purge_due:
            return
        self._purge_due = time.monotonic() + PURGE_EVERY_S
        upto = self.acknowledged - LISTED_COMMITS

        def purge(connection: Connection) -> None:
            own = "UPDATE leader SET purged = %s WHERE cell = %s AND term = %s AND purged < %s RETURNING term"
            if connection.execute(own, (upto, postgres_schema.CELL, self.term, upto)).fetchone() is not None:
                connection.execute("DELETE FROM records WHERE body IS NULL AND changed <= %s", (upto,))

        try:
            self._reader.transaction(purge)
        except OSError as exc:
            raise DatabaseUnreachable(self.place, exc.strerror or str(exc)) from exc

    def close(self) -> None:
        try:
            if not self._fenced:
                self.commit([])
        finally:
            self._writer.close()
            self._reader.close()


def _without_empty(tables: Tables) -> Tables:
    """Remove tables without records."""
    return {kind: records for kind, records in tables.items() if records}


def write_new(place: DatabasePlace, tables: Tables, history: Iterable[Line]) -> None:
    """Create a state in an empty database. Raises Conflict if it already holds one."""
    store = PostgresqlStore(place)
    if store.read().tables:
        raise Conflict(
            f"{place}: the database already contains a state; nothing was written",
            "use an empty database, or drop the schema procguard in it first",
        )
    store.load()
    try:
        lines = iter(history)
        while some := list(itertools.islice(lines, WRITTEN_AT_ONCE)):
            store.commit([], some)
        store.commit([(table, key, record) for table, records in tables.items() for key, record in records.items()])
        store._writer.transaction(lambda connection: leader_row.release(connection, store.term))
    finally:
        store.close()


def history_of(place: DatabasePlace) -> list[Line]:
    """Every event and audit record in a database."""
    link = DatabaseLink(place, "export")
    try:
        found = link.call(lambda it: it.execute("SELECT log, body FROM history ORDER BY log, seq").fetchall())
    except OSError as exc:
        raise cannot_use(str(place), exc) from exc
    finally:
        link.close()
    return [(log, json.loads(body)) for log, body in found]


def leader_of(place: DatabasePlace) -> str:
    """The manager that leads on this database and was seen recently; "" if there is none."""
    link = DatabaseLink(place, "look")

    def check(connection: Connection) -> str:
        if not postgres_schema.exists(connection):
            return ""
        holder = leader_row.read(connection).holder
        near = [one for one in leader_row.managers(connection) if one.seen_s < PRESENT_S]
        return holder if any(one.name == holder for one in near) else next((one.name for one in near), "")

    try:
        return link.call(check)
    except OSError as exc:
        raise cannot_use(str(place), exc) from exc
    finally:
        link.close()


def _clean(row: Row) -> Row:
    """PostgreSQL's text holds neither NUL nor half a surrogate pair."""
    return tuple(
        one.replace("\0", "\N{REPLACEMENT CHARACTER}").encode(errors="replace").decode()
        if isinstance(one, str)
        else one
        for one in row
    )


def cannot_use(path: str, exc: OSError) -> ProcGuardError:
    return ProcGuardError(
        f"state.database: cannot use {path} ({exc.strerror or exc})",
        "check that the server is running and accepts this user; see docs/several_managers.md for its setup",
        code="bad_database",
    )
