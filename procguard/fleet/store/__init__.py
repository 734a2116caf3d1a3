"""Stores of the fleet's state, behind one interface. The name of the state file selects the format.

    interface.py       the interface of a store; every commit carries a term
    sqlite.py          the engine: commits, and the checks of the state at a start
    database.py        the database file: schema, migrations, proofs, copies
    snapshot.py        the readable YAML beside it, and the process that writes it
    group_commit.py    many callers, one write
    legacy.py          reads the earlier format
    exchange.py        exports and imports
    postgresql.py      the store that several managers share, and a standby's copy of it
    leader_row.py      the leader and the other managers; postgres_schema.py: tables; postgres_link.py: connections

Knows records as JSON only, never what they mean. Start reading at interface.py.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from procguard.fleet.store.interface import RunBlocking, run_here

if TYPE_CHECKING:
    from procguard.fleet.store.sqlite import SqliteStore

YAML_ENDINGS = (".yaml", ".yml")


def database_of(path: str) -> str:
    """data/procguard_state.yaml -> data/procguard_state.db; any other state file is the database itself."""
    stem, ending = os.path.splitext(path)
    return stem + ".db" if ending in YAML_ENDINGS else path


def open_store(path: str, *, auto_save: bool = True, run_blocking: RunBlocking = run_here) -> SqliteStore:
    """Create the store of this state file; nothing is read or written before `load`."""
    from procguard.fleet.store.sqlite import SqliteStore  # noqa: PLC0415 - the process that writes a snapshot needs none

    database = database_of(path)
    readable = path if database != path else ""
    return SqliteStore(database, readable, auto_save=auto_save, run_blocking=run_blocking)
