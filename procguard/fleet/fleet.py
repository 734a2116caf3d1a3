"""The fleet of one manager: its state, and the services that change it. All other code passes messages to the services
and reads their views.

Owns the wiring of the services and the order in which they are restored. Knows neither HTTP nor SSH, and reads no
clock: `now` is passed in.
"""

from __future__ import annotations

from procguard.fleet.agents.credentials import Tokens
from procguard.fleet.agents.log_ranges import LogRanges
from procguard.fleet.agents.log_search import LogSearches
from procguard.fleet.agents.resync import StateResync
from procguard.fleet.agents.service import AgentService
from procguard.fleet.changes import ChangeBus
from procguard.fleet.gangs.controller import Gangs
from procguard.fleet.history.events import EventLog
from procguard.fleet.leadership import Leadership
from procguard.fleet.leases import Leases
from procguard.fleet.model.clock import Now
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.operations.controller import Operations
from procguard.fleet.state import FleetState
from procguard.fleet.store.interface import Store
from procguard.fleet.workers.placement_service import PlacementService
from procguard.fleet.workers.service import WorkerService
from procguard.i18n.reasons import reason_of


class Fleet:
    def __init__(
        self,
        store: Store,
        events: EventLog,
        settings: FleetSettings,
        now: Now,
        bus: ChangeBus | None = None,
        leadership: Leadership | None = None,
    ) -> None:
        """`bus`: subscribers that also receive the changes of the start; `leadership`: with several managers."""
        self.state = state = FleetState(store, events, settings, bus or ChangeBus())
        state.leadership = leadership or state.leadership
        self.leases = Leases(state)
        self.resync = StateResync(state)
        self.placement = PlacementService(state, self.leases)
        self.gangs = Gangs(state, self.leases)
        self.tokens = Tokens(state)
        self.log_searches = LogSearches(state)
        self.log_ranges = LogRanges(state)
        self.agents = AgentService(
            state,
            leases=self.leases,
            gangs=self.gangs,
            placement=self.placement,
            tokens=self.tokens,
            resync=self.resync,
            log_searches=self.log_searches,
            log_ranges=self.log_ranges,
        )
        self.workers = WorkerService(state, self.leases, self.placement, self.gangs)
        loaded = store.load()
        events.restore()
        state.restore(loaded.tables, now)
        self.tokens.restore(loaded.tables.get("tokens", {}))
        self.gangs.groups.restore(loaded.tables.get("groups", {}))
        self.leases.restore(now)
        self.operations = Operations(state, self.workers, loaded.tables, now)
        state.more_tables += [self.gangs.groups.tables, self.operations.tables]
        self.notes = loaded.notes
        # Tables stored beside the fleet: browser sessions, the notifier's cursors, mutes, alerts of rules.
        self.kept_tables = {
            name: loaded.tables.get(name, {}) for name in ("sessions", "notifier", "mutes", "rule_alerts")
        }
        with state.transaction(now, "manager") as tx:
            imported = state.begin_term(tx)
            self.gangs.reconcile(tx)
            for note in loaded.notes:
                tx.event("state", reason=reason_of(note))
        # An imported state may be older than the running fleet.
        if not loaded.intact or imported:
            self.resync.begin(now)

    def close(self) -> None:
        """Commit everything and close the store."""
        self.state.durability.close()
