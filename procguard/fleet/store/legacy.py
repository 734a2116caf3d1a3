"""Reads states of the format used before the SQLite-only one: a snapshot (YAML or SQLite), journal segments, and events
as JSON lines.

    state.yaml or state.db, each with .prev       snapshot, and the one before
    state.yaml.j00000012                          `crc json` lines: [commit, changes], [commit, changes, "head"]
    state.events.jsonl, state.audit*.jsonl, + .1  `crc json` lines, an event each

Reads them once, at the first start on them, after a copy was made. Nothing is ever written in this format.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from typing import Any

from procguard.errors import ProcGuardError
from procguard.fleet.store import snapshot
from procguard.fleet.store.interface import EVENTS, Line, Loaded, Tables, apply
from procguard.i18n.reasons import because

LOGS = {"events": EVENTS, "audit": "audit", "audit-logins": "audit-logins", "audit-refused": "audit-refused"}


@dataclass
class Migration:
    """A migration in progress: write `loaded` and the history to the new database, then call `finish`."""

    loaded: Loaded
    path: str

    def history(self) -> Iterator[Line]:
        yield from history(self.path)

    def finish(self) -> None:
        for name in files_of(self.path):
            if name != self.path or name.endswith((".yaml", ".yml")):
                os.unlink(name)
        snapshot.sync_directory(self.path)


def found(path: str, database: str) -> bool:
    """Whether there is a state of the earlier format at `path`."""
    if _segments(path):
        return True
    if path == database:
        with suppress(OSError), open(path, "rb") as file:
            if any(file.read(72)[68:]):  # SQLite's application_id, which the earlier format did not set
                return False
        with suppress(OSError, sqlite3.Error), closing(_connect(path)) as connection:
            return bool(connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'procguard_records'").fetchone())
        return False
    with suppress(OSError), open(path, "rb") as file:
        return any(line.startswith(b"segment:") for line in file.read(1000).splitlines())
    return False


def begin_migration(path: str, database: str) -> Migration | None:
    """Copy all files, then read them. None if there is no state of the earlier format."""
    if not found(path, database):
        return None
    if path != database and os.path.exists(database):
        with suppress(sqlite3.Error), closing(_connect(database)) as connection:
            if connection.execute("SELECT term FROM state").fetchone()[0]:
                raise ProcGuardError(
                    f"state.state_file: files of an earlier format lie at {path} beside {database}, which is in use",
                    "move away the one that is not this manager's state",
                    code="bad_state_file",
                )
    loaded = read(path)
    target = snapshot.free_name(f"{path}.before-migration")
    os.mkdir(target, mode=0o700)
    for name in files_of(path):
        shutil.copy2(name, target)
        os.chmod(os.path.join(target, os.path.basename(name)), 0o600)
    snapshot.sync_directory(os.path.join(target, "any"))
    loaded.notes.append(because("state.migrated", path=target))
    return Migration(loaded, path)


def files_of(path: str) -> list[str]:
    stem = os.path.splitext(path)[0]
    names = [path, path + ".prev", path + "-wal", path + "-shm", *_segments(path).values()]
    names += [f"{stem}.{log}.jsonl{ending}" for log in LOGS for ending in ("", ".1")]
    return [name for name in names if os.path.exists(name)]


def history(path: str) -> Iterator[Line]:
    for log, name in LOGS.items():
        for ending in (".1", ""):
            with suppress(FileNotFoundError):
                for event in _lines(f"{os.path.splitext(path)[0]}.{log}.jsonl{ending}")[0]:
                    yield name, event


def read(path: str) -> Loaded:
    """The newest usable snapshot with the journal segments applied."""
    notes: list[str] = []
    best: tuple[bool, int, Loaded] | None = None
    for candidate in (path, path + ".prev", ""):
        try:
            tables, commit, segment = _snapshot(candidate) if candidate else ({}, 0, 0)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError, sqlite3.Error) as exc:
            notes.append(because("state.file_damaged", path=candidate, error=" ".join(str(exc).split())[:200]))
            continue
        loaded, last = _replayed(path, tables, commit, segment)
        if best is None or (loaded.intact, last) > best[:2]:
            best = (loaded.intact, last, loaded)
        if loaded.intact:
            break
    assert best is not None  # the last candidate is an empty state
    if not best[2].tables:
        raise ProcGuardError(
            f"state.state_file: {path} is not a readable ProcGuard state ({'; '.join(notes)})",
            "restore a backup, move it away to start with a new state, or choose another: --set state.state_file=PATH",
            code="bad_state_file",
        )
    best[2].notes[:0] = notes
    return best[2]


def _replayed(path: str, tables: Tables, commit: int, segment: int) -> tuple[Loaded, int]:
    loaded, last, following = Loaded(tables), commit, None
    segments = {number: name for number, name in _segments(path).items() if number > segment}

    def lost(note: str) -> None:
        loaded.intact = False
        loaded.notes.append(note)

    for name in segments.values():
        lines, torn, damaged = _lines(name)
        following = None
        for line in lines:
            if isinstance(line, dict):
                following = int(line["next"])
            elif line[0] > last or (len(line) == 3 and line[0] == last):
                if line[0] > last + (len(line) == 2):
                    lost(because("state.segment_missing", path=name, commit=last + 1))
                apply(tables, [tuple(change) for change in line[1]])
                last = line[0]
        if torn:
            loaded.notes.append(because("state.segment_torn", path=name))
        if damaged:
            lost(because("state.segment_damaged", path=name))
    if not segments or (following is not None and following not in segments):
        lost(because("state.newest_segment_missing", path=path))
    return loaded, last


def _segments(path: str) -> dict[int, str]:
    folder, name = os.path.split(os.path.abspath(path))
    entries = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    matches = [re.fullmatch(re.escape(name) + r"\.j(\d{8})", entry) for entry in entries]
    return {int(match[1]): os.path.join(folder, match[0]) for match in matches if match}


def _lines(path: str) -> tuple[list[Any], bool, bool]:
    """Returns (complete lines, whether the incomplete end was never acknowledged, whether an acknowledged part is
    damaged)."""
    lines: list[Any] = []
    bad, damaged = b"", False
    with open(path, "rb") as file:
        for raw in file:
            crc, _, body = raw.rstrip(b"\n").partition(b" ")
            if not raw.endswith(b"\n") or crc != b"%08x" % zlib.crc32(body):
                bad += raw
                continue
            damaged, bad = damaged or bool(bad), b""
            lines.append(json.loads(body))
    torn = bool(bad) and (b"\n" not in bad or bad.endswith(b"\0"))
    return lines, torn, damaged or bool(bad and not torn)


def _snapshot(path: str) -> tuple[Tables, int, int]:
    """Returns (tables, last commit, last segment that is completely included)."""
    with open(path, encoding="utf-8", errors="replace") as file:
        if file.read(15) == "SQLite format 3":
            return _database(path)
        file.seek(0)
        document = snapshot.as_written(line.rstrip("\n") for line in file)
    if document is None:
        raise ValueError("not a state file")
    content = [document["tables"], document["commit"], document["segment"]]
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    if document["checksum"] != hashlib.sha256(text.encode()).hexdigest():
        raise ValueError("the checksum does not match")
    return document["tables"], int(document["commit"]), int(document["segment"])


def _database(path: str) -> tuple[Tables, int, int]:
    with closing(_connect(path)) as connection:
        rows = {(kind, key): body for kind, key, body in connection.execute("SELECT * FROM procguard_records")}
    meta = json.loads(rows.pop(("meta", "state")))
    digests = (hashlib.blake2b(f"{k}\0{i}\0{body}".encode(), digest_size=8).digest() for (k, i), body in rows.items())
    if meta["digest"] != f"{sum(int.from_bytes(one, 'big') for one in digests) % 2**64:x}":
        raise ValueError("its number of records is wrong")
    tables: Tables = {}
    apply(tables, [(kind, key, json.loads(body)) for (kind, key), body in rows.items()])
    return tables, int(meta["commit"]), 0


def _connect(path: str) -> sqlite3.Connection:
    has_log = os.path.exists(path + "-wal")
    return sqlite3.connect(f"file:{path}?mode=ro{'' if has_log else '&immutable=1'}", uri=True)
