"""The one way to change the fleet's state.

    with state.transaction(now, actor) as tx:
        worker = tx.edit(worker)
        worker.desired = "stopped"
        tx.event("stop_all", reason="…")

The end of the block makes the changes and their events durable in one commit; then the affected agents are notified,
and the bus publishes the changes. An exception inside reverts everything: records, tables and their indexes are
restored, no event is added, and nobody is notified. Observed state (`AgentObserved`, `WorkerObserved`) is not part of
it. Code inside must not yield, because other greenlets would see an incomplete change.

`wait` determines what the end of the block waits for: "durable" (raises NotDurable if the disk fails: the change
applies in memory, is not acknowledged, and is written with the next commit), "tried" (the same without raising; while
the disk fails, no commit is attempted) or "nothing" (durable with the next commit of any transaction). Agents are
notified only once the change is durable.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Protocol, TypeVar, Unpack

from procguard.fleet.changes import ChangeBus
from procguard.fleet.durability import Durability
from procguard.fleet.history.events import EventFields, EventLog
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import Record
from procguard.fleet.store.interface import Change, NotDurable, StoredRecord
from procguard.fleet.tables import RecordTable

R = TypeVar("R", bound=Record)
Wait = Literal["durable", "tried", "nothing"]


class Changeable(Protocol):
    """The interface of the state (state.py) that a transaction uses."""

    tables_by_name: dict[str, RecordTable[Any]]
    event_log: EventLog
    durability: Durability
    bus: ChangeBus

    def concerned(self, record: Record, before: Mapping[str, Any], names: set[str] | None, agent_ids: set[str]) -> None:
        """Add to `agent_ids` the agents that are affected by a change of these fields (None: all) of a record."""

    def reassigned(self, agent_id: str, number: int) -> None:
        """The agent's assignments have changed; it is notified once the change with this number is durable."""


class Transaction:
    def __init__(self, state: Changeable, now: Now, actor: str, wait: Wait) -> None:
        self.now = now
        self.actor = actor
        self._state = state
        self.wait = wait  # may be changed until the end of the block
        self._before: dict[int, tuple[Record, dict[str, object]]] = {}
        self._added: dict[int, Record] = {}
        self._removed: list[Record] = []
        self._other: list[Change] = []
        self._events: list[tuple[str, EventFields]] = []
        self._shown: dict[tuple[str, str], None] = {}
        self._woken: set[str] = set()
        self._after: list[Callable[[], object]] = []
        self._undo: list[Callable[[], object]] = []

    # ------------------------------------------------------------------------------------------ changing

    def edit(self, record: R) -> R:
        """Open the record for changes until the end of this transaction. Returns the same object."""
        writer = record.opened_by
        if writer is None:
            self._before[id(record)] = (record, dict(vars(record)))
            record.open_for(self)
        elif writer is not self and writer is not record:
            raise RuntimeError(f"{record.key} is being changed by another transaction")
        return record

    def add(self, record: Record) -> None:
        """Insert a record into its table; replaces one with the same key."""
        table = self._state.tables_by_name[record.TABLE]
        former = table.rows.get(record.key)
        if former is record:
            return
        record.open_for(self)
        self._added[id(record)] = record
        table.insert(record)
        self._undo.append(lambda: table.delete(record) if former is None else table.insert(former))

    def remove(self, record: Record) -> None:
        """Delete a record from its table."""
        table = self._state.tables_by_name[record.TABLE]
        if table.rows.get(record.key) is record:
            back = table.delete(record)
            self._undo.append(back)
            self._removed.append(record)

    @contextmanager
    def acting_as(self, actor: str) -> Iterator[None]:
        """Context in which changes and events have this actor."""
        before, self.actor = self.actor, actor
        try:
            yield
        finally:
            self.actor = before

    def put(self, table: str, key: str, body: StoredRecord | None) -> None:
        """Store a row of a table without records (operations, groups); None deletes it."""
        self._other.append((table, key, body))

    def undo(self, step: Callable[[], object]) -> None:
        """Register a step that reverts a change outside the records if the transaction fails."""
        self._undo.append(step)

    # ------------------------------------------------------------------------------------------ events

    def event(self, kind: str, **about: Unpack[EventFields]) -> None:
        """Add an event with the current time and, unless `about` has another, the transaction's actor
        (history/events.py)."""
        about.setdefault("actor", self.actor)
        self._events.append((kind, about))

    def show(self, topic: Literal["workers", "hosts", "operations"], item_id: str) -> None:
        """Publish this item even if its record is unchanged; changed workers and agents are always published."""
        self._shown[topic, item_id] = None

    def wake(self, agent_id: str) -> None:
        """Notify this agent of new changes at the end of the block."""
        self._woken.add(agent_id)

    def once_over(self, step: Callable[[], object]) -> None:
        """Register a step that runs after the commit, whether or not it succeeded."""
        self._after.append(step)

    @property
    def has_news(self) -> bool:
        """Whether the transaction has changes or events to commit."""
        return bool(self._events or self._added or self._removed or self._other or self._changed_records())

    @property
    def size(self) -> int:
        """The number of records changed so far."""
        return len(self._added) + len(self._removed) + len(self._other) + len(self._changed_records())

    def changes_only(self, record: Record, names: frozenset[str]) -> bool:
        """Whether nothing has changed so far but these fields of this record."""
        return self.size == 1 and all(one is record and found <= names for one, _, found in self._changed_records())

    # ------------------------------------------------------------------------------------------ leaving

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, _exc: BaseException | None, _tb: TracebackType | None) -> None:
        if kind is not None:
            self._take_back()
        else:
            self._finish()

    def _take_back(self) -> None:
        for step in reversed(self._undo):
            step()
        for record, before in self._before.values():
            record.close_with(before)
        for record in self._added.values():
            record.leave()

    def _changed_records(self) -> list[tuple[Record, dict[str, object], set[str]]]:
        """(record, its values before, the names of those that differ)."""
        found = []
        for record, before in self._before.values():
            values = vars(record)
            names = {name for name, was in before.items() if values[name] is not was and values[name] != was}
            if names:
                found.append((record, before, names))
        return found

    def _finish(self) -> None:
        state, bus = self._state, self._state.bus
        if not (self._before or self._added or self._removed or self._other or self._events or self._woken):
            self._publish()  # the usual case after a heartbeat
            return
        changes, concerned = list(self._other), set[str]()
        for record in self._removed:
            if record.key not in state.tables_by_name[record.TABLE].rows:
                changes.append((record.TABLE, record.key, None))
            state.concerned(record, {}, None, concerned)
            self._show_record(record, None)
        for record, before, names in self._changed_records():
            if state.tables_by_name[record.TABLE].rows.get(record.key) is record:
                changes.append((record.TABLE, record.key, record.stored()))
                state.concerned(record, before, names, concerned)
                self._show_record(record, names)
        for record in self._added.values():
            if state.tables_by_name[record.TABLE].rows.get(record.key) is record:
                changes.append((record.TABLE, record.key, record.stored()))
                state.concerned(record, {}, None, concerned)
                self._show_record(record, None)
        for record, _ in self._before.values():
            record.close()
        for record in self._added.values():
            record.close()
        for kind, about in self._events:
            state.event_log.add(kind, self.now, **about)
        if changes:
            number = state.durability.hand_in(changes)
            for agent_id in concerned:
                state.reassigned(agent_id, number)
        refused = self._refused() if changes or self._events else None
        for event in state.event_log.take_unpublished():
            bus.events(event)
        self._publish()
        for agent_id in concerned | self._woken:
            bus.news(agent_id)
        if refused is not None:
            raise refused

    def _publish(self) -> None:
        for topic, item_id in self._shown:
            self._state.bus.topics[topic](item_id)
        for step in self._after:
            step()

    def _show_record(self, record: Record, names: set[str] | None) -> None:
        """`names`: the changed fields; None if the record was added or removed."""
        if record.SHOWN_IN and (names is None or not names <= record.UNSHOWN):
            self._shown[record.SHOWN_IN, record.key] = None

    def _refused(self) -> NotDurable | None:
        durability = self._state.durability
        if self.wait == "durable" or (self.wait == "tried" and not durability.unwritten):
            try:
                durability.commit()
            except NotDurable as exc:
                return exc if self.wait == "durable" else None  # durability.unwritten says why
        return None
