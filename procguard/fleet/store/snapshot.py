"""The readable snapshot of the state: a complete YAML file, one record per line, written by a separate process.

    format: 2
    database: "9f2c61d0a7b3e845"      the database and the commit that it was made from
    commit: 1207
    checksum: "…"                     SHA-256 of every other line
    tables:
      "workers":
        "worker1": {"worker_id": "worker1", …}

The database is authoritative. The snapshot is read if the database is missing or damaged; a snapshot that was edited,
or is not the last one written, is never silently ignored or overwritten (decided by sqlite.py).
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from procguard import resources
from procguard.errors import ProcGuardError
from procguard.fleet.store.interface import Tables
from procguard.json_types import Json

FORMAT = 2
HEADER = (
    "# ProcGuard's state, as of some seconds ago. For reading: the database beside it is what counts. To start from a\n"
    "# changed copy: invoke state.import FILE --state NEW. Keep it private: it holds the fleet's key.\n"
)
# niceness of a saving process: while the manager runs, and while the manager's end waits for it
GENTLE, AT_ONCE = "5", "0"
SAVED_WITHIN_S = 120.0  # a saving process that takes longer is killed: its disk hangs
_BLANK = "0" * 64
_TABLES = b"\ntables:\n"
# Characters that YAML allows only as an escape, and that UTF-8 cannot encode.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Changed(ValueError):
    """Not a snapshot as it was written: edited, damaged, or never one."""


@dataclass
class Snapshot:
    """A snapshot as it was written. Its records are parsed when they are asked for: a start with a complete database
    needs only to know that nobody has edited them."""

    database: str
    commit: int
    data: bytes = field(repr=False)

    @functools.cached_property
    def tables(self) -> Tables:
        """Raises Changed for records that this module did not write, although their checksum is right."""
        try:
            document = as_written(self.data.decode().split("\n"))
        except UnicodeDecodeError as exc:
            raise Changed("not text") from exc
        if document is None:
            raise Changed("not a snapshot of ProcGuard")
        tables: Tables = document["tables"]
        return tables

    @property
    def fleet_id(self) -> str:
        return str(self.tables.get("fleet", {}).get("fleet", {}).get("fleet_id"))


def read(path: str) -> Snapshot | None:
    """The snapshot, or None if there is none. Raises Changed, OSError, and ProcGuardError for a newer format."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except FileNotFoundError:
        return None
    head, mark, _ = data.partition(_TABLES)
    try:
        document = as_written(head.decode().split("\n"))
    except UnicodeDecodeError as exc:
        raise Changed("not text") from exc
    if document is None or not isinstance(document.get("format"), int):
        raise Changed("not a snapshot of ProcGuard")
    if document["format"] > FORMAT:
        raise ProcGuardError(
            f"state.state_file: {path} was written in format {document['format']}; this release reads up to {FORMAT}",
            "start the newer release, or let it write an export (invoke state.export) that this one can import",
            code="newer_state",
        )
    if not mark or document.get("checksum") != _checksum(head, data):
        raise Changed("its checksum does not match: it was edited or damaged")
    return Snapshot(str(document["database"]), int(document["commit"]), data)


def commit_of(path: str) -> int | None:
    """The commit that the snapshot at `path` holds, from its first lines."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        for _, line in zip(range(8), file, strict=False):
            if line.startswith("commit: "):
                return int(line[8:])
    return None


def as_written(lines: Iterable[str]) -> Json | None:
    """Parse the output of `_text` without a YAML parser, which takes many times as long. None: not in that form."""
    document: Json = {}
    table: Json = {}
    try:
        for line in lines:
            if line.startswith("    "):
                table.update(json.loads(f"{{{line}}}"))
            elif line.startswith("  "):
                table = document["tables"][json.loads(line.rstrip()[:-1])] = {}
            elif line and not line.startswith("#"):
                name, mark, value = line.partition(":")
                if not mark:
                    return None
                document[name] = json.loads(value) if value else {}
    except (ValueError, KeyError, TypeError):
        return None
    return document


def _checksum(head: bytes, data: bytes) -> str:
    """`head`: `data` up to its tables, where the line of the checksum is."""
    digest = hashlib.sha256()
    for line in head.split(b"\n"):
        if not line.startswith(b"checksum:"):
            digest.update(line + b"\n")
    digest.update(memoryview(data)[len(head) + 1 :])
    digest.update(b"\n")
    return digest.hexdigest()


def _text(database: str, commit: int, records: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """YAML with each record as a line of JSON, which is valid YAML: fast to write and read, and easy to grep."""
    yield HEADER
    yield f'format: {FORMAT}\ndatabase: {json.dumps(database)}\ncommit: {commit}\nchecksum: "{_BLANK}"\ntables:\n'
    table = None
    for kind, key, body in records:
        if kind != table:
            table = kind
            yield f"  {json.dumps(table)}:\n"
        yield f"    {_flow(key)}: {_flow(json.loads(body))}\n"


def _flow(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return json.dumps(value) if _NOT_PLAIN.search(text) else text


def write(path: str, database: str, commit: int, records: Iterable[tuple[str, str, str]]) -> None:
    """Replace the snapshot atomically; the previous one is kept as `.prev`. `records`: ordered by table."""
    fresh = path + ".new"
    digest = hashlib.sha256()
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        at = 0
        for number, piece in enumerate(_text(database, commit, records)):
            data = piece.encode()
            if number == 1:
                head, mark, rest = data.partition(b"checksum:")
                at = file.tell() + len(head)
                digest.update(head + rest.partition(b"\n")[2])
                file.write(head + mark + rest)
            else:
                digest.update(data)
                file.write(data)
        digest.update(b"\n")  # the checksum covers an empty line after the last one
        file.seek(at)
        file.write(f'checksum: "{digest.hexdigest()}"'.encode())
        file.flush()
        os.fsync(file.fileno())
    if os.path.exists(path):
        os.replace(path, path + ".prev")
    os.replace(fresh, path)
    sync_directory(path)


def free_name(path: str) -> str:
    """A free file name for a copy: this name, or this name with the first free number."""
    number, found = 1, path
    while os.path.exists(found):
        number += 1
        found = f"{path}-{number}"
    return found


def sync_directory(path: str) -> None:
    fd = os.open(os.path.dirname(os.path.abspath(path)), os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class SavingProcess:
    """Started with posix_spawn: a fork would copy this process's page tables and block the event loop."""

    def __init__(self) -> None:
        self._pid = 0
        self._began = 0.0
        self.took_s = 0.0
        self.failed = False  # whether the last process to end has failed

    def start(self, database: str, path: str, niceness: str) -> None:
        self._began = time.monotonic()
        self._pid = os.posix_spawn(
            sys.executable,
            [sys.executable, "-P", "-m", "procguard.fleet.store", database, path, niceness],
            {**os.environ, "PYTHONPATH": resources.import_root()},
            file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        )

    def running(self) -> bool:
        if self._pid:
            try:
                ended, status = os.waitpid(self._pid, os.WNOHANG)
            except ChildProcessError:  # another caller of waitpid has reaped it
                ended, status = self._pid, 0
            if ended == self._pid:
                self._pid, self.took_s, self.failed = 0, time.monotonic() - self._began, status != 0
            elif time.monotonic() - self._began > SAVED_WITHIN_S:
                self._kill()
        return bool(self._pid)

    def wait(self, until: float) -> None:
        """Wait until the process has ended. At the deadline (monotonic seconds) it is killed; the database is
        complete."""
        while self.running():
            if time.monotonic() > until:
                self._kill()
                return
            time.sleep(0.005)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
