"""The snapshot process: `python -m procguard.fleet.store DATABASE FILE NICENESS` writes the readable snapshot."""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys

from procguard.errors import ProcGuardError
from procguard.fleet.store import database as files
from procguard.fleet.store import snapshot


def save(database: str, path: str) -> None:
    """Write the current content of the database as a snapshot. A lock allows one process at a time."""
    folder = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY)
    with contextlib.suppress(OSError):  # some network file systems cannot lock a directory
        fcntl.flock(folder, fcntl.LOCK_EX)
    with files.reading(database) as connection:
        line, commit = connection.execute("SELECT line, commits FROM state").fetchone()
        records = connection.execute("SELECT kind, id, body FROM records ORDER BY kind, id").fetchall()
    snapshot.write(path, line, commit, records)
    os.close(folder)


def main() -> None:
    database, path, niceness = sys.argv[1:]
    with contextlib.suppress(OSError):
        os.nice(int(niceness))  # lower priority than other processes
    try:
        save(database, path)
    except (ProcGuardError, OSError, ValueError) as exc:
        sys.exit(f"procguard: {path}: no snapshot was written: {exc}")


if __name__ == "__main__":
    main()
