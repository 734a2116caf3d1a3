"""One batch operation: a verb, its workers, and the result of each. Pure rules and records, no fleet.

    waiting ──► accepted ──► delivered ──► done | failed | expired
       │            └── pending ──► done      its host is unreachable: done when it returns
       ├── skipped                            nothing to do, or not possible, according to the cause
       └── cancelled                          never begun: cancelled, halted by failures, or interrupted

An operation runs until every item has ended. It is halted when more failed than `max_failures` allows.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from procguard.errors import UsageError
from procguard.fleet.model.clock import iso
from procguard.fleet.operations.answers import ItemAnswer, OperationAnswer, OperationCause
from procguard.i18n.reasons import NONE, Reason, because, reason_of
from procguard.json_types import Json
from remote_agent.protocol import messages, reasons, states
from remote_agent.protocol.reasons import fields as reason_fields

ItemState = Literal["waiting", "accepted", "delivered", "pending", "done", "failed", "expired", "skipped", "cancelled"]
Status = Literal["running", "cancelling", "halting", "done", "cancelled", "halted", "interrupted"]

ITEM_STATES = ("waiting", "accepted", "delivered", "pending", "done", "failed", "expired", "skipped", "cancelled")
BAD = ("failed", "expired")
LIVE = ("running", "cancelling", "halting")
CHUNK = 100  # number of items that are begun and stored together
KEEP_CAUSES = 50
EXAMPLES = 5
MAX_MESSAGE_CHARS = 300

# Causes of an item's result, as words for programs; their texts are the reasons with the codes cause.WORD.
CAUSES = (
    "already_running", "already_stopped", "already_wanted", "being_removed", "stopped_by_operator", "unreachable",
    "host_away", "gone", "overtaken", "timeout", "manager_away", "cancelled", "halted",
)  # fmt: skip


class OperationPlan(NamedTuple):
    """The action of the operation on a worker now. `cause`: why the worker would be skipped or deferred."""

    action: Literal["act", "pending", "skip"]
    cause: str = ""


class ItemOutcome(NamedTuple):
    state: ItemState
    cause: str = ""
    message: Reason = NONE


def plan(verb: str, state: str, desired: str) -> OperationPlan:
    """Plan the action on one worker. start and stop set the desired state, also on unreachable hosts; restart and kill
    apply only to workers that are alive now."""
    if desired == "removed":
        return OperationPlan("skip", "being_removed")
    if state == states.UNKNOWN:
        if verb in ("restart", "kill"):
            return OperationPlan("skip", "unreachable")
        wanted = "running" if verb == "start" else "stopped"
        return OperationPlan("skip", "already_wanted") if desired == wanted else OperationPlan("pending", "host_away")
    if verb == "start" and state in (states.STARTING, states.RUNNING) and desired == "running":
        return OperationPlan("skip", "already_running")
    if verb in ("stop", "kill") and state in states.SETTLED and desired == "stopped":
        return OperationPlan("skip", "already_stopped")
    if verb == "restart" and desired == "stopped":
        return OperationPlan("skip", "stopped_by_operator")
    return OperationPlan("act")


@dataclass(slots=True)
class Item:
    worker_id: str
    state: ItemState = "waiting"
    cause: str = ""
    message: Reason = NONE
    command: str = ""  # the accepted command: the restart of a worker that is not alive is a start
    command_id: str = ""
    generation: int = 0  # of the worker, once the command was accepted
    attempt: int = 0  # the running attempt, or the last one, when the command was accepted
    ended_wall: float = 0.0

    def stored(self) -> Any:
        """The stored form, kept small: a waiting item is stored as its worker id alone."""
        if self.state == "waiting":
            return self.worker_id
        return [_stored(getattr(self, name)) for name in _STORED]

    @classmethod
    def restored(cls, data: Any) -> Item:
        if isinstance(data, str):
            return cls(data)
        item = cls(*data)
        said: Any = item.message
        item.message = reasons.read(said, "message") if isinstance(said, dict) else reason_of(str(said))
        return item

    def view(self) -> ItemAnswer:
        text, code, params = reasons.values(self.message or _cause(self.cause))
        return {
            "worker_id": self.worker_id,
            "result": self.state,
            "cause": self.cause or None,
            "message": text,
            "message_code": code,
            "message_params": params,
            "command_id": self.command_id or None,
            "ended_at": iso(self.ended_wall),
        }


_STORED = tuple(Item.__slots__)


def _stored(value: Any) -> Any:
    return reason_fields("message", value) if isinstance(value, Reason) and value else value


def _kind_of(message: Reason) -> str:
    """The key by which items are grouped: the reason's codes, or a free text without its numbers."""
    if message.code == reasons.TEXT:
        return re.sub(r"\d+", "#", message)
    return " ".join([message.code, *(one["code"] for one in reasons.also_of(message.params))])


def _cause(cause: str) -> Reason:
    return because(f"cause.{cause}") if cause in CAUSES else NONE


def judge(item: Item, desired: str, report: messages.WorkerReport | None) -> ItemOutcome | None:
    """The outcome of an accepted item according to the worker's report; None while it is still open.

    A start is done when the worker is running, so that a rolling restart stops at a job that crashes.
    """
    if desired != ("stopped" if item.command in ("stop", "kill") else "running"):
        return ItemOutcome("skipped", "overtaken")
    if report is None or report.generation < item.generation:
        return None
    if item.command in ("stop", "kill"):
        return ItemOutcome("done", message=reason_of(report.reason)) if report.state in states.SETTLED else None
    if item.command == "restart" and report.attempt <= item.attempt:
        return None
    if report.state == states.RUNNING:
        return ItemOutcome("done", message=reason_of(report.reason))
    if report.state == states.EXITED:
        return ItemOutcome("done", message=reason_of(report.reason) or because("operation.ran_to_end"))
    crashed = report.state == states.BACKOFF and report.attempt > item.attempt
    if report.state == states.FAILED or crashed:
        return ItemOutcome("failed", message=reason_of(report.reason) or because("operation.is", state=report.state))
    return None


class FailureLimit:
    """The failure limit: "5" halts once more than five failed, "10%" once more than a tenth did, "" never."""

    def __init__(self, text: str) -> None:
        match = re.fullmatch(r"\s*(\d{1,6})\s*(%?)\s*", text)
        if text.strip() and (match is None or (match[2] and int(match[1]) > 100)):
            raise UsageError(
                f"max_failures {text[:20]!r}: expected a count or a percentage", "e.g. 5, or 10%", code="bad_limit"
            )
        self.text = text.replace(" ", "")
        self._number = int(match[1]) if match else None
        self._percent = bool(match and match[2])

    def allowed(self, items: int) -> int | None:
        if self._number is None:
            return None
        return math.floor(items * self._number / 100) if self._percent else self._number


@dataclass
class Operation:
    operation_id: str
    command: messages.Verb
    selector: str
    actor: str
    created_wall: float
    items: list[Item]
    q: str = ""
    reason: str = ""
    concurrency: int = 100
    max_failures: str = ""
    timeout_s: float = 120.0
    retry_of: str = ""
    status: Status = "running"
    ended_wall: float = 0.0
    saved_wall: float = 0.0
    note: Reason = NONE
    joined: int = 0  # matched when it was begun, but were not in the preview: not acted on
    left: int = 0  # were in the preview and no longer match: still processed

    # the following fields are derived from the items
    counts: Counter[str] = field(default_factory=Counter)
    causes: dict[tuple[str, str], OperationCause] = field(default_factory=dict)
    next_index: int = 0  # the first item that has not been begun
    in_flight: set[int] = field(default_factory=set)
    dirty_chunks: set[int] = field(default_factory=set)
    unstamped: list[Item] = field(default_factory=list)  # ended items whose time is not recorded yet
    allowed: int | None = None  # number of failures allowed; None: unlimited
    changed: bool = True
    shown_at: float = -math.inf  # monotonic
    saved_at: float = -math.inf

    def __post_init__(self) -> None:
        self.dirty_chunks = set(range(math.ceil(len(self.items) / CHUNK)))
        self.allowed = FailureLimit(self.max_failures).allowed(len(self.items))
        for index, item in enumerate(self.items):
            self.counts[item.state] += 1
            self._count_cause(item, 1)
            if item.state in ("accepted", "delivered"):
                self.in_flight.add(index)
            if item.state != "waiting":
                self.next_index = index + 1

    @property
    def live(self) -> bool:
        return self.status in LIVE

    @property
    def bad(self) -> int:
        return self.counts["failed"] + self.counts["expired"]

    def may_begin(self) -> int:
        """The number of items that may begin now."""
        if self.status != "running":
            return 0
        return min(self.concurrency - len(self.in_flight), len(self.items) - self.next_index)

    def set(self, index: int, outcome: ItemOutcome) -> None:
        """Set the outcome of an item; the only place that changes its state. `stamp` records the time afterwards."""
        item = self.items[index]
        self._count_cause(item, -1)
        self.counts[item.state] -= 1
        item.state, item.cause = outcome.state, outcome.cause
        item.message = outcome.message
        self.counts[item.state] += 1
        self._count_cause(item, 1)
        if item.state in ("accepted", "delivered"):
            self.in_flight.add(index)
        else:
            self.in_flight.discard(index)
            self.unstamped.append(item)
        self.dirty_chunks.add(index // CHUNK)
        self.changed = True

    def stamp(self, wall: float) -> None:
        for item in self.unstamped:
            item.ended_wall = wall
        self.unstamped.clear()

    def limit_exceeded(self) -> bool:
        return self.allowed is not None and self.bad > self.allowed

    def drop_the_rest(self, cause: str) -> None:
        """Cancel all items that have not begun, with this cause."""
        for index in range(self.next_index, len(self.items)):
            self.set(index, ItemOutcome("cancelled", cause))
        self.next_index = len(self.items)

    # ------------------------------------------------------------------------------------------ for people

    def _count_cause(self, item: Item, step: int) -> None:
        if item.state in ("waiting", "accepted", "delivered", "done"):
            return
        # Messages with the same cause about two processes differ only in their numbers.
        key = (item.state, item.cause or _kind_of(item.message))
        if key not in self.causes and len(self.causes) >= KEEP_CAUSES:
            key = (item.state, "other")
        text, code, params = reasons.values(item.message or _cause(item.cause))
        entry = self.causes.setdefault(
            key,
            {
                "result": item.state,
                "cause": item.cause or None,
                "message": text,
                "message_code": code,
                "message_params": params,
                "count": 0,
                "examples": [],
            },
        )
        entry["count"] += step
        if step > 0 and len(entry["examples"]) < EXAMPLES:
            entry["examples"].append(item.worker_id)
        if entry["count"] <= 0:
            self.causes.pop(key, None)

    def view(self) -> OperationAnswer:
        note, note_code, note_params = reasons.values(self.note)
        return {
            "operation_id": self.operation_id,
            "command": self.command,
            "selector": self.selector if len(self.selector) <= 300 else self.selector[:300] + "…",
            "q": self.q,
            "actor": self.actor,
            "reason": self.reason,
            "status": self.status,
            "created_at": iso(self.created_wall),
            "ended_at": iso(self.ended_wall),
            "total": len(self.items),
            "counts": {state: self.counts[state] for state in ITEM_STATES if self.counts[state]},
            "causes": sorted(self.causes.values(), key=lambda entry: -entry["count"]),
            "concurrency": self.concurrency,
            "max_failures": self.max_failures,
            "timeout_s": self.timeout_s,
            "retry_of": self.retry_of or None,
            "joined": self.joined,
            "left": self.left,
            "note": note,
            "note_code": note_code,
            "note_params": note_params,
        }

    def summary(self) -> list[str]:
        """The number of items by result, for example ["9 done", "2 failed"]."""
        return [f"{self.counts[state]} {state}" for state in ITEM_STATES if self.counts[state]]

    # ------------------------------------------------------------------------------------------ for the store

    def stored(self) -> Json:
        header = {name: getattr(self, name) for name in _HEADER}
        return {"items": len(self.items), **header, **reason_fields("note", self.note)}

    def stored_chunk(self, number: int) -> Json:
        part = self.items[number * CHUNK : (number + 1) * CHUNK]
        # A single string, because ten thousand lists would be expensive in the YAML snapshot.
        return {"items": json.dumps([item.stored() for item in part], separators=(",", ":"))}

    @classmethod
    def restored(cls, data: Json, chunks: list[Json]) -> Operation:
        items = [Item.restored(one) for chunk in chunks for one in json.loads(chunk["items"])]
        header = {name: data[name] for name in _HEADER if name in data}
        return cls(items=items, **{**header, "note": reasons.read(data, "note")})


_HEADER = (
    "operation_id", "command", "selector", "actor", "created_wall", "q", "reason", "concurrency", "max_failures",
    "timeout_s", "retry_of", "status", "ended_wall", "saved_wall", "note", "joined", "left",
)  # fmt: skip
