"""The fleet's state: the tables, the observed status, and queries over both.

Owns the tables and their indexes. Knows no rules and imports none: only services (fleet.py) change it, by
transactions (transaction.py).
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable, Mapping
from typing import Any

from procguard.client.types import HostInfo, WorkerInfo
from procguard.errors import NotFound
from procguard.fleet.agents import host_disks
from procguard.fleet.changes import ChangeBus, Signal
from procguard.fleet.durability import Durability
from procguard.fleet.gangs import views as gang_views
from procguard.fleet.gangs.decider import GangRecord
from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import Event, EventQuery
from procguard.fleet.leadership import Leadership, SoleManager
from procguard.fleet.model import epochs
from procguard.fleet.model.clock import Now
from procguard.fleet.model.epochs import EPOCHS_PER_TERM, next_term, term_above
from procguard.fleet.model.records import (
    KNOWN_STATES,
    AgentObserved,
    AgentRecord,
    CommandRecord,
    FleetRecord,
    Record,
    WorkerObserved,
    WorkerRecord,
    fenced,
)
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.recovery.incident import Incident
from procguard.fleet.shapes import views as shapes
from procguard.fleet.shapes.sources import HostSource, WorkerSource
from procguard.fleet.store.interface import Store, Tables
from procguard.fleet.tables import RecordTable
from procguard.fleet.transaction import Transaction, Wait
from procguard.fleet.workers import views
from procguard.fleet.workers.command_queue import CommandQueue
from procguard.fleet.workers.selectors import WorkerFacts
from procguard.i18n.reasons import NONE, Reason, because
from remote_agent.protocol import messages


class FleetState:
    def __init__(self, store: Store, events: EventLog, settings: FleetSettings, bus: ChangeBus) -> None:
        self.store = store
        self.event_log = events
        self.durability = Durability(store, events)
        self.durability.written_again = self._written_again
        self.settings = settings
        self.bus = bus
        self.leadership: Leadership = SoleManager()
        self.instance_id = secrets.token_hex(6)  # the live protocol's epoch: a new one for each run of the manager
        self._agents = RecordTable[AgentRecord]("agents", self._index_agent, self._unindex_agent)
        self._workers = RecordTable[WorkerRecord]("workers", self._index_worker, self._unindex_worker)
        self._gangs = RecordTable[GangRecord]("gangs")
        self._fleets = RecordTable[FleetRecord]("fleet")
        self.command_queue = CommandQueue(bus)
        self.tables_by_name: dict[str, RecordTable[Any]] = {}
        for table in (self._fleets, self._agents, self._workers, self._gangs, self.command_queue.table):
            self.add_table(table)
        # Called within the transaction of the failure, so that its consequences are durable together with it.
        self.failing = Signal[[Transaction, WorkerRecord]]()
        self.agents_by_id = self._agents.rows
        self.workers_by_id = self._workers.rows
        self.gang_records = self._gangs.rows  # keyed by group
        self.more_tables: list[Callable[[], Tables]] = []  # tables of services that store data other than records
        self.agent_status: dict[str, AgentObserved] = {}
        self.worker_status: dict[str, WorkerObserved] = {}
        self.fresh_reports: set[str] = set()  # workers reported since the last monitoring round, which clears it
        self.faulty_gpus: set[str] = set()  # agents with GPU faults that recovery/gpu_failures.py has not seen
        self.agent_by_secret: dict[str, str] = {}
        self.agent_by_new_secret: dict[str, str] = {}  # by digest: new secrets that have not been used yet
        self.workers_version = 0  # rises when a worker or its specification is added, changed or removed
        self._workers_of: dict[str, dict[str, WorkerRecord]] = {}  # by agent: queried by every heartbeat
        self._digests: dict[str, tuple[messages.WorkerSpec, str]] = {}  # of launches, by worker
        self._first_term = 0
        self._imported = False
        self._incidents: Callable[[], list[Incident]] = list

    def add_table(self, table: RecordTable[Any]) -> None:
        self.tables_by_name[table.name] = table

    def transaction(self, now: Now, actor: str = "", wait: Wait = "durable") -> Transaction:
        """Open a transaction, the only way to change durable state (transaction.py)."""
        return Transaction(self, now, actor, wait)

    # ------------------------------------------------------------------------------------------ identity

    def restore(self, tables: Tables, now: Now) -> None:
        """Load the state from the store."""
        found = tables.get("fleet", {}).get("fleet")
        if found is None:
            found = {"fleet_id": "f-" + secrets.token_hex(5), "fleet_key": secrets.token_hex(32), "term": 0}
        self._imported = bool(found.get("imported"))
        self._fleets.restore([FleetRecord.restored(found)])
        self._agents.restore(AgentRecord.restored(data) for data in tables.get("agents", {}).values())
        reported = host_disks.last_reported(self.event_log)
        for agent in self.agents_by_id.values():
            observed = self.agent_status[agent.agent_id]
            observed.disk_trouble = reported.get(agent.host, "")
            if agent.ended_wall:
                observed.state, observed.last_seen_wall = "ended", agent.ended_wall
        self._workers.restore(WorkerRecord.restored(data) for data in tables.get("workers", {}).values())
        self._gangs.restore(GangRecord.restored(data) for data in tables.get("gangs", {}).values())
        self.command_queue.restore((CommandRecord.restored(data) for data in tables.get("commands", {}).values()), now)

    def begin_term(self, tx: Transaction) -> bool:
        """Begin a new term, one per run: epochs of an earlier run are never granted again, even if the state lost
        them. Returns whether this state was imported (invoke state import)."""
        fleet = tx.edit(self._fleet)
        fleet.term, fleet.n = next_term(fleet.term, tx.now.wall), 0
        self._first_term = fleet.term
        imported, self._imported = self._imported, False
        return imported

    @property
    def _fleet(self) -> FleetRecord:
        return self._fleets.rows["fleet"]

    @property
    def fleet_id(self) -> str:
        return self._fleet.fleet_id

    def proof_key(self, agent_id: str) -> str:
        """The key with which this agent verifies its manager. It differs per agent, so that no agent can impersonate
        the manager."""
        agent = self.agents_by_id.get(agent_id)
        return epochs.proof_key_of(self._fleet.fleet_key, agent_id, agent.key_generation if agent is not None else 0)

    @property
    def stopped_by(self) -> str:
        """Why the whole fleet is held stopped (recovery.stop_all_on_failure); "": it is not. While set, new workers
        are declared stopped."""
        return self._fleet.stopped_by

    def hold_stopped(self, tx: Transaction, reason: Reason) -> None:
        """Set the reason why the fleet is held stopped; "" lifts it."""
        tx.edit(self._fleet).stopped_by = reason

    @property
    def rebuilt(self) -> bool:
        """Whether this state was rebuilt for a running fleet (invoke state.rebuild) and some hosts have not been read
        since: unknown workers may be running on them."""
        return self._fleet.rebuilt

    def all_read(self, tx: Transaction) -> None:
        """Record that every host of the rebuilt fleet has been read."""
        tx.edit(self._fleet).rebuilt = False

    def next_epoch(self, tx: Transaction) -> int:
        fleet = tx.edit(self._fleet)
        if fleet.n + 1 >= EPOCHS_PER_TERM:
            fleet.term, fleet.n = fleet.term + 1, 0
        fleet.n += 1
        return fleet.term * EPOCHS_PER_TERM + fleet.n

    def rise_above(self, tx: Transaction, epoch: int) -> None:
        """Raise the epoch counter above a granted epoch. An epoch higher than any granted by this state shows that
        state was lost."""
        if self._fleet.term < term_above(epoch):
            fleet = tx.edit(self._fleet)
            fleet.term, fleet.n = term_above(epoch), 0

    @property
    def term(self) -> int:
        return self._fleet.term

    @property
    def first_epoch(self) -> int:
        """The first epoch of this run of the manager; those of earlier runs are lower unless the clock was set back."""
        return self._first_term * EPOCHS_PER_TERM

    def grant(self, worker_id: str, epoch: int, agent_id: str) -> str:
        return epochs.grant(self._fleet.fleet_key, worker_id, epoch, agent_id)

    def proves(self, agent_id: str, report: messages.WorkerReport) -> bool:
        """Whether the grant that `agent_id` reports is valid: signed by this fleet's manager for the worker, epoch and
        agent."""
        given = report.grant.encode(errors="surrogatepass")
        return hmac.compare_digest(given, self.grant(report.worker_id, report.epoch, agent_id).encode())

    # ------------------------------------------------------------------------------------------ queries

    def workers(self) -> list[WorkerInfo]:
        return [self.worker_view(worker) for worker in self.workers_by_id.values()]

    def worker(self, worker_id: str) -> WorkerInfo:
        return self.worker_view(self.find(worker_id))

    def hosts(self) -> list[HostInfo]:
        return [self.host_view(agent_id) for agent_id in self.agents_by_id]

    def incidents(self) -> list[Incident]:
        """Incidents of silent agents, newest first (kept by the failure handler)."""
        return self._incidents()

    def show_incidents(self, source: Callable[[], list[Incident]]) -> None:
        self._incidents = source

    def command_view(self, command_id: str) -> views.CommandView:
        record = self.command_queue.get(command_id)
        if record is None:
            raise NotFound(f"no command {command_id!r}", "it may have been deleted; see GET /api/events")
        return views.command_view(record, self.command_queue.status(record))

    def commands(self, worker_id: str = "", limit: int = 50) -> list[views.CommandView]:
        """The newest commands, of one worker or of all, newest first."""
        return [
            views.command_view(record, self.command_queue.status(record))
            for record in self.command_queue.recent(worker_id, limit)
        ]

    def events(
        self, after: int = 0, worker: str | None = None, host: str | None = None, limit: int = 200
    ) -> list[Event]:
        return self.event_log.query(after, worker, host, limit)

    def find_events(self, query: EventQuery, limit: int) -> list[Event]:
        return self.event_log.search(query, limit)

    def own_workers(self, agent_id: str) -> Mapping[str, WorkerRecord]:
        return self._workers_of.get(agent_id, {})

    def workers_of(self, agent_id: str) -> list[WorkerRecord]:
        return list(self._workers_of.get(agent_id, {}).values())

    def interval_s(self, agent_id: str) -> float:
        """The agent's heartbeat interval: derived from the fleet's size, at most a third of its leases."""
        observed, agents = self.agent_status[agent_id], len(self.agents_by_id)
        if observed.interval is None or observed.interval[0] is not self.settings or observed.interval[1] != agents:
            shortest_s = self.settings.interval_for(agents)
            for worker in self._workers_of.get(agent_id, {}).values():
                if fenced(worker):
                    shortest_s = min(shortest_s, worker.spec.lease_s / 3)
            observed.interval = (self.settings, agents, max(0.2, shortest_s))
        return observed.interval[2]

    def find(self, worker_id: str) -> WorkerRecord:
        worker = self.workers_by_id.get(worker_id)
        if worker is None:
            raise NotFound(
                f"no worker {worker_id!r}",
                "list them: curl …/api/remote-workers, or invoke status",
                code="unknown_worker",
            )
        return worker

    def agent(self, agent_id: str) -> AgentRecord:
        agent = self.agents_by_id.get(agent_id)
        if agent is None:
            raise NotFound(f"no agent {agent_id!r}", "list them: invoke agents", code="unknown_agent")
        return agent

    def worker_view(self, worker: WorkerRecord) -> WorkerInfo:
        return shapes.worker_view(self.worker_source(worker))

    def worker_source(self, worker: WorkerRecord, wall: float = 0.0) -> WorkerSource:
        """The source of the worker's fields (fleet/shapes). `wall`: Unix seconds, for the time of its next start."""
        record = self.gang_records.get(worker.spec.group) if worker.gang else None
        gang = gang_views.of_member(record, worker) if record is not None else None
        agent, reason = self.agent_status[worker.agent_id], self.agent_reason(worker.agent_id)
        return WorkerSource(worker, self.worker_status[worker.worker_id], agent, reason, gang, self.launch_digest, wall)

    def launch_digest(self, worker: WorkerRecord) -> str:
        """The launch digest of the declared specification, computed once per specification, which is immutable."""
        known = self._digests.get(worker.worker_id)
        if known is None or known[0] is not worker.spec:
            known = self._digests[worker.worker_id] = (worker.spec, messages.launch_digest(worker.spec))
        return known[1]

    def agent_reason(self, agent_id: str) -> Reason:
        """The reason for the agent's state."""
        observed = self.agent_status[agent_id]
        return observed.reason or (because("agent.never") if observed.state == "never" else NONE)

    def worker_of_launcher(self, agent: AgentRecord) -> str:
        """The worker of a launcher; "" for an agent. Several launchers may share a host, so events of a launcher
        belong to its worker."""
        return next(iter(self._workers_of.get(agent.agent_id, ())), "") if agent.kind == "launcher" else ""

    def worker_count(self, agent_id: str) -> int:
        return len(self._workers_of.get(agent_id, ()))

    def facts(self, worker: WorkerRecord) -> WorkerFacts:
        """The facts that selectors match: a hundredth of the cost of a view, for ten thousand workers at once."""
        agent = self.agent_status[worker.agent_id].state
        state, _ = views.observed_state(
            worker, self.worker_status[worker.worker_id], agent_reachable=agent in KNOWN_STATES
        )
        return {
            "worker_id": worker.worker_id,
            "state": state,
            "desired": worker.desired,
            "host": worker.host,
            "agent": worker.agent_id,
            "group": worker.spec.group,
            "labels": worker.spec.labels,
        }

    def host_view(self, agent_id: str) -> HostInfo:
        return shapes.host_view(self.host_source(agent_id))

    def host_source(self, agent_id: str) -> HostSource:
        return HostSource(self.agents_by_id[agent_id], self.agent_status[agent_id], self.worker_count(agent_id))

    def show_agent(self, tx: Transaction, agent_id: str) -> None:
        """Invalidate the views of an agent and its workers."""
        tx.show("hosts", agent_id)
        for worker_id in self._workers_of.get(agent_id, ()):
            tx.show("workers", worker_id)

    def command_event(self, tx: Transaction, record: CommandRecord) -> None:
        """Add an event for a command's new status."""
        worker = self.workers_by_id.get(record.worker_id)
        why = record.reason if record.status == "accepted" else record.message
        what = {"verb": record.command, "status": record.status}
        more = {"from": record.origin} if record.origin else {}
        if record.operation_id:
            more["operation_id"] = record.operation_id
        tx.event(
            "command",
            worker_id=record.worker_id,
            host=worker.host if worker else "",
            after=record.status,
            reason=because("command.status_why", why=why, **what) if why else because("command.status", **what),
            actor=record.actor,
            attempt=record.attempt,
            evidence={"command_id": record.command_id, "command": record.command, **more},
        )

    # ------------------------------------------------------------------------------------------ indexes

    def _index_agent(self, agent: AgentRecord) -> None:
        self.agent_status.setdefault(agent.agent_id, AgentObserved())
        if agent.secret_sha256:
            self.agent_by_secret[agent.secret_sha256] = agent.agent_id
        if agent.next_sha256:
            self.agent_by_new_secret[agent.next_sha256] = agent.agent_id

    def _unindex_agent(self, agent: AgentRecord) -> Callable[[], object]:
        observed = self.agent_status.pop(agent.agent_id)
        self.agent_by_secret.pop(agent.secret_sha256, None)
        self.agent_by_new_secret.pop(agent.next_sha256, None)

        def back() -> None:
            self.agent_status[agent.agent_id] = observed
            self._index_agent(agent)

        return back

    def set_secrets(
        self, tx: Transaction, agent: AgentRecord, *, secret_sha256: str | None = None, next_sha256: str = ""
    ) -> None:
        """Set the digests that authenticate an agent. `secret_sha256` None: keep the current one."""
        self._unindex_secrets(agent)
        before = (agent.secret_sha256, agent.next_sha256)
        tx.edit(agent)
        agent.secret_sha256 = agent.secret_sha256 if secret_sha256 is None else secret_sha256
        agent.next_sha256 = next_sha256
        self._index_agent(agent)

        def back() -> None:
            self._unindex_secrets(agent)
            agent.secret_sha256, agent.next_sha256 = before
            self._index_agent(agent)

        tx.undo(back)

    def _unindex_secrets(self, agent: AgentRecord) -> None:
        self.agent_by_secret.pop(agent.secret_sha256, None)
        self.agent_by_new_secret.pop(agent.next_sha256, None)

    def _index_worker(self, worker: WorkerRecord) -> None:
        self._workers_of.setdefault(worker.agent_id, {})[worker.worker_id] = worker
        self.worker_status.setdefault(worker.worker_id, WorkerObserved())
        self.workers_version += 1

    def _unindex_worker(self, worker: WorkerRecord) -> Callable[[], object]:
        observed = self.worker_status.pop(worker.worker_id)
        self._workers_of.get(worker.agent_id, {}).pop(worker.worker_id, None)
        self._digests.pop(worker.worker_id, None)
        self.workers_version += 1

        def back() -> None:
            self.worker_status[worker.worker_id] = observed
            self._index_worker(worker)

        return back

    def give_to(self, tx: Transaction, worker: WorkerRecord, agent_id: str, host: str) -> None:
        """Change the owner of a worker in the tables. The caller adds the event."""
        before, observed = worker.agent_id, self.worker_status[worker.worker_id]
        tx.edit(worker)
        self._place(worker, agent_id)
        worker.host = host
        report, status = observed.report, observed.recovery_status
        observed.report = observed.recovery_status = None

        def back() -> None:
            self._place(worker, before)
            observed.report, observed.recovery_status = report, status

        tx.undo(back)

    def _place(self, worker: WorkerRecord, agent_id: str) -> None:
        self._workers_of.get(worker.agent_id, {}).pop(worker.worker_id, None)
        self._workers_of.setdefault(agent_id, {})[worker.worker_id] = worker
        worker.agent_id = agent_id

    def owner_of_secret(self, secret_sha256: str) -> str | None:
        """The agent that this secret belongs to, including secrets that have not been used yet. Read-only."""
        return self.agent_by_secret.get(secret_sha256) or self.agent_by_new_secret.get(secret_sha256)

    # ------------------------------------------------------------------------------------------ after a change

    def concerned(self, record: Record, before: Mapping[str, Any], names: set[str] | None, agent_ids: set[str]) -> None:
        """Add to `agent_ids` the agents affected by a change of these fields (None: all) of a record."""
        if isinstance(record, WorkerRecord):
            if names is None or names & WorkerRecord.ASSIGNED:
                agent_ids.update((record.agent_id, before.get("agent_id", record.agent_id)))
            if names is not None and names & {"spec", "desired", "agent_id"}:
                self.workers_version += 1
        elif isinstance(record, AgentRecord):
            if names is None or "withdrawn" in names:
                agent_ids.add(record.agent_id)
        elif isinstance(record, CommandRecord) and names is None and record.open and not record.by_manager:
            agent_ids.add(record.agent_id)

    def reassigned(self, agent_id: str, number: int) -> None:
        """The agent's assignments have changed; they are sent once the commit of this number is durable."""
        observed = self.agent_status.get(agent_id)
        if observed is not None:
            observed.rev, observed.interval, observed.last_change = "", None, number

    def make_durable_for(self, agent_id: str) -> None:
        """Wait until everything that the next reply to this agent contains is durable, so that an epoch it has
        received is never granted again. Returns at once if nothing of the agent's is new."""
        while (observed := self.agent_status.get(agent_id)) is not None and not self.durability.wait_for(
            observed.last_change
        ):
            pass

    def _written_again(self) -> None:
        for agent_id in list(self.agent_status):
            self.reassigned(agent_id, self.agent_status[agent_id].last_change)
            self.bus.news(agent_id)

    def keep_in_place(self, now: Now) -> bool:
        """Restore the state's files if they are missing (durability.py). Returns whether they were. Raises
        NotDurable."""
        how = self.durability.keep_in_place(self.tables)
        if how:
            with self.transaction(now, "manager", wait="nothing") as tx:
                displaced = because("state.displaced", why=self.store.displaced_reason, how=how)
                tx.event("state", reason=displaced)
        return bool(how)

    def tables(self) -> Tables:
        """The current value of every durable record."""
        found: Tables = {name: table.stored() for name, table in self.tables_by_name.items()}
        for tables in self.more_tables:
            found.update(tables())
        return found
