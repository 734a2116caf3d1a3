"""The live feed: each change is encoded once and shared by all clients subscribed to its topic.

Protocol (docs/protocol.md): hello{proto, epoch}; client sub{topic, seq}; then snap{seq, items} and deltas{seq, prev,
set, del} of absolute values. A client whose seq is still in the short history gets the missed deltas instead of a
snapshot. Topics: workers, hosts, operations, events; one worker or host in full (worker:<id>, host:<agent>); the lists
as rows:workers and rows:hosts (tables.py); logs:<worker_id>. Knows the fleet's views and change feed, and
connections, but not the callers behind them.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import gevent
import gevent.event

from procguard.agent_api import http_io
from procguard.errors import ProcGuardError
from procguard.fleet.fleet import Fleet
from procguard.fleet.history.query import Event
from procguard.json_types import Json
from procguard.portal.http import frames
from procguard.portal.live import columns
from procguard.portal.live.logs import LogTopic
from procguard.portal.live.tables import RowTopic
from procguard.portal.logs.fetch import TAIL_BYTES
from procguard.portal.logs.reader import Line
from procguard.portal.logs.store import LogStore
from procguard.runtime.cooperative import Pace, yield_to_hub
from remote_agent.protocol import messages

log = logging.getLogger(__name__)

PROTO = 1
MAY_RETURN_S = 30.0  # length of the history from which a reconnecting client gets missed deltas
COALESCE_S = 0.03  # changes within this time are sent in one frame
MEASURES_EVERY_S = 1.0  # the interval of measures in the lists
PART_EVERY_S = 0.05  # the least interval of the parts of many measures
HISTORY_FRAMES = 256
SNAPSHOT_EVENTS = 200
SNAPSHOT_LOG_LINES = 200
MAX_LOG_TOPICS_PER_CLIENT = 32
MAX_SINGLES_PER_CLIENT = 32
OTHER_TOPICS = ("rows:workers", "rows:hosts", "worker:<worker_id>", "host:<agent>", "logs:<worker_id>")


class LiveClient(Protocol):
    """The interface of a connection that the hub needs."""

    def send_frame(self, frame: bytes) -> bool: ...

    def offer_frame(self, frame: bytes) -> bool: ...


def _in_thread(work: Callable[..., bytes], arguments: tuple[Any, ...]) -> bytes:
    done: bytes = gevent.get_hub().threadpool.apply(work, arguments)
    return done


def frame(message: Json) -> bytes:
    return frames.encode(frames.TEXT, http_io.dumps(message))


class Topic:
    """One stream of absolute values with sequence numbers, its subscribers and its short history."""

    def __init__(self, name: str, snapshot: Callable[[], list[Any]], key: str) -> None:
        self.name = name
        self.seq = 1
        self.clients: set[LiveClient] = set()
        self.left_at = float("-inf")  # monotonic time at which the last client left
        self._snapshot = snapshot
        self._key = key
        self._changed: Json = {}  # item id -> its value, or None: gone
        self._history: deque[tuple[int, bytes]] = deque(maxlen=HISTORY_FRAMES)
        self._snapshot_frame: tuple[int, bytes] | None = None

    def change(self, item_id: str, value: Any) -> None:
        self._changed[item_id] = value
        self._snapshot_frame = None

    def skip(self) -> None:
        """Note an uncollected change: the next client needs a snapshot."""
        self.seq += 1
        self._history.clear()
        self._snapshot_frame = None

    def flush(self) -> None:
        """Send what changed since the last flush, encoded once."""
        if not self._changed:
            return
        changed, self._changed = self._changed, {}
        message = {"t": "delta", "topic": self.name, "seq": self.seq + 1, "prev": self.seq, **self._body(changed)}
        self.seq += 1
        encoded = frame(message)
        self._history.append((self.seq, encoded))
        for client in list(self.clients):
            client.send_frame(encoded)

    def _body(self, changed: Json) -> Json:
        present = [value for value in changed.values() if value is not None]
        if self.name == "events":
            return {"add": present}
        return {"set": present, "del": [item_id for item_id, value in changed.items() if value is None]}

    def subscribe(self, client: LiveClient, seq: int) -> None:
        self.flush()  # pending changes are for existing clients and must not be sent twice
        self.clients.add(client)
        for encoded in self._since(seq):
            client.send_frame(encoded)

    def _since(self, seq: int) -> list[bytes]:
        missed = [encoded for number, encoded in self._history if number > seq]
        if seq == self.seq or (0 < seq < self.seq and len(missed) == self.seq - seq):
            return missed
        if self._snapshot_frame is None or self._snapshot_frame[0] != self.seq:
            message = {"t": "snap", "topic": self.name, "seq": self.seq, "key": self._key, "items": self._snapshot()}
            self._snapshot_frame = (self.seq, frame(message))
        return [self._snapshot_frame[1]]


class LiveHub:
    """Collects changes (O(1) each) and sends them from one greenlet."""

    def __init__(self, fleet: Fleet, log_store: LogStore) -> None:
        self._fleet = fleet
        self._log_store = log_store
        self._topics = {
            "workers": Topic("workers", fleet.state.workers, "worker_id"),
            "hosts": Topic("hosts", fleet.agents.views, "agent"),
            "operations": Topic("operations", fleet.operations.views, "operation_id"),
            "events": Topic("events", lambda: fleet.state.events(limit=SNAPSHOT_EVENTS), "seq"),
        }
        self._rows = {
            "workers": RowTopic("rows:workers", columns.WorkerColumns(fleet), Pace(), yield_to_hub, _in_thread),
            "hosts": RowTopic("rows:hosts", columns.HostColumns(fleet), Pace(), yield_to_hub, _in_thread),
        }
        self._singles: dict[str, Topic] = {}  # worker:<id>, host:<agent>: while it has subscribers
        self._log_topics: dict[str, LogTopic] = {}
        self._signal = gevent.event.Event()
        self._greenlet: Any = None

    def start(self) -> None:
        bus = self._fleet.state.bus
        for name, signal in bus.topics.items():
            signal.subscribe(functools.partial(self._on_change, name))
        for name, signal in bus.measures.items():
            signal.subscribe(functools.partial(self._on_measured, name))
        bus.events.subscribe(self._on_event)
        self._log_store.on_append(self._on_log)
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()

    def hello(self) -> bytes:
        message = {"t": "hello", "proto": PROTO, "epoch": self._fleet.state.instance_id}
        managers = list(self._fleet.state.leadership.manager_urls())
        return frame({**message, "managers": managers} if managers else message)

    # ------------------------------------------------------------------------------------------------ changes

    def _on_change(self, topic: str, item_id: str) -> None:
        """A view is created only if it has subscribers."""
        rows, whole = self._rows.get(topic), self._topics[topic]
        seen = rows is not None and rows.mark_changed(item_id)
        single = self._singles.get(f"{topic[:-1]}:{item_id}") if self._singles else None
        listed = self._is_seen(topic)
        view = self._view(topic, item_id) if single is not None or listed else None
        if single is not None:
            single.change(item_id, view)
            seen = True
        if listed:
            whole.change(item_id, view)
            seen = True
        else:
            whole.skip()
        if seen:
            self._signal.set()

    def _on_measured(self, topic: str, item_id: str) -> None:
        """Only measurements have changed: the lists send them once a second and read nothing else."""
        if self._is_seen(topic) or (self._singles and f"{topic[:-1]}:{item_id}" in self._singles):
            self._on_change(topic, item_id)
            return
        rows = self._rows[topic]
        self._topics[topic].skip()
        moving = rows.moving
        if rows.mark_measured(item_id):
            if rows.moving and not moving:  # otherwise the loop runs within a second
                self._signal.set()
        elif not self._singles:
            self._fleet.state.bus.unseen.add(topic)

    def _on_event(self, event: Event) -> None:
        self._topics["events"].change(str(event["seq"]), event)
        self._signal.set()

    def _view(self, topic: str, item_id: str) -> Any:
        """The complete view of a worker, host or operation; None if there is none."""
        try:
            if topic == "workers":
                return self._fleet.state.worker(item_id)
            if topic == "operations":
                return self._fleet.operations.find(item_id)
            return self._fleet.agents.view(item_id)
        except ProcGuardError:
            return None

    def _is_seen(self, name: str) -> bool:
        topic = self._topics[name]
        return bool(topic.clients) or time.monotonic() - topic.left_at < MAY_RETURN_S

    def _loop(self) -> None:
        measured_at = part_at = 0.0
        while True:
            moving = any(rows.moving for rows in self._rows.values())
            in_parts = any(rows.in_parts for rows in self._rows.values())
            self._signal.wait(PART_EVERY_S if in_parts else MEASURES_EVERY_S if moving else None)
            gevent.sleep(COALESCE_S)
            self._signal.clear()
            for topic in [*self._topics.values(), *self._singles.values()]:
                topic.flush()
            for rows in self._rows.values():
                rows.flush()
            awaited = any(rows.awaited for rows in self._rows.values())
            if awaited or time.monotonic() - measured_at >= MEASURES_EVERY_S:
                measured_at = part_at = time.monotonic()
                for rows in self._rows.values():
                    rows.flush_measures()
            elif time.monotonic() - part_at >= PART_EVERY_S:
                part_at = time.monotonic()
                for rows in self._rows.values():
                    rows.send_part()

    def _on_log(self, worker_id: str, attempt: int, stream: str, offset: int, data: bytes, at: float) -> None:
        topic = self._log_topics.get(worker_id)
        if topic is not None:
            topic.append(attempt, stream, offset, data, at)

    # ---------------------------------------------------------------------------------------------- subscribers

    def snapshot(self, name: str) -> bytes | None:
        """The list of workers or hosts as JSON; None for an unknown list."""
        self._fleet.state.bus.unseen.clear()
        rows = self._rows.get(name)
        return rows.snapshot(self._fleet.state.instance_id) if rows is not None else None

    def subscribe(self, client: LiveClient, name: str, seq: int) -> str:
        """ "" or why not."""
        self._fleet.state.bus.unseen.clear()
        topic = self._topics.get(name)
        if topic is not None:
            topic.subscribe(client, seq)
            return ""
        kind, _, item_id = name.partition(":")
        if kind == "rows" and item_id in self._rows:
            self._rows[item_id].subscribe(client, seq)
            self._signal.set()
            return ""
        if kind in ("worker", "host"):
            return self._subscribe_single(client, kind, item_id)
        if kind != "logs" or not messages.valid_id(item_id):
            return f"no topic {name[:80]!r}; there are {', '.join((*self._topics, *OTHER_TOPICS))}"
        return self._subscribe_log(client, item_id)

    def _subscribe_single(self, client: LiveClient, kind: str, item_id: str) -> str:
        if sum(1 for topic in self._singles.values() if client in topic.clients) >= MAX_SINGLES_PER_CLIENT:
            return f"at most {MAX_SINGLES_PER_CLIENT} workers and hosts at once"
        if self._view(f"{kind}s", item_id) is None:
            return f"no {kind} {item_id[:80]!r}"
        name = f"{kind}:{item_id}"

        def snapshot() -> list[Any]:
            view = self._view(f"{kind}s", item_id)
            return [] if view is None else [view]

        topic = self._singles.setdefault(name, Topic(name, snapshot, "worker_id" if kind == "worker" else "agent"))
        topic.subscribe(client, 0)
        return ""

    def _subscribe_log(self, client: LiveClient, worker_id: str) -> str:
        if sum(1 for topic in self._log_topics.values() if client in topic.clients) >= MAX_LOG_TOPICS_PER_CLIENT:
            return f"at most {MAX_LOG_TOPICS_PER_CLIENT} logs at once"
        try:
            self._fleet.state.worker(worker_id)
        except ProcGuardError as exc:
            return str(exc)
        topic = self._log_topics.setdefault(worker_id, LogTopic(worker_id))
        store = self._log_store

        def snapshot() -> list[Line]:
            store.fetch(worker_id, None, None, TAIL_BYTES)
            return [line.as_json() for line in store.beside(store.tail, worker_id, SNAPSHOT_LOG_LINES)]

        topic.begin(client, snapshot)
        return ""

    def grant(self, client: LiveClient, name: str, chars: int) -> None:
        """Grants this client more bytes of a log."""
        topic = self._log_topics.get(name.removeprefix("logs:"))
        if topic is not None and client in topic.clients:
            topic.grant(client, chars)

    def unsubscribe(self, client: LiveClient, name: str) -> None:
        topic = self._topics.get(name)
        if topic is not None:
            if client in topic.clients:
                topic.clients.discard(client)
                topic.left_at = time.monotonic()
            return
        if name.startswith("rows:"):
            rows = self._rows.get(name.removeprefix("rows:"))
            if rows is not None:
                rows.unsubscribe(client)
            return
        single = self._singles.get(name)
        if single is not None:
            single.clients.discard(client)
            if not single.clients:
                del self._singles[name]
            return
        worker_id = name.removeprefix("logs:")
        log_topic = self._log_topics.get(worker_id)
        if log_topic is not None:
            log_topic.leave(client)
            if not log_topic.clients:
                del self._log_topics[worker_id]

    def leave(self, client: LiveClient) -> None:
        logs = [f"logs:{worker_id}" for worker_id in self._log_topics]
        lists = [rows.name for rows in self._rows.values()]
        for name in [*self._topics, *lists, *self._singles, *logs]:
            self.unsubscribe(client, name)
