"""Makes changes durable: passes them to the store with their events, and tracks the state of the disk.

Owns the numbers of changes made and of changes known to be on disk. Knows the store, no tables and no rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from procguard.fleet.history.events import EventLog
from procguard.fleet.store.interface import Change, Line, NotDurable, Store, Tables
from procguard.i18n.reasons import because


class Durability:
    def __init__(self, store: Store, events: EventLog) -> None:
        self._store = store
        self._events = events
        self._waiting: list[Change] = []  # not passed to the store yet
        self.made = 0  # number of changes made; `_durable`: the number of them known to be on disk
        self._durable = 0
        self.displaced = False  # the store's files are not where they should be
        self.unwritten = ""  # why the newest changes are not on disk; such changes are not sent to agents
        self.written_again: Callable[[], None] = lambda: None  # called once everything is on disk after a failure
        self.lines: Callable[[], list[Line]] = list  # further history lines for the next commit

    def hand_in(self, changes: Iterable[Change]) -> int:
        """Queue changes for the next commit. Returns the number of the last one, for `wait_for`."""
        before = len(self._waiting)
        self._waiting += changes
        self.made += len(self._waiting) - before
        return self.made

    def commit(self) -> None:
        """Commit all queued changes with their events; they are on disk when this returns. Raises NotDurable,
        Fenced."""
        if self.displaced:
            raise NotDurable(self.unwritten, "the manager rewrites its state automatically")
        changes, self._waiting = self._waiting, []
        upto = self.made
        try:
            self._store.commit(changes, [*self._events.take(), *self.lines()])
            self._durable = max(self._durable, upto)
        except NotDurable as exc:
            self.unwritten = exc.message
            raise
        if self.unwritten:
            self.unwritten = ""
            self.written_again()

    def wait_for(self, number: int) -> bool:
        """Ensure that change `number` is on disk. True if it already was. Raises NotDurable."""
        if number <= self._durable:
            return True
        self.commit()
        return False

    def keep_in_place(self, tables: Callable[[], Tables]) -> str:
        """Check whether the state's files were deleted, moved away or made read-only. If so, nothing is acknowledged
        from then on (NotDurable).

        A later call continues if they are back, otherwise writes everything again from memory, and returns a message
        about it; "" if nothing was wrong.
        """
        in_place = self._store.in_place()
        if in_place and not self.displaced:
            return ""
        if not self.displaced:
            self.displaced, self.unwritten = True, self._store.displaced_reason
            raise NotDurable(self.unwritten, "the manager rewrites them automatically; if that fails, see its log")
        if not in_place:
            self._store.write_again(tables())
        self.displaced = False
        self.commit()
        return because("state.files_back") if in_place else because("state.files_written")

    def save(self) -> None:
        self._store.save()

    def close(self) -> None:
        try:
            self.commit()
        finally:
            self._store.close()
