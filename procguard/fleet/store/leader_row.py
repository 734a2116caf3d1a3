"""The leader's row and the other managers' rows in the shared database: each function is one short transaction.

A standby that has seen (term, beat) unchanged for long enough takes the row by compare-and-swap; no wall clocks are
compared. manager/seat.py decides when to take it and how long a leader may rely on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

from procguard import __version__
from procguard.fleet.store.postgres_link import Connection
from procguard.fleet.store.postgres_schema import CELL
from procguard.json_types import Json

_COLUMNS = "term, beat, commits, purged, holder, successor, grace_s, carried_s, since, identity"
_BEGIN_WALL = 1_767_225_600  # 2026-01-01T00:00:00Z
FORGOTTEN_AFTER = "1 day"  # a manager not seen for this time is no longer listed


class LeaderRow(NamedTuple):
    term: int
    beat: int
    commits: int
    purged: int
    holder: str
    successor: str
    grace_s: float
    carried_s: float
    since: Any  # datetime
    identity: str

    @property
    def is_new(self) -> bool:
        """Whether no manager has ever led."""
        return self.term == 0


class OtherManager(NamedTuple):
    name: str
    seen_s: float  # seconds ago, by the database's clock
    seen_wall: float  # the time by the database's clock, in Unix seconds
    urls: list[str]
    about: Json


def read(connection: Connection) -> LeaderRow:
    row = connection.execute(f"SELECT {_COLUMNS} FROM leader WHERE cell = %s", (CELL,)).fetchone()  # noqa: S608
    if row is None:
        connection.execute(
            "INSERT INTO leader VALUES (%s, 0, 0, 0, 0, '', '', 0, 0, now(), '', %s) ON CONFLICT DO NOTHING",
            (CELL, __version__),
        )
        return read(connection)
    return LeaderRow(*row)


class Taken(NamedTuple):
    """`before`: the previous row; `term`: the new one; `carried_s`: seconds from now in which an earlier leader that
    lost its database may still renew leases."""

    before: LeaderRow
    term: int
    carried_s: float


def take(connection: Connection, name: str, grace_s: float, observed: LeaderRow | None = None) -> Taken | None:
    """Begin a new term held by `name`, within the caller's transaction. `seen`: take it only if term and beat are
    still these. Returns None if they are not.

    A term is at least the number of seconds since 2026 (see fleet/model/epochs.py): agents refuse a term lower than
    one they have seen, also after the fleet moved to a new database.
    """
    row = LeaderRow(
        *connection.execute(f"SELECT {_COLUMNS} FROM leader WHERE cell = %s FOR UPDATE", (CELL,)).fetchone()  # noqa: S608
    )
    if observed is not None and (row.term, row.beat) != (observed.term, observed.beat):
        return None
    # a leader that hands over no longer renews leases
    carried_s = max(row.grace_s, row.carried_s) if row.holder else row.carried_s
    term = connection.execute(
        "UPDATE leader SET term = greatest(term + 1, floor(extract(epoch FROM clock_timestamp()))::bigint - %s), "
        "beat = beat + 1, holder = %s, successor = '', grace_s = %s, carried_s = %s, since = now(), identity = %s, "
        "release = %s WHERE cell = %s RETURNING term",
        (_BEGIN_WALL, name, grace_s, carried_s, identity(connection), __version__, CELL),
    ).fetchone()[0]
    return Taken(row, int(term), carried_s)


def beat(connection: Connection, term: int) -> int | None:
    """Renew the leader's row. Returns the number of the last commit; None if this term has ended."""
    row = connection.execute(
        "UPDATE leader SET beat = beat + 1 WHERE cell = %s AND term = %s RETURNING commits", (CELL, term)
    ).fetchone()
    return None if row is None else int(row[0])


def release(connection: Connection, term: int, successor: str = "", led_s: float = 0.0) -> None:
    """End a term that lasted `led_s` in an orderly way: `successor`, or the first standby to notice, takes over at
    once."""
    connection.execute(
        "UPDATE leader SET holder = '', successor = %s, beat = beat + 1, "
        "carried_s = CASE WHEN carried_s < %s THEN 0 ELSE carried_s END WHERE cell = %s AND term = %s",
        (successor, led_s, CELL, term),
    )


def identity(connection: Connection) -> str:
    """The identity of the server's history. It changes with a failover or restore, after which commits may be
    missing."""
    timeline = connection.execute("SELECT left(pg_walfile_name(pg_current_wal_lsn()), 8)").fetchone()[0]
    allowed = connection.execute("SELECT has_function_privilege('pg_control_system()', 'EXECUTE')").fetchone()[0]
    system = connection.execute("SELECT system_identifier FROM pg_control_system()").fetchone()[0] if allowed else ""
    return f"{system}/{timeline}"


def register(connection: Connection, name: str, process: str, urls: Sequence[str], about: Json) -> str:
    """Record that this manager is present. Returns another process that used this name within the last 3 s, or ""."""
    row = connection.execute(
        "SELECT process FROM managers WHERE name = %s AND process <> %s AND seen > clock_timestamp() - interval '3 s'",
        (name, process),
    ).fetchone()
    connection.execute(
        "INSERT INTO managers VALUES (%s, %s, clock_timestamp(), %s, %s) ON CONFLICT (name) DO UPDATE SET "
        "process = excluded.process, seen = excluded.seen, urls = excluded.urls, about = excluded.about",
        (name, process, json.dumps(list(urls)), json.dumps(about)),
    )
    return str(row[0]) if row is not None else ""


def leave(connection: Connection, name: str, process: str) -> None:
    connection.execute("DELETE FROM managers WHERE name = %s AND process = %s", (name, process))


def managers(connection: Connection) -> list[OtherManager]:
    """The managers seen recently, ordered by name."""
    rows = connection.execute(
        "SELECT name, extract(epoch FROM clock_timestamp() - seen)::float8, extract(epoch FROM seen)::float8, urls, "
        "about FROM managers "
        "WHERE seen > clock_timestamp() - %s::interval ORDER BY name",
        (FORGOTTEN_AFTER,),
    ).fetchall()
    return [OtherManager(name, ago, wall, json.loads(urls), json.loads(about)) for name, ago, wall, urls, about in rows]


class Replication(NamedTuple):
    replicas: int
    synchronous_names: str  # synchronous_standby_names
    commit: str  # synchronous_commit


def replication(connection: Connection) -> Replication:
    """The replication of the database, as far as an unprivileged user can see it."""
    row = connection.execute(
        "SELECT (SELECT count(*) FROM pg_stat_replication), current_setting('synchronous_standby_names'), "
        "current_setting('synchronous_commit')"
    ).fetchone()
    return Replication(*row)


def shared(connection: Connection, name: str) -> str | None:
    """A text that all managers share (a CA, host keys); None if it is not set."""
    row = connection.execute("SELECT body FROM shared WHERE name = %s", (name,)).fetchone()
    return None if row is None else str(row[0])


def share(connection: Connection, name: str, body: str, *, replace: bool = True) -> None:
    """Store a text for all managers; with `replace` False only if it is not set."""
    then = "UPDATE SET body = excluded.body" if replace else "NOTHING"
    connection.execute(f"INSERT INTO shared VALUES (%s, %s) ON CONFLICT (name) DO {then}", (name, body))  # noqa: S608
