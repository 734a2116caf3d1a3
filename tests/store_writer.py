"""A process that commits numbered changes and grants epochs as fast as it can, and tells each when it is acknowledged.

`python -m tests.store_writer STATE_FILE` prints `change N T` and `epoch E T`, a line each, when the commit has
returned: T is that moment, in ns of the monotonic clock. It saves now and then, and goes on until it is killed or the
disk refuses. `Writer` starts, watches and kills it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from procguard.fleet.store.interface import Loaded
from tests.waiting import wait_until

ROOT = Path(__file__).resolve().parent.parent
THREADS = 3
SAVE_EVERY = 25


class Writer:
    """`changes` and `epochs`: what it has acknowledged so far, in order, each with the moment it did."""

    def __init__(self, state_file: Path) -> None:
        self._said: dict[str, list[tuple[int, int]]] = {"change": [], "epoch": []}
        self.errors = state_file.parent.parent / f"{state_file.name}.writer-errors"
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.store_writer", str(state_file)],
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=ROOT,
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.endswith(b"\n"):
                word, number, moment_ns = line.split()
                self._said[word.decode()].append((int(number), int(moment_ns)))

    @property
    def changes(self) -> list[int]:
        return self.said("change")

    @property
    def epochs(self) -> list[int]:
        return self.said("epoch")

    def said(self, word: str, before_ns: int | None = None) -> list[int]:
        """What it acknowledged, or what before that moment: a machine without power says nothing more, but a process
        on a disk that was shut down does, and a sync that was under way just then may be told that all is well."""
        return [number for number, at_ns in list(self._said[word]) if before_ns is None or at_ns < before_ns]

    def wait_for(self, more: int, timeout_s: float = 60) -> None:
        """Return when it has acknowledged so many changes."""
        wait_until(
            lambda: len(self._said["change"]) >= more or self.process.poll() is not None,
            timeout_s,
            f"{more} acknowledgements",
            0.0,
        )
        assert len(self.changes) >= more, self.errors.read_text()

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        self.process.wait(30)
        self._reader.join(30)
        assert self.process.stdout is not None
        self.process.stdout.close()


def lost(acknowledged: set[int], found: Loaded) -> set[int]:
    return acknowledged - {int(key) for key in found.tables.get("numbers", {})}


def main(path: str) -> None:
    from procguard.fleet.fleet import Fleet
    from procguard.fleet.history.events import EventLog
    from procguard.fleet.model import clock
    from procguard.fleet.model.settings import FleetSettings
    from procguard.fleet.store import open_store

    store = open_store(path)
    highest = max((int(key) for key in store.read().tables.get("numbers", {})), default=0)
    fleet = Fleet(store, EventLog(store), FleetSettings(), clock.read())
    taking = threading.Lock()

    def acknowledge(word: str, number: int) -> None:
        os.write(1, f"{word} {number} {time.monotonic_ns()}\n".encode())

    def commit_for_ever() -> None:
        nonlocal highest
        try:
            while True:
                with taking:
                    highest += 1
                    number = highest
                store.commit([("numbers", str(number), {"n": number, "text": "x" * (number % 300)})])
                acknowledge("change", number)
        except BaseException:
            os._exit(1)  # nothing is written any more, as after a SIGKILL

    for _ in range(THREADS):
        threading.Thread(target=commit_for_ever, daemon=True).start()
    try:
        while True:
            for _ in range(SAVE_EVERY):
                with fleet.state.transaction(clock.read()) as tx:
                    epoch = fleet.state.next_epoch(tx)
                acknowledge("epoch", epoch)
            fleet.state.durability.save()
    except BaseException as exc:
        print(exc, file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1])
