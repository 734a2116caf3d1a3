"""The history of the fleet: every change with its reason, cause, evidence and who asked. Append-only, bounded, durable.

Owns the files `events.jsonl` and `events-more.jsonl` (each + `.1`, the one before) beside the state, and the newest
events in memory. Only the registry and what works through it (deployment, enrolment, failure handler) writes here.

What hosts and strangers report cannot drive out the rest: once memory is full, a reporter with more than a quarter of
it gives its own oldest events; what one writes beyond a quarter of a file goes to `events-more.jsonl`.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import logging
import os
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from procguard.fleet.clock import Now, iso
from procguard.fleet.event_query import EventQuery
from procguard.fleet.store import appendlog

log = logging.getLogger(__name__)

MAX_REASON_CHARS = 4_000
MAX_EVIDENCE_CHARS = 8_000
REST_EVERY = 200  # lines of an export: about 2 ms

# {"seq","at","kind","worker_id","host","before","after","reason","actor","attempt","cause","evidence"}; events of older
# releases have neither cause nor evidence
Event = dict[str, Any]

# What a kind of event is caused by where its writer does not say it more exactly.
CAUSE_OF_KIND = {
    "command": "operator",
    "operation": "operator",
    "deploy": "operator",
    "credentials": "operator",
    "token": "operator",
    "agent_enrolled": "operator",
    "agent_denied": "operator",
    "agent_removed": "operator",
    "agent_care": "operator",
    "agent_restarted": "operator",
    "agent_restart_failed": "operator",
    "agent_upgraded": "operator",
    "agent_upgrade_failed": "operator",
    "worker_registered": "operator",
    "takeover": "reassigned",
    "reassigned": "reassigned",
    "stop_all": "stop_all",
    "agent_suspect": "agent_lost",
    "agent_unreachable": "agent_lost",
    "recovery": "agent_lost",
    "worker_suspect": "suspicion",
    "worker_clear": "suspicion",
    "brake_on": "brake",
    "brake_off": "brake",
    "state": "state",
    "not_durable": "state",
    "durable_again": "state",
    "recovery_gave_up": "agent_lost",
    "host_cordoned": "operator",
    "host_uncordoned": "operator",
    "gang_incident": "gang",
    "gang_failed": "gang",
    "gang_started": "gang",
    "gang_restart": "operator",
}


# Kinds of events that come of what one host says or does: each host has a share.
REPORTED = frozenset(
    {
        "worker_state",
        "worker_suspect",
        "worker_clear",
        "worker_failed",
        "agent_started",
        "agent_connected",
        "agent_suspect",
        "agent_unreachable",
        "warning",
        "tunnel_up",
        "tunnel_down",
    }
)
STRANGERS = "agent_pending"  # of what strangers do: all together have one
SHARE = 4  # a reporter has at most the fourth part, where others want the rest
USUAL_BYTES = 300  # of an event on disk, but for its reason and evidence
MORE_PART = 4  # of the disk, for what goes beyond


@dataclass
class Numbers:
    """What numbers the events of one log, or of several that are read as one."""

    last: int = 0


@dataclass(frozen=True)
class EventBounds:
    """`events.*` of the configuration."""

    keep: int = 5_000  # the newest, in memory: what the portal and the queries read
    disk_bytes: int = 32 * 1024 * 1024  # of both files together: what the export reads


class EventLog:
    def __init__(
        self,
        path: str,
        run_blocking: appendlog.RunBlocking = appendlog.run_here,
        bounds: EventBounds | None = None,
        numbers: Numbers | None = None,
    ) -> None:
        self._bounds = bounds or EventBounds()
        self._newest = _Newest(self._bounds.keep)
        self._listeners: list[Callable[[Event], None]] = []
        more_bytes = self._bounds.disk_bytes // MORE_PART
        self._file = _File(path, run_blocking, self._bounds.disk_bytes - more_bytes)
        self._file.begin()
        self._more = _File(path.removesuffix(".jsonl") + "-more.jsonl", run_blocking, more_bytes)
        self._written: dict[str, int] = {}  # reporter -> bytes in the file that is written now
        self._numbers = numbers or Numbers()
        for event in heapq.merge(self._more.read(), self._file.read(), key=_seq):
            self._newest.add(event)
            self._numbers.last = max(self._numbers.last, event["seq"])

    def on_event(self, listener: Callable[[Event], None]) -> None:
        self._listeners.append(listener)

    def add(
        self,
        kind: str,
        now: Now,
        *,
        reason: str,
        worker_id: str = "",
        host: str = "",
        before: str = "",
        after: str = "",
        actor: str = "",
        attempt: int | None = None,
        at: float | None = None,
        cause: str = "",
        evidence: dict[str, Any] | str | None = None,
    ) -> Event:
        """Append one event. It is durable after the next `flush`.

        `at`: wall time when it happened, if not now. `cause`: a stable word for programs (docs/protocol.md), by default
        the kind's own. `evidence`: what is known of it (exit record, what SSH found, who asked from where).
        """
        self._numbers.last += 1
        bounded, evidence_chars = _bounded(evidence)
        event: Event = {
            "seq": self._numbers.last,
            "at": iso(at or now.wall),
            "kind": kind,
            "worker_id": worker_id or None,
            "host": host or None,
            "before": before or None,
            "after": after or None,
            "reason": reason[:MAX_REASON_CHARS],
            "actor": actor or None,
            "attempt": attempt,
            "cause": cause or CAUSE_OF_KIND.get(kind),
            "evidence": bounded,
        }
        self._newest.add(event)
        self._file_for(event, evidence_chars).append(event)
        for listener in self._listeners:
            listener(event)
        return event

    @property
    def newest_seq(self) -> int:
        return self._numbers.last

    def _file_for(self, event: Event, evidence_chars: int) -> _File:
        reporter = reporter_of(event)
        if not reporter:
            return self._file
        written = self._written.get(reporter, 0) + USUAL_BYTES + len(event["reason"]) + evidence_chars
        if written > self._file.max_bytes // 2 // SHARE and self._more.begin():
            return self._more
        self._written[reporter] = written
        return self._file

    def flush(self) -> None:
        if self._file.flush():
            self._written.clear()
        self._more.flush()

    def close(self) -> None:
        self._more.close()
        self._file.close()

    def query(
        self, after: int = 0, worker: str | None = None, host: str | None = None, limit: int = 200
    ) -> list[Event]:
        """The newest `limit` events in memory with seq > after, oldest first."""
        named = EventQuery(after=after, worker=(worker,) if worker else (), host=(host,) if host else ())
        return self.find(named, limit)

    def find(self, query: EventQuery, limit: int = 200) -> list[Event]:
        """The newest `limit` events in memory that match, oldest first."""
        found: list[Event] = []
        for event in self._newest.newest_first():
            if event["seq"] <= query.after or len(found) >= limit:
                break
            if query.matches(event):
                found.append(event)
        return found[::-1]

    def stream(self, query: EventQuery, rest: Callable[[], None] = lambda: None) -> Iterator[Event]:
        """Every event on disk that matches, oldest first, read as it is asked for. What was added since is not told.

        `rest` lets others have a turn, also where hardly any event matches.
        """
        self.flush()
        last = self._numbers.last
        told = 0
        with self._file.opened() as file, self._more.opened() as more:
            for number, event in enumerate(heapq.merge(more, file, key=_seq), 1):
                if number % REST_EVERY == 0:
                    rest()
                if told < event["seq"] <= last:
                    told = event["seq"]
                    if query.matches(event):
                        yield event


class _File:
    """One file and the one before it, together within `max_bytes`."""

    def __init__(self, path: str, run_blocking: appendlog.RunBlocking, max_bytes: int) -> None:
        self.path = path
        self.max_bytes = max_bytes
        self._run_blocking = run_blocking
        self._log: appendlog.AppendLog | None = None

    def read(self) -> Iterator[Event]:
        """What the manager before has written."""
        for path in (self.path + ".1", self.path):
            appendlog.truncate_damaged_tail(path)
            yield from appendlog.each(path)

    def begin(self) -> bool:
        """Open it for writing, once; whether it could be."""
        if self._log is None:
            try:
                self._log = appendlog.AppendLog(self.path, self._run_blocking)
            except OSError as exc:
                log.error("cannot write events path=%s error=%s", self.path, exc.strerror)
        return self._log is not None

    def append(self, event: Event) -> None:
        assert self._log is not None, "begun"
        self._log.append([event], wait=False)

    def flush(self) -> bool:
        """Whether a new file was begun."""
        if self._log is None:
            return False
        self._log.flush()
        return self._log.size_bytes > self.max_bytes // 2 and self._rotate(self._log)

    def _rotate(self, old: appendlog.AppendLog) -> bool:
        """Nothing is pending here (flush has just returned and nothing else ran), so no event is between two files."""
        try:
            os.replace(self.path, self.path + ".1")
            self._log = appendlog.AppendLog(self.path, self._run_blocking)
        except OSError as exc:  # the file goes on growing, and the next flush tries again
            log.error("cannot begin a new file of events path=%s error=%s", self.path, exc.strerror)
            return False
        old.close()
        return True

    @contextlib.contextmanager
    def opened(self) -> Iterator[Iterator[Event]]:
        # The newer file first: if it is renamed before the other is opened, both are the same one, and none is missed.
        newer = appendlog.opened(self.path)
        older = appendlog.opened(self.path + ".1")
        files = [file for file in (older, newer) if file is not None]
        try:
            yield itertools.chain.from_iterable(appendlog.records(file) for file in files)
        finally:
            for file in files:
                file.close()

    def close(self) -> None:
        if self._log is not None:
            self._log.close()


class _Newest:
    """The newest events in memory; who reports more than its share gives its own oldest."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._events: dict[int, Event] = {}  # by seq, oldest first
        self._of: dict[str, deque[int]] = {}  # reporter -> its seqs
        self._above: set[str] = set()  # reporters with more than their share: fewer than SHARE

    def add(self, event: Event) -> None:
        seq, reporter = event["seq"], reporter_of(event)
        self._events[seq] = event
        if reporter:
            own = self._of.setdefault(reporter, deque())
            own.append(seq)
            if len(own) > self._keep // SHARE:
                self._above.add(reporter)
        if len(self._events) > self._keep:
            self._drop_one()

    def _drop_one(self) -> None:
        if self._above:
            self._drop(self._of[max(self._above, key=lambda reporter: len(self._of[reporter]))][0])
        else:
            self._drop(next(iter(self._events)))

    def _drop(self, seq: int) -> None:
        reporter = reporter_of(self._events.pop(seq))
        if not reporter:
            return
        own = self._of[reporter]
        own.popleft()  # of one reporter the oldest goes first, whoever it makes room for
        if len(own) <= self._keep // SHARE:
            self._above.discard(reporter)
        if not own:
            del self._of[reporter]

    def newest_first(self) -> Iterator[Event]:
        return reversed(self._events.values())


def reporter_of(event: Event) -> str:
    """Whose share it counts to; "" for what operators and the manager itself do."""
    if event["kind"] == STRANGERS:
        return STRANGERS
    return f"host {event['host']}" if event["kind"] in REPORTED and event["host"] else ""


def _seq(event: Event) -> int:
    return int(event["seq"])


def _bounded(evidence: dict[str, Any] | str | None) -> tuple[dict[str, Any] | str | None, int]:
    """(what is kept of it, how many characters that are)"""
    if not evidence:
        return None, 0
    text = evidence if isinstance(evidence, str) else json.dumps(evidence, ensure_ascii=False, default=str)
    if len(text) <= MAX_EVIDENCE_CHARS:
        return evidence, len(text)
    return text[:MAX_EVIDENCE_CHARS] + "…", MAX_EVIDENCE_CHARS
