"""Exports and imports of a state: JSON lines, identical for every store; backups; snapshots.

    {"procguard_state": 1, "fleet_id": "f-…", "exported_at": "2026-11-24T03:00:00.000Z", "records": 2}
    {"table": "fleet", "key": "fleet", "record": {…}}
    {"table": "workers", "key": "worker1", "record": {…}}
    {"end": 2, "sha256": "…"}

The last line reveals a truncated or modified file. Owns this format only; fleet/model/records.py defines the records,
the stores their storage.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from typing import Any

from procguard.errors import Conflict, ProcGuardError, UsageError
from procguard.fleet.model.clock import iso
from procguard.fleet.store import YAML_ENDINGS, database, database_of, legacy, open_store, postgresql
from procguard.fleet.store.interface import Line, Loaded, StoredRecord, Tables, apply
from procguard.fleet.store.postgres_link import DatabasePlace

VERSION = 1


def exported(tables: Tables, wall: float) -> Iterator[str]:
    """The lines of an export, in a deterministic order."""
    count = sum(len(records) for records in tables.values())
    fleet = tables.get("fleet", {}).get("fleet", {})
    header = {"procguard_state": VERSION, "fleet_id": fleet.get("fleet_id"), "exported_at": iso(wall), "records": count}
    digest = hashlib.sha256()
    for line in [header, *_records(tables)]:
        text = json.dumps(line, separators=(",", ":")) + "\n"
        digest.update(text.encode())
        yield text
    yield json.dumps({"end": count, "sha256": digest.hexdigest()}, separators=(",", ":")) + "\n"


def _records(tables: Tables) -> Iterator[StoredRecord]:
    for table in sorted(tables):
        for key in sorted(tables[table]):
            yield {"table": table, "key": key, "record": tables[table][key]}


def imported(lines: Iterable[str], name: str) -> Tables:
    """The tables in an export. Raises UsageError with the line number and the next step."""
    tables: Tables = {}
    digest = hashlib.sha256()
    count = 0
    for number, text in enumerate(lines, 1):
        try:
            line = json.loads(text)
            if number == 1:
                _check_header(line, name)
            elif "end" in line:
                if (line["end"], line["sha256"]) != (count, digest.hexdigest()):
                    raise ValueError("the lines before it are not those that were exported")
                return tables
            else:
                apply(tables, [(str(line["table"]), str(line["key"]), dict(line["record"]))])
                count += 1
        except (ValueError, KeyError, TypeError, AttributeError) as exc:
            raise UsageError(
                f"{name}:{number}: not a line of an export ({exc})", "export it again: invoke state export FILE"
            ) from exc
        digest.update(text.encode())
    raise UsageError(f"{name}: the file is truncated", "export it again: invoke state export FILE")


def _check_header(line: Any, name: str) -> None:
    version = line.get("procguard_state")
    if not isinstance(version, int):
        raise ValueError('it does not begin with {"procguard_state": …}')
    if version > VERSION:
        raise UsageError(
            f"{name}: an export of version {version}; this release reads up to {VERSION}",
            "import it with the release that made it, or a later one",
            code="newer_state",
        )


# ------------------------------------------------------------------------------------------------------- states


def files_of(path: str) -> list[str]:
    """Every file of the state at `path` that exists."""
    place = database_of(path)
    names = {path, path + ".prev", place, place + "-wal", place + "-journal", *legacy.files_of(path)}
    return sorted(name for name in names if os.path.exists(name))


def read(path: str) -> Loaded:
    """Read the state at `path`, also while a manager runs on it."""
    if not files_of(path):
        raise UsageError(f"there is no state at {path}", "name it: --state PATH, or --config FILE of its manager")
    return open_store(path).read()


def read_history(path: str) -> Iterator[Line]:
    """The events and audit entries of a state, as far as they can be read."""
    place = database_of(path)
    yield from legacy.history(path) if legacy.found(path, place) else database.history(place)


def read_changed(path: str) -> Tables:
    """The tables in a snapshot that may have been edited by hand. Raises UsageError."""
    import yaml  # noqa: PLC0415 - takes as long as all other imports

    try:
        with open(path, encoding="utf-8") as file:
            document = yaml.load(file, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
        tables = document["tables"]
        for records in tables.values():
            for record in records.values():
                json.dumps(dict(record))
    except (
        yaml.YAMLError, ValueError, LookupError, TypeError, AttributeError, RecursionError, OverflowError,
    ) as exc:  # fmt: skip
        problem = " ".join(str(exc).split())[:200]
        raise UsageError(f"{path}: not a snapshot of a state ({problem})", "use one written by a manager") from exc
    return {str(table): {str(key): dict(one) for key, one in records.items()} for table, records in tables.items()}


def is_yaml(path: str) -> bool:
    return path.endswith(YAML_ENDINGS)


def is_database(path: str) -> bool:
    """Whether the file is a SQLite database, by its content: copies made before a migration are named `x.db.v1`."""
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def write_new(path: str, tables: Tables, history: Iterable[Line] = ()) -> None:
    """Create a state at `path` with these records. Never overwrites an existing one."""
    present = files_of(path)
    if present:
        raise Conflict(f"{present[0]} exists; nothing was written", "choose another path, or move it away first")
    fleet = _fleet_of(tables)
    tables = _marked(tables, fleet)
    store = open_store(path)
    store.load()
    store.commit(
        [(table, key, record) for table, records in tables.items() for key, record in records.items()], list(history)
    )
    store.close()


def write_database(place: DatabasePlace, tables: Tables, history: Iterable[Line] = ()) -> None:
    """Create the state in an empty PostgreSQL database. Raises Conflict if it already holds one."""
    postgresql.write_new(place, _marked(tables, _fleet_of(tables)), history)


def _fleet_of(tables: Tables) -> StoredRecord:
    fleet = tables.get("fleet", {}).get("fleet")
    if not isinstance(fleet, dict) or not isinstance(fleet.get("term"), int):
        raise ProcGuardError("it does not identify its fleet (no record fleet/fleet)", "export it again")
    return fleet


def _marked(tables: Tables, fleet: StoredRecord) -> Tables:
    """Mark the state as possibly outdated: the first start on it begins with a resync."""
    return {**tables, "fleet": {"fleet": {**fleet, "imported": True}}}
