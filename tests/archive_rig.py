"""A log store with its archive for tests: in a folder or a bucket of moto's, indexed by SQLite or PostgreSQL.

`step` advances the time; `again(lost_disk=True)` is a manager on the same archive that has lost its disk.
"""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from procguard.fleet.agents.log_ranges import LogRanges
from procguard.fleet.store.postgres_link import DatabasePlace
from procguard.portal.logs.archive.archive import LogArchive
from procguard.portal.logs.archive.index import ArchiveIndex, PostgresTables, SqliteTables, Tables
from procguard.portal.logs.archive.object_store import FolderStore, ObjectStore
from procguard.portal.logs.archive.reading import ArchiveReader
from procguard.portal.logs.fetch import MOST_BYTES, LogFetcher
from procguard.portal.logs.spool import SpooledLogStore
from remote_agent.protocol.messages import directory_name

FLEET = "f-test"


def here(work: Callable[..., Any], *arguments: Any) -> Any:
    return work(*arguments)


class NoHosts(LogRanges):
    def __init__(self) -> None:
        pass

    @property
    def has_hosts(self) -> bool:
        return False


class ArchiveRig:
    def __init__(
        self,
        directory: Path,
        place: ObjectStore | None = None,
        database: DatabasePlace | None = None,
        workers: tuple[str, ...] = ("w1", "w2", "w3"),
        term: int = 0,
        **bounds: int,
    ) -> None:
        self.directory, self.database, self.workers, self.bounds = directory, database, workers, bounds
        self.term = term  # of the shared database
        (directory / "shared").mkdir(exist_ok=True)
        self.place = place or FolderStore(str(directory / "shared"), FLEET, here)
        self.said: list[str] = []
        self.open()

    def open(self, loaded: bool = True) -> None:
        """`loaded`: whether the index has been read, as by the first step of the archive's greenlet."""
        self.store = SpooledLogStore(str(self.directory / "logs"), sync=lambda _: None, in_thread=here, **self.bounds)
        tables: Tables = (
            PostgresTables(self.database, self.term)
            if self.database
            else SqliteTables(str(self.directory / "index.db"), here)
        )
        self.archive = LogArchive(
            self.place,
            ArchiveIndex(tables),
            self.store.directory,
            fleet_id=FLEET,
            term=self.term,
            in_thread=here,
            interval_s=0.0,
            said=self.said.append,
            known=lambda: {directory_name(one): one for one in self.workers},
            index_is_new=tables.is_new,
        )
        self.store.attach(self.archive, ArchiveReader(self.archive, here))
        self.fetcher = LogFetcher(NoHosts(), self.store)
        self.store.fetch = self.fetcher.complete
        if loaded:
            self.archive.load()

    def again(self, *, lost_disk: bool = False, lost_index: bool = False, loaded: bool = True) -> None:
        """Another run of the manager."""
        self.archive.close()
        if lost_disk:
            shutil.rmtree(self.directory / "logs")
        if lost_index:
            for path in self.directory.glob("index.db*"):
                path.unlink()
        self.open(loaded)

    def write(self, worker: str, attempt: int, data: bytes, stream: str = "out", at: float = 1_000.0) -> None:
        """In posts of 64 KiB, a second apart."""
        begin = self.store.length(worker, attempt, stream)
        for number, start in enumerate(range(0, len(data), 65536)):
            part = data[start : start + 65536]
            self.store.append(worker, attempt, stream, begin + start, part, at + number)

    def archive_all(self) -> None:
        for _ in itertools.repeat(None, 1_000):
            if not self.archive.step():
                return
        raise AssertionError("it never ends")

    def objects(self) -> list[Path]:
        return self.objects_in(self.directory / "shared")

    @staticmethod
    def objects_in(folder: Path) -> list[Path]:
        return sorted(folder.rglob("*.pglogs"))

    def tail(self, worker: str, lines: int = 1_000, **asked: Any) -> list[str]:
        """As the API reads it."""
        window = {name: asked[name] for name in ("since", "until") if name in asked}
        self.store.fetch(worker, asked.get("attempt"), asked.get("stream"), MOST_BYTES, **window)
        found = self.store.tail(
            worker, lines, asked.get("attempt"), asked.get("stream"), asked.get("since"), before=asked.get("until")
        )
        return [line.text for line in found]

    def download(self, worker: str) -> bytes:
        self.store.fetch(worker, None, None, 0)
        return b"".join(self.store.raw(worker, None, None))


def numbered(first: int, last: int, width: int = 60) -> bytes:
    """Distinct lines, some of which end with a progress bar (carriage returns)."""
    return b"".join(f"line {one:08d} ".encode().ljust(width, b"x") + b"\n" for one in range(first, last))
