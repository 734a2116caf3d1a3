"""Another process reads a database while its manager writes: the reader changes nothing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from procguard.fleet.store import database

MANY, FEW = 200, 3

# What a manager does to its database, a step for each line it reads: commit so many records one by one, or begin the
# write-ahead log from its start, as SQLite does after each whole checkpoint.
WRITER = """
import sys
from procguard.fleet.store import database
connection = database.connect(sys.argv[1])
insert = "INSERT OR REPLACE INTO records VALUES ('workers', ?, hex(randomblob(400)))"
print("ready", flush=True)
for line in sys.stdin:
    word, count = line.split()
    try:
        if word == "restart":
            connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchone()
        for number in range(int(count)):
            connection.execute(insert, (f"w{number}",))
        print("done", flush=True)
    except Exception as exc:
        print(f"{type(exc).__name__}: {exc}", flush=True)
"""


class Writer:
    def __init__(self, path: Path) -> None:
        command = [sys.executable, "-c", WRITER, str(path)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._answer("ready")

    def does(self, step: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(step + "\n")
        self.process.stdin.flush()
        self._answer("done")

    def _answer(self, expected: str) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline().strip() == expected


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "state.db"
    database.create(str(made), database.HeldRows(line="a"), iter(()))
    return made


@pytest.fixture
def writer(path: Path) -> Iterator[Writer]:
    made = Writer(path)
    yield made
    assert made.process.stdin is not None
    made.process.stdin.close()
    made.process.wait(10)


def test_a_log_that_begins_from_its_start_meanwhile_is_left_alone(path: Path, writer: Writer) -> None:
    writer.does(f"commit {MANY}")
    with database.reading(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (MANY,)
        connection.execute("COMMIT")
        writer.does(f"restart {FEW}")  # it has fewer frames now than when the reader came
    writer.does(f"commit {MANY + FEW}")
    with database.reading(str(path)) as connection:
        assert connection.execute("SELECT count(*) FROM records").fetchone() == (MANY + FEW,)
        assert connection.execute("PRAGMA quick_check(1)").fetchall() == [("ok",)]
