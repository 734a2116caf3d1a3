"""The fleet's state with its parts: leases, places, gangs, searches, tokens, rotations.

Owns which part knows which other, and the order in which they are restored. Each part works on the tables of state.py
and is handed the other parts that it needs; none imports this module.
"""

from __future__ import annotations

from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.agents.log_search import LogSearches
from procguard.fleet.agents.resync import Inquiry
from procguard.fleet.agents.rotation import Rotations
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.history.events import EventLog
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now
from procguard.fleet.model.records import to_dict
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Store, Tables
from procguard.fleet.workers.places import Places


class FleetParts(FleetState):
    def __init__(self, store: Store, events: EventLog, settings: FleetSettings, now: Now) -> None:
        super().__init__(store, events, settings)
        self.leases = Leases(self)
        self.inquiry = Inquiry(self)
        self.places = Places(self, self.leases)
        self.gangs = Gangs(self, self.leases)
        self.searches = LogSearches(self)
        self.tokens = Tokens(self)
        self.rotations = Rotations(self, self.tokens)
        loaded = store.load()
        events.restore()
        self._restore(loaded.tables, now)
        self.notes = loaded.notes
        for note in loaded.notes:
            self.event_log.add("state", now, reason=note, actor="manager")
        # A state that came from elsewhere may be older than what runs, too.
        if not loaded.intact or self._imported():
            self.inquiry.begin(now)
        self.commit()

    def _restore(self, tables: Tables, now: Now) -> None:
        super()._restore(tables, now)
        self.gangs.restore(tables, now)
        self.leases.restore(now)
        self.tokens.restore(tables.get("tokens", {}))
        self.stored_operations = {name: tables.get(name, {}) for name in ("operations", "operation_items")}

    def tables(self) -> Tables:
        return {
            **super().tables(),
            "tokens": {token.token_id: to_dict(token) for token in self.tokens.all()},
            **self.gangs.tables(),
        }
