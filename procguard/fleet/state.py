"""The fleet's state: the tables, what is only observed, the change feed, and how changes become durable.

Owns the dicts and the store behind them. Knows no rules and imports none: what may change them is in the services
(fleet.py), which all work through this one object.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Callable, Container, Mapping
from typing import Any

from procguard.errors import NotFound
from procguard.fleet.agents import host_disks
from procguard.fleet.gangs import views as gang_views
from procguard.fleet.gangs.decider import GangRecord
from procguard.fleet.history.events import EventLog
from procguard.fleet.history.query import EventQuery
from procguard.fleet.model import epochs
from procguard.fleet.model.clock import Now
from procguard.fleet.model.epochs import EPOCHS_PER_TERM, next_term, term_above
from procguard.fleet.model.records import (
    KNOWN_STATES,
    AgentObserved,
    AgentRecord,
    CommandRecord,
    WorkerObserved,
    WorkerRecord,
    fenced,
    from_dict,
    to_dict,
    worker_from_dict,
)
from procguard.fleet.model.settings import FleetSettings
from procguard.fleet.shapes import views as shapes
from procguard.fleet.shapes.sources import HostSource, WorkerSource
from procguard.fleet.store.interface import Change, NotDurable, Store, Tables
from procguard.fleet.workers import views
from procguard.fleet.workers.command_queue import Outbox
from remote_agent.protocol import messages

HIGHEST_GENERATION = 2**31  # that a report may raise a worker's to: it rises by one with each start or stop
TOPICS = ("workers", "hosts", "operations", "events")  # of the change feed
Listener = Callable[[str, str, "dict[str, Any] | None"], None]


class FleetState:
    def __init__(self, store: Store, events: EventLog, settings: FleetSettings) -> None:
        self.store = store
        self._changes: list[Change] = []
        self.changed = 0  # changes ever made, and how many of them are known to be on disk
        self._durable = 0
        self.event_log = events
        self.settings = settings
        self.instance_id = secrets.token_hex(6)  # the live protocol's epoch: a new one for each run of the manager
        self.agents_by_id: dict[str, AgentRecord] = {}
        self.seen: dict[str, AgentObserved] = {}
        self.workers_by_id: dict[str, WorkerRecord] = {}
        self._workers_of: dict[str, dict[str, WorkerRecord]] = {}  # by agent: every heartbeat asks for them
        self.worker_seen: dict[str, WorkerObserved] = {}
        self.fresh_reports: set[str] = set()  # workers reported since the monitor looked last; the monitor empties it
        self.displaced = False  # the store's files are not where they should be
        self.unwritten = ""  # why the newest changes are not on disk; nothing that is not there is handed out
        self.workers_version = 0  # rises when a worker or its specification comes, changes or goes
        self.gang_records: dict[str, GangRecord] = {}  # by group
        self.outbox = Outbox(lambda record: self.put("commands", record.command_id, record if record.open else None))
        self.agent_by_secret: dict[str, str] = {}
        self.agent_by_new_secret: dict[str, str] = {}  # by the digests of secrets that were not used yet
        self._to_touch: set[str] = set()  # agents, of changes that are not durable yet
        self._listeners: dict[str, list[Listener]] = {topic: [] for topic in TOPICS}
        self.workers_unseen = False  # nobody sees what is measured of workers; who looks again sets it back
        self.awaited_workers: Container[str] = ()  # each report of these matters all the same
        self._lookers: list[Callable[[str], bool]] = []
        self._wakers: list[Callable[[str], None]] = []
        self.failed_hooks: list[Callable[[WorkerRecord, Now], None]] = []
        self._recoveries: Callable[[], list[dict[str, Any]]] = list
        self.poll_lost_hooks: list[Callable[[str], None]] = []
        self.revoked_hooks: list[Callable[[str], None]] = []
        self.more_tables: list[Callable[[], Tables]] = []  # of the services that keep their own
        events.on_event(lambda event: self.notify("events", str(event["seq"]), event))

    # ------------------------------------------------------------------------------------------ identity

    def restore(self, tables: Tables, now: Now) -> None:
        """What the store knows; durable with the next commit."""
        fleet = tables.get("fleet", {}).get("fleet")
        if fleet is None:
            fleet = {"fleet_id": "f-" + secrets.token_hex(5), "fleet_key": secrets.token_hex(32), "term": 0}
        # A term of its own for each run: what a lost file knew of the last one can't be granted again.
        self._fleet: dict[str, Any] = {**fleet, "term": next_term(int(fleet["term"]), now.wall), "n": 0}
        fleet = self._fleet
        self._first_term = int(fleet["term"])
        self.put("fleet", "fleet", fleet)
        for agent_id, data in tables.get("agents", {}).items():
            self._index_agent(from_dict(AgentRecord, data))
            self.seen[agent_id].last_seen_wall = None
            ended_wall = self.agents_by_id[agent_id].ended_wall
            if ended_wall:
                self.seen[agent_id].state, self.seen[agent_id].last_seen_wall = "ended", ended_wall
        told = host_disks.as_told(self.event_log)
        for agent in self.agents_by_id.values():
            self.seen[agent.agent_id].disk_trouble = told.get(agent.host, "")
        for worker_id, data in tables.get("workers", {}).items():
            worker = worker_from_dict(data)
            self.workers_by_id[worker_id] = worker
            self._workers_of.setdefault(worker.agent_id, {})[worker_id] = worker
            self.worker_seen[worker_id] = WorkerObserved()
        self.workers_version += 1
        for data in tables.get("commands", {}).values():
            self.outbox.restore(from_dict(CommandRecord, data), now)

    def imported(self) -> bool:
        """Whether this state came from elsewhere (invoke state import); asked once."""
        return bool(self._fleet.pop("imported", False))

    @property
    def fleet_id(self) -> str:
        return str(self._fleet["fleet_id"])

    def proof_key(self, agent_id: str) -> str:
        """The key by which this one agent recognises its manager; it lets no agent pose as the manager to another."""
        key = str(self._fleet["fleet_key"]).encode()
        agent = self.agents_by_id.get(agent_id)
        anew = f"\0{agent.key_generation}" if agent is not None and agent.key_generation else ""
        return hmac.new(key, b"procguard-agent\0" + (agent_id + anew).encode(), hashlib.sha256).hexdigest()

    @property
    def stopped_by(self) -> str:
        """Why the whole fleet is held stopped (recovery.stop_all_on_failure); "" = it is not. Until an operator starts
        something, what is declared anew is declared stopped."""
        return str(self._fleet.get("stopped_by", ""))

    def hold_stopped(self, reason: str) -> None:
        """Set or, with "", lift it."""
        self._fleet["stopped_by"] = reason
        self.put("fleet", "fleet", self._fleet)

    @property
    def rebuilt(self) -> bool:
        """Whether this state was made anew for a fleet that runs (invoke state.rebuild), and not every host has been
        read since: what it does not know may run somewhere."""
        return bool(self._fleet.get("rebuilt"))

    def all_read(self) -> None:
        """Every host of the rebuilt fleet was read."""
        self._fleet.pop("rebuilt", None)
        self.put("fleet", "fleet", self._fleet)

    def next_epoch(self) -> int:
        if self._fleet["n"] + 1 >= EPOCHS_PER_TERM:
            self._fleet.update(term=self._fleet["term"] + 1, n=0)
        self._fleet["n"] += 1
        self.put("fleet", "fleet", self._fleet)
        return int(self._fleet["term"]) * EPOCHS_PER_TERM + int(self._fleet["n"])

    @property
    def term(self) -> int:
        return int(self._fleet["term"])

    @property
    def first_epoch(self) -> int:
        """Of this run of the manager. Whatever an earlier one granted is lower, unless the clock was set back."""
        return self._first_term * EPOCHS_PER_TERM

    def grant(self, worker_id: str, epoch: int, agent_id: str) -> str:
        return epochs.grant(str(self._fleet["fleet_key"]), worker_id, epoch, agent_id)

    def proves(self, agent_id: str, report: messages.WorkerReport) -> bool:
        """Whether this fleet's manager granted what `agent_id` reports: its worker, under its epoch, to this agent."""
        given = report.grant.encode(errors="surrogatepass")
        return hmac.compare_digest(given, self.grant(report.worker_id, report.epoch, agent_id).encode())

    def rise_above(self, epoch: int) -> None:
        """This epoch was granted. Where it is higher than any granted here, state was lost: the next are higher."""
        if self._fleet["term"] < term_above(epoch):
            self._fleet.update(term=term_above(epoch), n=0)
            self.put("fleet", "fleet", self._fleet)

    # ------------------------------------------------------------------------------------------ queries

    def workers(self) -> list[dict[str, Any]]:
        return [self.worker_view(worker) for worker in self.workers_by_id.values()]

    def worker(self, worker_id: str) -> dict[str, Any]:
        return self.worker_view(self.find(worker_id))

    def hosts(self) -> list[dict[str, Any]]:
        return [self.host_view(agent_id) for agent_id in self.agents_by_id]

    def recoveries(self) -> list[dict[str, Any]]:
        """Incidents of silent agents, newest first (kept by the failure handler)."""
        return self._recoveries()

    def show_recoveries(self, source: Callable[[], list[dict[str, Any]]]) -> None:
        self._recoveries = source

    def command_view(self, command_id: str) -> dict[str, Any]:
        record = self.outbox.get(command_id)
        if record is None:
            raise NotFound(f"no command {command_id!r}", "it may be too old; see GET /api/events")
        return views.command_view(record)

    def commands(self, worker_id: str = "", limit: int = 50) -> list[dict[str, Any]]:
        """The newest commands, of one worker or of all, newest first."""
        return [views.command_view(record) for record in self.outbox.recent(worker_id, limit)]

    def events(
        self, after: int = 0, worker: str | None = None, host: str | None = None, limit: int = 200
    ) -> list[dict[str, Any]]:
        return self.event_log.query(after, worker, host, limit)

    def find_events(self, query: EventQuery, limit: int) -> list[dict[str, Any]]:
        return self.event_log.search(query, limit)

    def own_workers(self, agent_id: str) -> Mapping[str, WorkerRecord]:
        return self._workers_of.get(agent_id, {})

    def workers_of(self, agent_id: str) -> list[WorkerRecord]:
        return list(self._workers_of.get(agent_id, {}).values())

    def interval_s(self, agent_id: str) -> float:
        """How often this agent is to send heartbeats: as the fleet's size allows, and thrice within its leases."""
        seen, agents = self.seen[agent_id], len(self.agents_by_id)
        if seen.interval is None or seen.interval[0] is not self.settings or seen.interval[1] != agents:
            shortest_s = self.settings.interval_for(agents)
            for worker in self._workers_of.get(agent_id, {}).values():
                if fenced(worker):
                    shortest_s = min(shortest_s, worker.spec.lease_s / 3)
            seen.interval = (self.settings, agents, max(0.2, shortest_s))
        return seen.interval[2]

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

    def worker_view(self, worker: WorkerRecord) -> dict[str, Any]:
        return shapes.worker_view(self.worker_source(worker))

    def worker_source(self, worker: WorkerRecord, wall: float = 0.0) -> WorkerSource:
        """What its fields are read from (fleet/shapes); `wall`: Unix seconds, for the moment of its next start."""
        record = self.gang_records.get(worker.spec.group) if worker.gang else None
        gang = gang_views.of_member(record, worker) if record is not None else None
        agent, reason = self.seen[worker.agent_id], self.agent_reason(worker.agent_id)
        return WorkerSource(worker, self.worker_seen[worker.worker_id], agent, reason, gang, wall)

    def agent_reason(self, agent_id: str) -> str:
        """Why this agent is as it is."""
        seen = self.seen[agent_id]
        return seen.reason or (
            "its agent has not been heard since the manager started" if seen.state == "never" else ""
        )

    def worker_of_launcher(self, agent: AgentRecord) -> str:
        """The one worker that a hand-started launcher runs; "" for an agent. Several launchers may share a host: what
        happens to one of them is its worker's own event."""
        return next(iter(self._workers_of.get(agent.agent_id, ())), "") if agent.kind == "launcher" else ""

    def worker_count(self, agent_id: str) -> int:
        return len(self._workers_of.get(agent_id, ()))

    def facts(self, worker: WorkerRecord) -> dict[str, Any]:
        """What selectors ask about: a hundredth of a view, for ten thousand workers at once."""
        agent = self.seen[worker.agent_id].state
        state, _ = views.observed_state(
            worker, self.worker_seen[worker.worker_id], agent_reachable=agent in KNOWN_STATES
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

    def host_view(self, agent_id: str) -> dict[str, Any]:
        return shapes.host_view(self.host_source(agent_id))

    def host_source(self, agent_id: str) -> HostSource:
        return HostSource(self.agents_by_id[agent_id], self.seen[agent_id], self.worker_count(agent_id))

    # ------------------------------------------------------------------------------------------ change feed

    def on_change(self, listener: Listener, *topics: str) -> None:
        """`listener(topic, item_id, view or None)` for these of TOPICS; by default for all. An agent's id is its host's
        item."""
        for topic in topics or TOPICS:
            self._listeners[topic].append(listener)

    def on_look(self, looks: Callable[[str], bool]) -> None:
        """`looks(topic)`: whether anybody sees the views of this topic just now."""
        self._lookers.append(looks)

    def on_wake(self, waker: Callable[[str], None]) -> None:
        """`waker(agent_id)`: this agent's held request has something to answer."""
        self._wakers.append(waker)

    def on_poll_lost(self, hook: Callable[[str], None]) -> None:
        """`hook(agent_id)`: the agent's side closed its held request; a living agent opens another at once."""
        self.poll_lost_hooks.append(hook)

    def on_revoked(self, hook: Callable[[str], None]) -> None:
        """`hook(agent_id)`: nothing that this agent has asked may be answered any more."""
        self.revoked_hooks.append(hook)

    def on_worker_failed(self, hook: Callable[[WorkerRecord, Now], None]) -> None:
        self.failed_hooks.append(hook)

    def notify(self, topic: str, item_id: str, view: dict[str, Any] | None) -> None:
        for listener in self._listeners[topic]:
            listener(topic, item_id, view)

    def notify_shown(self, topic: str, item_id: str, make_view: Callable[[], dict[str, Any]]) -> None:
        """As `notify`, for what every heartbeat changes. While nobody looks the view is not made: listeners get {}."""
        seen = not self._lookers
        for looks in self._lookers:
            seen = seen or looks(topic)
        view = make_view() if seen else {}
        for listener in self._listeners[topic]:
            listener(topic, item_id, view)

    def measures_matter(self, worker_id: str) -> bool:
        """Whether anybody wants to know of a report that differs from the one before in measurements alone."""
        return not self.workers_unseen or worker_id in self.awaited_workers

    def notify_agent(self, agent_id: str) -> None:
        self.notify("hosts", agent_id, self.host_view(agent_id))
        for worker in self.workers_of(agent_id):
            self.notify("workers", worker.worker_id, self.worker_view(worker))

    def command_event(self, record: CommandRecord, now: Now) -> None:
        worker = self.workers_by_id.get(record.worker_id)
        words = record.reason if record.status == "accepted" else record.message
        self.event_log.add(
            "command",
            now,
            worker_id=record.worker_id,
            host=worker.host if worker else "",
            after=record.status,
            reason=f"{record.command} {record.status}" + (f": {words}" if words else ""),
            actor=record.actor,
            attempt=record.attempt,
            evidence={
                "command_id": record.command_id,
                "command": record.command,
                **({"from": record.origin} if record.origin else {}),
            },
        )

    def owner_of_secret(self, secret_sha256: str) -> str | None:
        """Whose secret this is, also one that was not used yet. Changes nothing."""
        return self.agent_by_secret.get(secret_sha256) or self.agent_by_new_secret.get(secret_sha256)

    def drop_new_secret(self, agent: AgentRecord) -> None:
        """Its secret is replaced or ended in another way than by a rotation's last step; stored by the caller."""
        self.agent_by_new_secret.pop(agent.next_sha256, None)
        agent.next_sha256, agent.rotation = "", {}

    # ------------------------------------------------------------------------------------------ leaving the fleet

    def drop_worker(self, worker: WorkerRecord, now: Now, reason: str, actor: str = "") -> None:
        self.workers_version += 1
        self.workers_by_id.pop(worker.worker_id, None)
        self._workers_of.get(worker.agent_id, {}).pop(worker.worker_id, None)
        self.worker_seen.pop(worker.worker_id, None)
        self.put("workers", worker.worker_id, None)
        agent = self.agents_by_id.get(worker.agent_id)
        if agent is not None and agent.kind == "launcher":
            self.drop_agent(worker.agent_id)
        elif agent is not None and reason == "forgotten":
            self.withdraw(agent, worker)
        self.touch(worker.agent_id)
        self.event_log.add(
            "worker_removed", now, worker_id=worker.worker_id, host=worker.host, reason=reason, actor=actor
        )
        self.notify("workers", worker.worker_id, None)

    def drop_agent(self, agent_id: str) -> None:
        agent = self.agents_by_id.pop(agent_id, None)
        if agent is None:
            return
        self.seen.pop(agent_id, None)
        self.agent_by_secret.pop(agent.secret_sha256, None)
        self.drop_new_secret(agent)
        self.put("agents", agent_id, None)
        self.notify("hosts", agent_id, None)

    def withdraw(self, agent: AgentRecord, worker: WorkerRecord) -> None:
        """Tell the agent, now or when it returns, to drop a worker that is no longer its own."""
        agent.withdrawn[worker.worker_id] = {
            "command": worker.spec.command,
            "generation": worker.generation + 1,
            "epoch": worker.epoch,
            # The last attempt whose log this agent may still bring; -1 for a worker that is gone: another of its name
            # begins with attempts of its own.
            "attempts_to": worker.attempt if worker.worker_id in self.workers_by_id else -1,
        }
        self.put("agents", agent.agent_id, agent)
        self.touch(agent.agent_id)

    # ------------------------------------------------------------------------------------------ durability

    @property
    def has_changes(self) -> bool:
        return bool(self._changes)

    def touch(self, agent_id: str, *, wake: bool = True) -> None:
        """This agent's assignments or commands changed; call it after `put`."""
        seen = self.seen.get(agent_id)
        if seen is None:
            return
        seen.rev, seen.interval = "", None
        seen.touched = self.changed
        if wake:
            self.wake(agent_id)

    def touch_once_durable(self, agent_id: str) -> None:
        """The same, with the next commit: it hears nothing of the change before that is on disk."""
        self._to_touch.add(agent_id)

    def wake(self, agent_id: str) -> None:
        """There is something to be told to this agent."""
        for waker in self._wakers:
            waker(agent_id)

    def index_worker(self, worker: WorkerRecord) -> None:
        self.workers_by_id[worker.worker_id] = worker
        self._workers_of.setdefault(worker.agent_id, {})[worker.worker_id] = worker
        self.worker_seen.setdefault(worker.worker_id, WorkerObserved())
        self.store_worker(worker)

    def place_on(self, worker: WorkerRecord, agent_id: str, host: str) -> None:
        """The tables' half of Places.hand_over, which alone calls it."""
        self._workers_of.get(worker.agent_id, {}).pop(worker.worker_id, None)
        self._workers_of.setdefault(agent_id, {})[worker.worker_id] = worker
        if worker.agent_id != agent_id:
            worker.attempts_before = worker.attempt
        worker.agent_id, worker.host = agent_id, host
        worker.epoch, worker.generation, worker.desired = self.next_epoch(), worker.generation + 1, "running"
        worker.leased, worker.lease_bound_s = False, 0.0  # it has not run there yet
        worker.event_seq = 0  # the new host's clock, from which its numbers begin, may be behind the old one's
        worker.moving = {}
        worker.last_state, worker.last_reason = "stopped", f"given to {host}, not heard of from there yet"
        self.worker_seen[worker.worker_id].report = None
        self.worker_seen[worker.worker_id].plight = {}

    def adopt(self, worker: WorkerRecord, agent: AgentRecord, epoch: int, generation: int) -> None:
        """What an agent has of a worker is newer than what the state says: the state lost it. The agent is right."""
        self.rise_above(epoch)
        if worker.agent_id != agent.agent_id:
            before = self.agents_by_id.get(worker.agent_id)
            if before is not None:
                self.withdraw(before, worker)
            self._workers_of.get(worker.agent_id, {}).pop(worker.worker_id, None)
            self._workers_of.setdefault(agent.agent_id, {})[worker.worker_id] = worker
            worker.agent_id, worker.host = agent.agent_id, agent.host
            agent.withdrawn.pop(worker.worker_id, None)
            self.put("agents", agent.agent_id, agent)
            self.worker_seen[worker.worker_id].report = None
            worker.event_seq = 0
        worker.epoch = epoch
        if generation <= HIGHEST_GENERATION:
            worker.generation = max(worker.generation, generation)
        self.put("workers", worker.worker_id, worker)
        self.touch(agent.agent_id)

    def store_worker(self, worker: WorkerRecord) -> None:
        self.workers_version += 1
        self.put("workers", worker.worker_id, worker)
        self.touch(worker.agent_id)
        self.notify("workers", worker.worker_id, self.worker_view(worker))

    def index_agent(self, agent: AgentRecord) -> None:
        self._index_agent(agent)
        self.put("agents", agent.agent_id, agent)
        self.notify("hosts", agent.agent_id, self.host_view(agent.agent_id))

    def _index_agent(self, agent: AgentRecord) -> None:
        self.agents_by_id[agent.agent_id] = agent
        self.seen.setdefault(agent.agent_id, AgentObserved())
        if agent.secret_sha256:
            self.agent_by_secret[agent.secret_sha256] = agent.agent_id
        if agent.next_sha256:
            self.agent_by_new_secret[agent.next_sha256] = agent.agent_id

    def put(self, table: str, key: str, record: Any) -> None:
        self._changes.append((table, key, record if record is None or isinstance(record, dict) else to_dict(record)))
        self.changed += 1

    def commit(self) -> None:
        """Everything changed so far is on disk when this returns. Raises NotDurable."""
        if self.displaced:
            raise NotDurable(self.unwritten, "the manager writes its state again by itself")
        changes, self._changes = self._changes, []
        upto = self.changed
        try:
            self.store.commit(changes, self.event_log.take())
            self._durable = max(self._durable, upto)
        except NotDurable as exc:
            self.unwritten = exc.message
            raise
        to_touch, self._to_touch = self._to_touch, set()
        for agent_id in to_touch:
            self.touch(agent_id)
        if self.unwritten:
            self.unwritten = ""
            for agent_id in list(self.seen):
                self.touch(agent_id)

    def make_durable_for(self, agent_id: str) -> None:
        """Nothing that this agent is told next can be lost: an epoch it hears of is never granted again, whatever
        happens to the manager. Costs nothing where nothing of its own is new."""
        while (seen := self.seen.get(agent_id)) is not None and seen.touched > self._durable:
            self.commit()

    def keep_in_place(self, now: Now) -> bool:
        """Notice that the state's files were deleted, moved away or made read-only: from then on nothing is
        acknowledged (NotDurable).

        A later call goes on where they are back, or writes everything again from memory, and returns True.
        """
        in_place = self.store.in_place()
        if in_place and not self.displaced:
            return False
        if not self.displaced:
            self.displaced = True
            self.unwritten = "the state's files were deleted, moved away or made read-only while the manager runs"
            raise NotDurable(self.unwritten, "the manager writes them again by itself; if it can't, its log says why")
        if not in_place:
            self.store.write_again(self.tables())
        self.displaced = False
        self.commit()
        how = "they are back" if in_place else "they were written again from memory"
        self.event_log.add(
            "state",
            now,
            reason=f"the state's files were deleted, moved away or made read-only; {how}",
            actor="manager",
        )
        return True

    def tables(self) -> Tables:
        """Every durable record as it is now."""
        parts = [tables() for tables in self.more_tables]
        return {
            **{name: table for part in parts for name, table in part.items()},
            "fleet": {"fleet": dict(self._fleet)},
            "agents": {agent.agent_id: to_dict(agent) for agent in self.agents_by_id.values()},
            "workers": {worker.worker_id: to_dict(worker) for worker in self.workers_by_id.values()},
            "commands": {record.command_id: to_dict(record) for record in self.outbox.all_open()},
        }

    def save(self) -> None:
        self.store.save()

    def close(self) -> None:
        try:
            self.commit()
        finally:
            self.store.close()
