"""The history of the fleet: every change with its reason, cause, evidence and who asked. Append-only, bounded, durable.

Owns the files `events.jsonl` (+ `.1`, the one before) beside the state, and the newest events in memory. Only the
registry and what works through it (deployment, enrolment, failure handler) writes here.
"""

from __future__ import annotations

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
    "host_disk_full": "disk",
    "host_disk_ok": "disk",
    "recovery_gave_up": "agent_lost",
    "host_cordoned": "operator",
    "host_uncordoned": "operator",
    "gang_incident": "gang",
    "gang_failed": "gang",
    "gang_started": "gang",
    "gang_restart": "operator",
}


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
    ) -> None:
        self._path = path
        self._run_blocking = run_blocking
        self._bounds = bounds or EventBounds()
        self._events: deque[Event] = deque(maxlen=self._bounds.keep)
        self._listeners: list[Callable[[Event], None]] = []
        for old in (path + ".1", path):
            appendlog.truncate_damaged_tail(old)
            self._events.extend(appendlog.each(old))
        self._seq = self._events[-1]["seq"] if self._events else 0
        self._log = appendlog.AppendLog(path, run_blocking)

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
        self._seq += 1
        event: Event = {
            "seq": self._seq,
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
            "evidence": _bounded(evidence),
        }
        self._events.append(event)
        self._log.append([event], wait=False)
        for listener in self._listeners:
            listener(event)
        return event

    @property
    def newest_seq(self) -> int:
        return self._seq

    def flush(self) -> None:
        self._log.flush()
        if self._log.size_bytes > self._bounds.disk_bytes // 2:
            self._rotate()

    def _rotate(self) -> None:
        """Nothing is pending here (flush has just returned and nothing else ran), so no event is between two files."""
        old = self._log
        try:
            os.replace(self._path, self._path + ".1")
            self._log = appendlog.AppendLog(self._path, self._run_blocking)
        except OSError as exc:  # the file goes on growing, and the next flush tries again
            log.error("cannot begin a new file of events path=%s error=%s", self._path, exc.strerror)
            return
        old.close()

    def close(self) -> None:
        self._log.close()

    def query(
        self, after: int = 0, worker: str | None = None, host: str | None = None, limit: int = 200
    ) -> list[Event]:
        """The newest `limit` events in memory with seq > after, oldest first."""
        named = EventQuery(after=after, worker=(worker,) if worker else (), host=(host,) if host else ())
        return self.find(named, limit)

    def find(self, query: EventQuery, limit: int = 200) -> list[Event]:
        """The newest `limit` events in memory that match, oldest first."""
        found: list[Event] = []
        for event in reversed(self._events):
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
        last = self._seq
        # The newer file first: if it is renamed before the other is opened, both are the same one, and none is missed.
        newer = appendlog.opened(self._path)
        older = appendlog.opened(self._path + ".1")
        told = 0
        for file in (older, newer):
            if file is None:
                continue
            with file:
                for number, event in enumerate(appendlog.records(file), 1):
                    if number % REST_EVERY == 0:
                        rest()
                    if told < event["seq"] <= last:
                        told = event["seq"]
                        if query.matches(event):
                            yield event


def _bounded(evidence: dict[str, Any] | str | None) -> dict[str, Any] | str | None:
    if not evidence:
        return None
    text = evidence if isinstance(evidence, str) else json.dumps(evidence, ensure_ascii=False, default=str)
    return evidence if len(text) <= MAX_EVIDENCE_CHARS else text[:MAX_EVIDENCE_CHARS] + "…"
