"""The tables and functions of the shared database, as numbered migrations. SQL only; who calls it is postgresql.py.

The schema `procguard` holds all of it. Every change of the state goes through `commit_changes`, whose first statement
updates the leader's row: after a takeover it changes none, and nothing else of the call takes effect. A takeover waits
for that row's lock, so what the new leader reads contains every commit that was acknowledged.
"""

from __future__ import annotations

from typing import Any

from procguard import __version__
from procguard.errors import ProcGuardError

CELL = "main"
_MIGRATION_LOCK = 0x50475354  # pg_advisory_xact_lock: one manager migrates at a time

# The table `migration` says how many of them the database has seen. Never changed, only added to.
MIGRATIONS = (
    """
CREATE TABLE leader (
    cell text PRIMARY KEY,
    term bigint NOT NULL,          -- rises with each takeover; commits of an earlier term are refused
    beat bigint NOT NULL,          -- the leader adds one every second
    commits bigint NOT NULL,       -- the number of the last commit
    purged bigint NOT NULL,        -- deletions up to this commit are no longer listed in `records`
    holder text NOT NULL,          -- the leader's name; '' after an orderly hand-over
    successor text NOT NULL,       -- who alone may follow at once after a hand-over; '' = whoever is first
    grace_s double precision NOT NULL,    -- how long past its last beat this leader may renew leases
    carried_s double precision NOT NULL,  -- for how long from its takeover leaders before it may do so
    since timestamptz NOT NULL,
    identity text NOT NULL,        -- system identifier and timeline of the server that the last leader wrote to
    release text NOT NULL
);
CREATE TABLE records (
    kind text NOT NULL, id text NOT NULL,
    body text,                     -- JSON; NULL: deleted in this commit
    changed bigint NOT NULL,       -- the commit
    PRIMARY KEY (kind, id)
);
CREATE INDEX records_changed ON records (changed);
CREATE TABLE history (
    log text NOT NULL, seq bigint NOT NULL, at text NOT NULL, kind text, worker_id text, host text, operation text,
    cause text, actor text, body text NOT NULL, PRIMARY KEY (log, seq)
);
CREATE INDEX history_at ON history (log, at);
CREATE INDEX history_worker ON history (log, worker_id, seq) WHERE worker_id IS NOT NULL;
CREATE INDEX history_host ON history (log, host, seq) WHERE host IS NOT NULL;
CREATE INDEX history_operation ON history (log, operation, seq) WHERE operation IS NOT NULL;
CREATE TABLE managers (
    name text PRIMARY KEY,
    process text NOT NULL,         -- another one for each run: two with one name notice each other
    seen timestamptz NOT NULL,
    urls text NOT NULL,            -- JSON
    about text NOT NULL            -- JSON: what it says of itself
);
CREATE TABLE shared (name text PRIMARY KEY, body text NOT NULL);
CREATE FUNCTION commit_changes(
    p_term bigint, p_kinds text[], p_ids text[], p_bodies text[],
    p_logs text[], p_seqs bigint[], p_ats text[], p_event_kinds text[], p_workers text[], p_hosts text[],
    p_operations text[], p_causes text[], p_actors text[], p_events text[], p_dropped text[], p_upto bigint[]
) RETURNS bigint LANGUAGE plpgsql SET search_path = procguard AS $$
DECLARE number bigint;
BEGIN
    UPDATE leader SET commits = commits + 1 WHERE cell = 'main' AND term = p_term RETURNING commits INTO number;
    IF NOT FOUND THEN
        RETURN NULL;
    END IF;
    IF cardinality(p_kinds) > 0 THEN
        INSERT INTO records (kind, id, body, changed)
            SELECT c.kind, c.id, c.body, number FROM unnest(p_kinds, p_ids, p_bodies) AS c (kind, id, body)
            ON CONFLICT (kind, id) DO UPDATE SET body = excluded.body, changed = excluded.changed;
    END IF;
    IF cardinality(p_logs) > 0 THEN
        INSERT INTO history
            SELECT * FROM unnest(p_logs, p_seqs, p_ats, p_event_kinds, p_workers, p_hosts, p_operations, p_causes,
                p_actors, p_events) ON CONFLICT (log, seq) DO NOTHING;
    END IF;
    IF cardinality(p_dropped) > 0 THEN
        DELETE FROM history AS h USING unnest(p_dropped, p_upto) AS d (log, upto)
            WHERE h.log = d.log AND h.seq <= d.upto;
    END IF;
    RETURN number;
END $$;
""",
)


def migrate(connection: Any) -> None:
    """Bring the database to this release's schema, in one transaction. Raises ProcGuardError for a newer one."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        if connection.execute("SELECT to_regclass('procguard.migration')").fetchone()[0] is None:
            connection.execute("CREATE SCHEMA IF NOT EXISTS procguard")
            connection.execute(
                "CREATE TABLE procguard.migration (one boolean PRIMARY KEY CHECK (one), version int NOT NULL, "
                "release text NOT NULL)"
            )
            connection.execute("INSERT INTO procguard.migration VALUES (true, 0, %s)", (__version__,))
        version = check_version(connection)
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            connection.execute(script)
            connection.execute("UPDATE procguard.migration SET version = %s, release = %s", (number, __version__))


def exists(connection: Any) -> bool:
    """Whether the database holds a state of ProcGuard, or the tables for one."""
    return connection.execute("SELECT to_regclass('procguard.migration')").fetchone()[0] is not None


def check_version(connection: Any) -> int:
    """The schema's version. Raises ProcGuardError for that of a newer release."""
    version, release = connection.execute("SELECT version, release FROM procguard.migration").fetchone()
    if version > len(MIGRATIONS):
        raise ProcGuardError(
            f"state.database: written by ProcGuard {release} in format {version}; "
            f"this release, {__version__}, reads up to {len(MIGRATIONS)}",
            f"start {release} or a later one",
            code="newer_state",
        )
    return int(version)
