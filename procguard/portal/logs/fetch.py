"""Brings from hosts what a reader asks for and this manager never had: it leads since a takeover.

Owns how much of a log is fetched for one question, and how long that may take. What does not come in time is a marker
with its size in the log; the next request continues the fetch. Event loop only.
"""

from __future__ import annotations

import time
from collections import OrderedDict

import gevent
import gevent.event
import gevent.lock

from procguard.fleet.agents.log_ranges import LogRanges
from procguard.portal.logs.store import LogStore

AT_ONCE = 8  # readers; others see markers
RANGE_BYTES = 1024 * 1024
TAIL_BYTES, MOST_BYTES = 1024 * 1024, 16 * 1024 * 1024  # for the last lines; for a search, an excerpt or a download
ANSWER_S = 4.0
CONNECTED_LOOK_S = 0.1
WHOLE_S = 12.0
MAX_LISTED = 100_000


class LogFetcher:
    def __init__(self, ranges: LogRanges, store: LogStore) -> None:
        self._ranges = ranges
        self._store = store
        self._turns = gevent.lock.BoundedSemaphore(AT_ONCE)
        self._listed: OrderedDict[str, None] = OrderedDict()  # workers whose host has said what files it has

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
    ) -> None:
        """Fetch what is absent, the newest first, at most `max_bytes` of it. Never raises. `await_host`: wait for
        the first heartbeat of its agent, for at most 12 s: somebody was following this log at the leader before."""
        if not self.has_hosts:
            return
        deadline = time.monotonic() + WHOLE_S
        while await_host and self._ranges.is_awaited(worker_id) and time.monotonic() < deadline:
            gevent.sleep(CONNECTED_LOOK_S)
        if not self._turns.acquire(blocking=False):
            return
        try:
            if worker_id not in self._listed and self._asked(worker_id, 0, "", 0, 0):
                self._listed[worker_id] = None
                if len(self._listed) > MAX_LISTED:
                    self._listed.popitem(last=False)
            for number, name, start, end in self._store.absent(worker_id, attempt, stream):
                upto = end
                while start < upto and max_bytes > 0:
                    begin = max(start, upto - min(RANGE_BYTES, max_bytes))
                    if time.monotonic() > deadline or not self._asked(worker_id, number, name, begin, upto - begin):
                        return
                    max_bytes -= upto - begin
                    upto = begin
        finally:
            self._turns.release()

    def _asked(self, worker_id: str, attempt: int, stream: str, offset: int, length: int) -> bool:
        """Whether the host has answered."""
        answered = gevent.event.Event()
        question = self._ranges.ask(worker_id, attempt, stream, offset, length, answered.set)
        if question is None:
            return False
        try:
            answered.wait(ANSWER_S)
            return question.done
        finally:
            self._ranges.end(question)
