"""The event history of the fleet: each change with its reason, cause, evidence and actor. Append-only, bounded,
durable.

Owns one log of the store's history, and its newest events in memory. Only the fleet and its services (deployment,
enrolment, failure handler) write here.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Required, TypedDict

from procguard.fleet.history.query import Event, EventQuery, Evidence
from procguard.fleet.model.clock import Now, iso
from procguard.fleet.store.interface import EVENTS, Line, Store
from procguard.i18n.reasons import because
from remote_agent.protocol.reasons import values as reason_values

DAY_S = 86_400.0
DISK_SHARES = 8  # one source may write an eighth of the bytes on disk per day
MAX_SOURCES = 10_000
FEW_OF = 250  # each source always keeps 1/250 of the events in memory: 20 of 5,000
LINE_BYTES = 300  # size of an event on disk without its texts
MAX_REASON_CHARS = 4_000
MAX_EVIDENCE_CHARS = 8_000
PIECE = 200  # number of events that an export reads at once: about 2 ms

# The default cause of each kind of event, unless its writer passes a more specific one.
CAUSE_OF_KIND = {
    "command": "operator",
    "operation": "operator",
    "deploy": "operator",
    "credentials": "operator",
    "token": "operator",
    "agent_enrolled": "operator",
    "agent_denied": "operator",
    "agent_removed": "operator",
    "agent_maintenance": "operator",
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
    "agent_addresses": "agent_lost",
    "worker_suspect": "suspicion",
    "worker_clear": "suspicion",
    "circuit_breaker_open": "circuit_breaker",
    "circuit_breaker_closed": "circuit_breaker",
    "state": "state",
    "not_durable": "state",
    "durable_again": "state",
    "archive_failing": "state",
    "archive_works": "state",
    "host_disk_full": "disk",
    "host_disk_ok": "disk",
    "alert_rule": "rule",
    "alert_rule_ok": "rule",
    "alert_acknowledged": "rule",
    "gpu_failed": "gpu",
    "gpu_fault": "gpu",
    "gpu_cordoned": "operator",
    "gpu_uncordoned": "operator",
    "recovery_gave_up": "agent_lost",
    "host_cordoned": "operator",
    "alerts_muted": "operator",
    "acknowledged": "operator",
    "alerts_unmuted": "operator",
    "host_uncordoned": "operator",
    "gang_incident": "gang",
    "gang_failed": "gang",
    "gang_started": "gang",
    "gang_restart": "operator",
}


@dataclass(frozen=True)
class EventBounds:
    """`events.*` of the configuration."""

    keep: int = 5_000  # number of newest events in memory, which the portal shows by default
    disk_bytes: int = 32 * 1024 * 1024  # size in the database, indexes included, for queries and the export


@dataclass
class Numbers:
    """Issues the sequence numbers of one log, or of several logs that are read as one."""

    last: int = 0


class _Budget:
    """The bytes that one source may still write to disk today."""

    def __init__(self, disk_bytes: float, now: Now) -> None:
        self.disk_bytes = disk_bytes
        self.at = now.monotonic
        self.reported = False  # whether it was reported that the source writes no more today


class _Newest:
    """The newest events, at most `keep`. Half of the space is reserved for events of people and the manager. In the
    rest, the source with the most events loses its oldest first, so that no source displaces the events of others. If
    every source has few events, as in a fleet of thousands, the oldest are dropped."""

    def __init__(self, keep: int) -> None:
        self._keep = keep
        self._of_manager = max(1, keep // 2)
        self._few = max(1, keep // FEW_OF)
        self.by_seq: OrderedDict[int, Event] = OrderedDict()
        self._seqs: dict[str, deque[int]] = {}  # keyed by source
        self._sources: OrderedDict[int, str] = OrderedDict()  # all events except the manager's, oldest first
        self._with_count: dict[int, dict[str, None]] = {}  # number of events -> sources with that number
        self._most = 0

    def add(self, event: Event, source: str) -> None:
        seq = event["seq"]
        self.by_seq[seq] = event
        seqs = self._seqs.setdefault(source, deque())
        seqs.append(seq)
        if source:
            self._sources[seq] = source
            self._moved(source, len(seqs) - 1, len(seqs))
            self._most = max(self._most, len(seqs))
        if len(self.by_seq) > self._keep:
            self._make_room()

    def _make_room(self) -> None:
        of_manager = self._seqs.get("", ())
        if len(of_manager) > self._of_manager or not self._sources:
            source = ""
        elif self._most > self._few:
            source = next(iter(self._with_count[self._most]))
        else:
            source = next(iter(self._sources.values()))
        seqs = self._seqs[source]
        seq = seqs.popleft()
        del self.by_seq[seq]
        if not seqs:
            del self._seqs[source]
        if source:
            del self._sources[seq]
            self._moved(source, len(seqs) + 1, len(seqs))
            while self._most and self._most not in self._with_count:
                self._most -= 1

    def _moved(self, source: str, before: int, after: int) -> None:
        if before:
            del self._with_count[before][source]
            if not self._with_count[before]:
                del self._with_count[before]
        if after:
            self._with_count.setdefault(after, {})[source] = None


class EventFields(TypedDict, total=False):
    """The arguments of `EventLog.add`."""

    reason: Required[str]
    worker_id: str
    host: str
    before: str
    after: str
    actor: str
    attempt: int | None
    at: float | None
    cause: str
    evidence: Evidence | str | None
    source: str


class EventLog:
    """The log of events. `source` of `add`: the agent or launcher whose message caused the event; "": people and the
    manager itself. Each source has a share of memory and disk; beyond it, its own events are dropped, so that no source
    displaces the history of others."""

    def __init__(
        self, store: Store, bounds: EventBounds | None = None, numbers: Numbers | None = None, log: str = EVENTS
    ) -> None:
        self._store = store
        self._bounds = bounds or EventBounds()
        self._numbers = numbers or Numbers()
        self._name = log
        self.left_out = 0  # number of events in memory only, because their source exceeded its share of the disk
        self._budgets: OrderedDict[str, _Budget] = OrderedDict()
        self._newest = _Newest(self._bounds.keep)
        self._unwritten: list[Line] = []
        self._unpublished: list[Event] = []
        store.keep_history(log, self._bounds.disk_bytes)

    def restore(self) -> None:
        """Load the newest events into memory; called once, after the store is loaded."""
        for event in self._store.find(self._name, EventQuery(), self._bounds.keep):
            self._newest.add(event, event.get("host") or "")  # a deployed agent is named after its host
        self._numbers.last = max(self._numbers.last, next(reversed(self._newest.by_seq), 0))

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
        evidence: Evidence | str | None = None,
        source: str = "",
    ) -> Event:
        """Append one event. It is durable after the next `flush`, within the share of its `source`.

        `at`: wall time when it happened, if not now. `cause`: a stable word for programs (docs/protocol.md), by default
        the kind's default. `evidence`: supporting facts (exit record, result of an SSH probe, origin of a request).
        """
        self._numbers.last += 1
        text, code, params = reason_values(reason if len(reason) <= MAX_REASON_CHARS else reason[:MAX_REASON_CHARS])
        event: Event = {
            "seq": self._numbers.last,
            "at": iso(at or now.wall) or "",
            "kind": kind,
            "worker_id": worker_id or None,
            "host": host or None,
            "before": before or None,
            "after": after or None,
            "reason": text,
            "reason_code": code,
            "reason_params": params,
            "actor": actor or None,
            "attempt": attempt,
            "cause": cause or CAUSE_OF_KIND.get(kind),
            "evidence": _bounded(evidence),
        }
        self._newest.add(event, source)
        if self._may_write(event, source, now):
            self._unwritten.append((self._name, event))
        self._unpublished.append(event)
        return event

    def _may_write(self, event: Event, source: str, now: Now) -> bool:
        """Whether the event fits into its source's daily share of the disk."""
        if not source:
            return True
        per_day = self._bounds.disk_bytes / DISK_SHARES
        budget = self._budgets.get(source)
        if budget is None:
            budget = self._budgets[source] = _Budget(per_day, now)
            if len(self._budgets) > MAX_SOURCES:
                self._budgets.popitem(last=False)
        budget.disk_bytes = min(per_day, budget.disk_bytes + (now.monotonic - budget.at) * per_day / DAY_S)
        budget.at = now.monotonic
        said = len(event["reason"]) + len(str(event["reason_params"]))
        size = LINE_BYTES + said + len(str(event["evidence"] or ""))
        if size <= budget.disk_bytes:
            budget.disk_bytes -= size
            budget.reported = False
            return True
        self.left_out += 1
        if not budget.reported:
            budget.reported = True
            self.add(
                "warning",
                now,
                host=event["host"] or "",
                reason=because("history.share_full", source=source, mib=round(per_day / 2**20)),
                actor="manager",
            )
        return False

    @property
    def newest_seq(self) -> int:
        return self._numbers.last

    def take_unpublished(self) -> list[Event]:
        """The events added since the previous call."""
        reported, self._unpublished = self._unpublished, []
        return reported

    def take(self) -> list[Line]:
        """The events not yet passed to the store, for the caller's own commit."""
        lines, self._unwritten = self._unwritten, []
        return lines

    def flush(self) -> None:
        """Make everything added so far durable. Raises NotDurable."""
        self._store.commit((), self.take())

    def query(
        self, after: int = 0, worker: str | None = None, host: str | None = None, limit: int = 200
    ) -> list[Event]:
        """The newest `limit` events in memory with seq > after, oldest first."""
        named = EventQuery(after=after, worker=(worker,) if worker else (), host=(host,) if host else ())
        return self.find(named, limit)

    def find(self, query: EventQuery, limit: int = 200) -> list[Event]:
        """The newest `limit` events in memory that match, oldest first."""
        found: list[Event] = []
        for event in reversed(self._newest.by_seq.values()):
            if event["seq"] <= query.after or len(found) >= limit:
                break
            if query.matches(event):
                found.append(event)
        return found[::-1]

    def search(self, query: EventQuery, limit: int = 200) -> list[Event]:
        """The newest `limit` matching events, on disk or only in memory, oldest first. Yields to other greenlets."""
        found = {event["seq"]: event for event in self._store.find(self._name, query, limit)}
        found.update((event["seq"], event) for event in self.find(query, limit))
        return [found[seq] for seq in sorted(found)[-limit:]]

    def stream(self, query: EventQuery) -> Iterator[Event]:
        """All matching events on disk, oldest first, read lazily. Events added after the call are not included."""
        self.flush()
        last, reported = self._numbers.last, 0
        while piece := self._store.find(self._name, query, PIECE, after=reported):
            for event in piece:
                reported = event["seq"]
                if reported > last:
                    return
                yield event


def _bounded(evidence: Evidence | str | None) -> Evidence | str | None:
    if not evidence:
        return None
    text = evidence if isinstance(evidence, str) else json.dumps(evidence, ensure_ascii=False, default=str)
    return evidence if len(text) <= MAX_EVIDENCE_CHARS else text[:MAX_EVIDENCE_CHARS] + "…"
