"""The readable face of the state: a YAML file, complete, a record a line, written by a process of its own.

    format: 2
    database: "9f2c61d0a7b3e845"      which database it was made of, and after which of its commits
    commit: 1207
    checksum: "…"                     SHA-256 of every other line
    tables:
      "workers":
        "worker1": {"worker_id": "worker1", …}

The database is the truth. This file is read where the database is missing or damaged; one that was changed, or is not
the one that was written last, is never silently ignored or overwritten (sqlite.py judges that).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from procguard import resources
from procguard.errors import ProcGuardError
from procguard.fleet.store.interface import Tables

FORMAT = 2
HEADER = (
    "# ProcGuard's state, as of some seconds ago. For reading: the database beside it is what counts. To start from a\n"
    "# changed copy: invoke state.import FILE --state NEW. Keep it private: it holds the fleet's key.\n"
)
GENTLE, AT_ONCE = "5", "0"  # how nice a saving process is: while the manager runs, and where its end waits for it
SAVED_WITHIN_S = 120.0  # a saving process that takes longer is ended: it lost its disk
_BLANK = "0" * 64
# What YAML takes only as an escape, and text in UTF-8 not at all.
_NOT_PLAIN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


class Changed(ValueError):
    """Not a snapshot as it was written: edited, damaged, or never one."""


@dataclass
class Snapshot:
    tables: Tables
    database: str
    commit: int

    @property
    def fleet_id(self) -> str:
        return str(self.tables.get("fleet", {}).get("fleet", {}).get("fleet_id"))


def read(path: str) -> Snapshot | None:
    """The snapshot, None where there is none. Raises Changed, OSError, and ProcGuardError for a newer format."""
    try:
        with open(path, "rb") as file:
            lines = file.read().split(b"\n")
    except FileNotFoundError:
        return None
    try:
        document = as_written(line.decode() for line in lines)
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
    found, expected = document.get("checksum"), _checksum(lines)
    if found != expected:
        raise Changed("its checksum does not match: it was edited or damaged")
    return Snapshot(document["tables"], str(document["database"]), int(document["commit"]))


def commit_of(path: str) -> int | None:
    """The commit that the snapshot at `path` holds, from its first lines."""
    with contextlib.suppress(OSError, ValueError), open(path, encoding="utf-8") as file:
        for _, line in zip(range(8), file, strict=False):
            if line.startswith("commit: "):
                return int(line[8:])
    return None


def as_written(lines: Iterable[str]) -> dict[str, Any] | None:
    """What `_text` has written, without the detour of YAML, which takes many times as long. None: something else."""
    document: dict[str, Any] = {}
    table: dict[str, Any] = {}
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


def _checksum(lines: Iterable[bytes]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        if not line.startswith(b"checksum:"):
            digest.update(line + b"\n")
    return digest.hexdigest()


def _text(database: str, commit: int, records: Iterable[tuple[str, str, str]]) -> Iterator[str]:
    """YAML of which each record is a line of JSON, which YAML is too: quickly written and read, and easy to grep."""
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
    """Put a snapshot in the place of the one before, which stays as `.prev`. Atomic. `records` come table by table."""
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
        digest.update(b"\n")  # `_checksum` sees an empty line after the last end of line
        file.seek(at)
        file.write(f'checksum: "{digest.hexdigest()}"'.encode())
        file.flush()
        os.fsync(file.fileno())
    if os.path.exists(path):
        os.replace(path, path + ".prev")
    os.replace(fresh, path)
    sync_directory(path)


def free_name(path: str) -> str:
    """For a copy: this name, or the first of it with a number that nothing has."""
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
    """Started without a copy of this process's memory (posix_spawn), which would hold up the event loop."""

    def __init__(self) -> None:
        self._pid = 0
        self._began = 0.0
        self.took_s = 0.0
        self.failed = False  # the last one that ended

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
            except ChildProcessError:  # somebody who waits for every child has had it
                ended, status = self._pid, 0
            if ended == self._pid:
                self._pid, self.took_s, self.failed = 0, time.monotonic() - self._began, status != 0
            elif time.monotonic() - self._began > SAVED_WITHIN_S:
                self._kill()
        return bool(self._pid)

    def wait(self, until: float) -> None:
        """Until it has ended. One that has not by then (monotonic seconds) is killed: the database has everything."""
        while self.running():
            if time.monotonic() > until:
                self._kill()
                return
            time.sleep(0.005)

    def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
