"""Fetches log bytes that a reader requests and that are not on this manager's disk: from the archive, and from hosts
those that were sent to the previous leader.

Owns the limits of size and time per request. Bytes that do not arrive in time are shown as a marker with their size;
the next request continues the fetch. Event loop only.
"""

from __future__ import annotations

import logging
import os
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import closing

import gevent
import gevent.event
import gevent.lock

from procguard.errors import LimitExceeded, ProcGuardError
from procguard.fleet.agents.log_ranges import LogRanges
from procguard.portal.logs.archive.coverage import Range, common, lacking
from procguard.portal.logs.archive.index import Key
from procguard.portal.logs.archive.reading import ArchiveReader
from procguard.portal.logs.reader import INDEX_RECORD, MAX_LINE_BYTES, TimesOf
from procguard.portal.logs.spool import SpooledLogStore
from procguard.portal.logs.store import LogStore
from remote_agent.protocol.messages import directory_name

AT_ONCE = 8  # concurrent readers; others see markers
RANGE_BYTES = 1024 * 1024
TAIL_BYTES, MOST_BYTES = 1024 * 1024, 16 * 1024 * 1024  # for the last lines; for a search, an excerpt or a download
ANSWER_S = 4.0
CONNECTED_LOOK_S = 0.1
WHOLE_S = 12.0
MAX_LISTED = 100_000
NEAR_BYTES = 256 * 1024  # to each side of a place in a log
MAX_TIMES = 4_000  # times of a stream read before parts of it are fetched: a month of uploads has 260,000 pieces
UNSURE_S = 86_400.0  # a stream's last piece may contain output up to this much newer than its beginning
Wanted = Mapping[tuple[int, str], int]  # (attempt, stream): a place

log = logging.getLogger("procguard.portal.logs")


class LogFetcher:
    def __init__(self, ranges: LogRanges, store: LogStore) -> None:
        self._ranges = ranges
        self._store = store
        self._turns = gevent.lock.BoundedSemaphore(AT_ONCE)
        self._listed: OrderedDict[str, None] = OrderedDict()  # workers whose host has listed its files

    @property
    def has_hosts(self) -> bool:
        return self._ranges.has_hosts

    def complete(
        self,
        worker_id: str,
        attempt: int | None,
        stream: str | None,
        max_bytes: int = MOST_BYTES,
        *,
        await_host: bool = False,
        since: float | None = None,
        until: float | None = None,
        near: Wanted | None = None,
        caller: str = "",
    ) -> None:
        """Fetch absent bytes, newest first, at most `max_bytes`. Never raises. `await_host`: wait up to 12 s for the
        agent's first heartbeat, because the log was being followed at the previous leader. From the archive, only
        output written between `since` and `until`, or `near` these places; `caller`: whose share of reader slots is
        used."""
        self._store.await_index()
        deadline = time.monotonic() + WHOLE_S
        if isinstance(self._store, SpooledLogStore) and self._store.archive is not None:
            try:
                self._from_archive(
                    self._store, worker_id, attempt, stream, max_bytes, deadline, since, until, near, caller
                )
            except LimitExceeded:
                pass  # a marker is shown instead
            except (OSError, ProcGuardError) as exc:
                log.error("%s: archived parts of its log cannot be fetched: %s", worker_id, exc)
        if self.has_hosts:
            self._from_hosts(worker_id, attempt, stream, max_bytes, deadline, await_host)

    def for_search(
        self,
        worker_id: str,
        wanted: Mapping[tuple[int, str], int | None],
        max_bytes: int,
        deadline: float,
        caller: str,
        *,
        since: float | None = None,
        until: float | None = None,
    ) -> int:
        """Fetch archived parts of these streams, each up to an offset (None: all), newest first. Returns the number of
        bytes still missing on the disk. Never raises."""
        store = self._store
        if not isinstance(store, SpooledLogStore) or store.reader is None:
            return 0
        try:
            wanted = _maybe_archived(store, worker_id, wanted, since)
            if not wanted:
                return 0
            parts = self._archived_parts(store, worker_id, None, None, since, until, None, wanted)
            if parts and max_bytes > 0:
                with store.reader.turn(caller):
                    self._take_back(store, store.reader, worker_id, parts, max_bytes, deadline)
                parts = self._archived_parts(store, worker_id, None, None, since, until, None, wanted)
            return sum(end - start for _, start, end in parts)
        except (OSError, ProcGuardError) as exc:
            log.error("%s: archived parts of its log cannot be searched: %s", worker_id, exc)
            return sum(end - start for _, _, start, end in store.beside(store.absent, worker_id))

    def _from_archive(
        self,
        store: SpooledLogStore,
        worker_id: str,
        attempt: int | None,
        stream: str | None,
        max_bytes: int,
        deadline: float,
        since: float | None,
        until: float | None,
        near: Wanted | None,
        caller: str,
    ) -> None:
        assert store.reader is not None
        found = self._archived_parts(store, worker_id, attempt, stream, since, until, near, None)
        if found and max_bytes > 0:
            with store.reader.turn(caller):
                self._take_back(store, store.reader, worker_id, found, max_bytes, deadline)

    @staticmethod
    def _archived_parts(
        store: SpooledLogStore,
        worker_id: str,
        attempt: int | None,
        stream: str | None,
        since: float | None,
        until: float | None,
        near: Wanted | None,
        below: Mapping[tuple[int, str], int | None] | None,
    ) -> list[tuple[Key, int, int]]:
        """The parts of a log that are in the archive but not on the disk, newest first. Raises OSError,
        ProcGuardError."""
        archive = store.archive
        assert archive is not None
        store.restore(worker_id)
        for key in store.beside(store.lacks_times, worker_id):
            step = archive.length(*key) // MAX_TIMES
            records = b"".join(INDEX_RECORD.pack(*one) for one in archive.index.times(key, step))
            store.add_times(key, records)
        found = []
        for number, name, start, end in store.beside(store.absent, worker_id, attempt, stream):
            low, high = start, end
            if below is not None and (number, name) not in below:
                continue
            limit = below[(number, name)] if below is not None else None
            if near is not None:
                place = near.get((number, name))
                low, high = (start, start) if place is None else (place - NEAR_BYTES, place + NEAR_BYTES)
            elif since is not None or until is not None:
                index_path = store.index_path(worker_id, number, name)
                low, high = store.beside(written_between, index_path, since, until, (start, end))
            if limit is not None:
                high = min(high, limit + MAX_LINE_BYTES)
            key = (directory_name(worker_id), number, name)
            found += [(key, *part) for part in reversed(common(archive.covered(*key), max(start, low), min(end, high)))]
        return found

    @staticmethod
    def _take_back(
        store: SpooledLogStore,
        reader: ArchiveReader,
        worker_id: str,
        parts: list[tuple[Key, int, int]],
        max_bytes: int,
        deadline: float,
    ) -> None:
        for key, start, end in parts:
            for run in reader.newest_first(key, max(start, end - max_bytes), end, deadline):
                store.take_back(worker_id, key[1], key[2], run)
                max_bytes -= len(run.data or b"")
                if max_bytes <= 0:
                    return

    def _from_hosts(
        self,
        worker_id: str,
        attempt: int | None,
        stream: str | None,
        max_bytes: int,
        deadline: float,
        await_host: bool,
    ) -> None:
        while await_host and self._ranges.is_awaited(worker_id) and time.monotonic() < deadline:
            gevent.sleep(CONNECTED_LOOK_S)
        if not self._turns.acquire(blocking=False):
            return
        try:
            if worker_id not in self._listed and self._asked(worker_id, 0, "", 0, 0):
                self._listed[worker_id] = None
                if len(self._listed) > MAX_LISTED:
                    self._listed.popitem(last=False)
            for number, name, begun, end in self._store.absent(worker_id, attempt, stream):
                for start, stop in reversed(self._only_hosts_have(worker_id, number, name, begun, end)):
                    upto = stop
                    while start < upto and max_bytes > 0:
                        begin = max(start, upto - min(RANGE_BYTES, max_bytes))
                        if time.monotonic() > deadline or not self._asked(worker_id, number, name, begin, upto - begin):
                            return
                        max_bytes -= upto - begin
                        upto = begin
        finally:
            self._turns.release()

    def _only_hosts_have(self, worker_id: str, attempt: int, stream: str, start: int, end: int) -> list[Range]:
        """The parts to request from the host; all of them while the archive does not answer."""
        archive = self._store.archive if isinstance(self._store, SpooledLogStore) else None
        if archive is None or archive.status.problem:
            return [(start, end)]
        return lacking(archive.covered(directory_name(worker_id), attempt, stream), start, end)

    def _asked(self, worker_id: str, attempt: int, stream: str, offset: int, length: int) -> bool:
        """Ask the host for these parts. Returns whether it has answered."""
        answered = gevent.event.Event()
        question = self._ranges.ask(worker_id, attempt, stream, offset, length, answered.set)
        if question is None:
            return False
        try:
            answered.wait(ANSWER_S)
            return question.done
        finally:
            self._ranges.end(question)


def written_between(index_path: str, since: float | None, until: float | None, part: Range) -> Range:
    """The subrange of a part that was written in that time. Runs in a thread."""
    if not os.path.exists(index_path):
        return part
    with closing(TimesOf(index_path)) as times:
        behind = times.offset_after(until) if until is not None else None
        first = times.offset_before(since) if since is not None else 0
    high = part[1] if behind is None else behind + NEAR_BYTES // 4
    return (first, high)


def _maybe_archived(
    store: SpooledLogStore, worker_id: str, wanted: Mapping[tuple[int, str], int | None], since: float | None
) -> dict[tuple[int, str], int | None]:
    """Streams with archived output that may be as new as that. Does not read the disk."""
    archive, folder = store.archive, directory_name(worker_id)
    assert archive is not None
    newest = float("-inf") if since is None else since - UNSURE_S
    return {
        key: limit
        for key, limit in wanted.items()
        if archive.covered(folder, *key) and archive.written_at((folder, *key)) >= newest
    }
