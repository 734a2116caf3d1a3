"""The default store: a readable YAML snapshot, and beside it journal segments of what came since.

procguard_state.yaml            snapshot: every table, up to which commit and segment, a checksum; a record a line
procguard_state.yaml.prev       the snapshot before; used with the journal when the newer one is damaged
procguard_state.yaml.j00000012  journal segments (journal.py); dropped when both snapshots hold them
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from typing import Any

import yaml

from procguard.errors import ProcGuardError
from procguard.fleet.store import journal
from procguard.fleet.store.interface import Loaded, Tables
from procguard.fleet.store.journaled import JournaledStore, newer_format, refuse_foreign, saving, set_aside

FORMAT = 1
HEADER = (
    "# ProcGuard's state. Readable, but not meant to be edited: the journal files beside it hold what came since,\n"
    "# and the checksum tells a damaged file. Keep it private: it holds the fleet's key.\n"
)
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
# What YAML takes only as an escape, and text in UTF-8 not at all.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class YamlStore(JournaledStore):
    MODULE = "procguard.fleet.store.yaml_file"

    def _read(self) -> tuple[Loaded, int]:
        tables, held, notes, _ = _newest_snapshot(self.path)
        done = journal.replay(self.path, tables, held)
        intact = done.intact and (held is not None or not notes)
        return Loaded(tables, intact, notes + done.notes), done.last_commit

    def _opened(self, loaded: Loaded, last_commit: int) -> None:
        """What was found damaged is told once: from here on a whole snapshot stands for all that is left."""
        if not loaded.intact:
            position = journal.Position(last_commit, self._journal.segment - 1)
            _, _, _, damaged = _newest_snapshot(self.path)
            _replace_snapshot(self.path, loaded.tables, position, damaged)


def _newest_snapshot(path: str) -> tuple[Tables, journal.Position | None, list[str], bool]:
    """Tables and position of the snapshot, or of the one before; what is wrong with them; is the newer one damaged."""
    notes: list[str] = []
    damaged = False
    for candidate in (path, path + ".prev"):
        try:
            tables, held = _read_snapshot(candidate)
            return tables, held, notes, damaged
        except FileNotFoundError:
            if candidate == path and os.path.exists(path + ".prev"):
                notes.append(f"{candidate}: missing; the snapshot before it is used with the journal")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError) as exc:
            if isinstance(exc, OSError) and exc.errno != errno.EIO:
                raise
            problem = " ".join(str(exc).split())[:200]
            if candidate == path:
                refuse_foreign(path, problem)
                damaged = True
            notes.append(f"{candidate}: damaged ({problem}); the snapshot before it is used with the journal")
    return {}, None, notes, damaged


def _read_snapshot(path: str) -> tuple[Tables, journal.Position]:
    with open(path, encoding="utf-8") as file:
        document = _as_written(file)
        if document is None:  # every field on a line of its own, as once, or not by us
            file.seek(0)
            document = yaml.load(file, Loader=_Loader)  # noqa: S506 - a SafeLoader, in C where there is one
    if not isinstance(document, dict) or not isinstance(document.get("format"), int):
        raise ValueError("not a ProcGuard state file")
    if document["format"] > FORMAT and "checksum" in document:
        raise newer_format(path, document["format"], FORMAT)
    tables = document.get("tables") or {}
    held = journal.Position(int(document.get("commit", 0)), int(document["segment"]))
    content = [tables, held.commit, held.segment] if "commit" in document else tables
    if document.get("checksum") != _checksum(content):
        raise ValueError("the checksum does not match")
    return tables, held


def _checksum(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _as_written(lines: Iterable[str]) -> dict[str, Any] | None:
    """What `_text` has written, without the detour of YAML, which takes many times as long. None: something else."""
    document: dict[str, Any] = {}
    table: dict[str, Any] = {}
    try:
        for line in lines:
            if line.startswith("    "):
                table.update(json.loads(f"{{{line}}}"))
            elif line.startswith("  "):
                table = document["tables"][json.loads(line.rstrip()[:-1])] = {}
            elif not line.startswith("#"):
                name, mark, value = line.rstrip("\n").partition(":")
                if not mark:
                    return None
                document[name] = json.loads(value) if value else {}
    except (ValueError, KeyError, TypeError):
        return None
    return document


def _text(document: dict[str, Any]) -> Iterator[str]:
    """YAML of which each record is a line of JSON, which YAML is too: quickly written and read, and easy to grep."""
    yield HEADER
    for name, value in document.items():
        if name != "tables":
            yield f"{name}: {json.dumps(value)}\n"
    yield "tables:\n"
    for table, records in document["tables"].items():
        yield f"  {json.dumps(table)}:\n"
        for key, record in records.items():
            yield f"    {_flow(key)}: {_flow(record)}\n"


def _flow(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _NOT_PLAIN.search(text) else text


def _replace_snapshot(path: str, tables: Tables, held: journal.Position, damaged: bool) -> None:
    """Atomic: at every moment a whole snapshot stands under one of the names, or the journal from its beginning."""
    document = {
        "format": FORMAT,
        "segment": held.segment,
        "commit": held.commit,
        "checksum": _checksum([tables, held.commit, held.segment]),
        "tables": tables,
    }
    fresh = path + ".new"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.writelines(_text(document))
        file.flush()
        os.fsync(file.fileno())
    _read_snapshot(fresh)  # what cannot be read back never replaces what can
    if damaged:
        set_aside(path)
    elif os.path.exists(path):
        os.replace(path, path + ".prev")
    os.replace(fresh, path)
    journal.sync_directory(path)


# ------------------------------------------------------------------------------------- the saving process


def fold(path: str, upto: int) -> None:
    """Write a snapshot that holds every segment up to `upto`; then drop the segments that both snapshots hold."""
    tables, held, notes, damaged = _newest_snapshot(path)
    done = journal.replay(path, tables, held, upto)
    if not done.intact or (held is None and notes):
        # Damaged while the manager runs, which has everything in memory: the next start must see it.
        raise ProcGuardError("; ".join(done.notes + notes), "no snapshot is written; restart the manager soon")
    _replace_snapshot(path, tables, journal.Position(done.last_commit, upto), damaged)
    if held is not None:
        journal.drop(path, held.segment)


if __name__ == "__main__":
    saving(fold)
