"""Limits connections: how many may be open, which one to close when there are too many, and how long one may be idle.

A connection is unproven until a request on it was identified as an agent's or a token's. Only unproven connections
have limits per address and can be evicted, the longest idle one first, so that a thousand agents behind one address
are not limited and a client that opens many silent connections evicts its own. Owns the counts; how to cut a
connection is passed in.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, Protocol, TypeVar

import gevent

from procguard.admission.turns import Share
from procguard.config.limits import WebLimits
from procguard.fleet.agents.addresses import address_group

Connection = TypeVar("Connection", bound=Hashable)
Cut = Callable[[], None]


def _nothing() -> None:
    """Replaces `cut` of a connection that has ended."""


# After a restart of the manager, a thousand agents behind one NAT may connect at the same time. A connection is not
# evicted before it had time to send a request, unless there are many times more unproven connections than the limit.
TIME_TO_SPEAK_S = 1.0
HARD = 4
UNSHARED_WORK = 40  # of a new connection, so that the request that identifies an agent does not wait for strangers
CHECKS_PER_TIMEOUT = 15  # a timeout is detected at most this fraction of its duration late
REST_EVERY = 2_000  # connections checked without a pause: well under a millisecond


class Unproven(Generic[Connection]):
    """Unidentified connections, oldest first, per address and in total."""

    def __init__(self, most: int, most_of_address: int, grace_s: float = 0.0) -> None:
        """`most`, `most_of_address`: numbers of connections. `grace_s`: a connection younger than this is not evicted,
        unless there are HARD times more than the limit."""
        self._most, self._most_of_address, self._grace_s = most, most_of_address, grace_s
        self._all: OrderedDict[Connection, tuple[str, float]] = OrderedDict()  # address, monotonic
        self._of_address: dict[str, OrderedDict[Connection, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    @property
    def oldest(self) -> Connection | None:
        return next(iter(self._all), None)

    def add(self, connection: Connection, address: str, now: float) -> list[tuple[Connection, str]]:
        """Add a connection. Returns the connections to evict, which are already removed here, each with the name of the
        limit that was exceeded."""
        self.remove(connection)  # in case a file descriptor is reused
        address = address_group(address)
        self._all[connection] = (address, now)
        neighbours = self._of_address.setdefault(address, OrderedDict())
        neighbours[connection] = None
        gone: list[tuple[Connection, str]] = []
        for among, most, limit in (
            (neighbours, self._most_of_address, "unproven_per_address"),
            (self._all, self._most, "unproven_connections"),
        ):
            while len(among) > most:
                oldest = next(iter(among))
                if now - self._all[oldest][1] < self._grace_s and len(among) <= most * HARD:
                    break
                self.remove(oldest)
                gone.append((oldest, limit))
        return gone

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended or has been identified; unknown ones are ignored."""
        address, _ = self._all.pop(connection, (None, 0.0))
        if address is not None:
            neighbours = self._of_address[address]
            del neighbours[connection]
            if not neighbours:
                del self._of_address[address]


class ConnectionHandle:
    """One HTTP connection. `caller`: set by its first identified request. `evicted`: whether it was closed to make
    room. `share`: the work per iteration of the event loop that it shares with the caller's other connections, or with
    all strangers."""

    __slots__ = ("_book", "_unshared_work", "caller", "cut", "evicted", "share")

    def __init__(self, book: ConnectionLimiter, cut: Cut) -> None:
        self._book = book
        self.cut = cut
        self.caller = ""
        self.evicted = False
        self.share = book.strangers_share
        self._unshared_work = UNSHARED_WORK

    def spend(self, work: int) -> None:
        """Account for work done for this connection's peer (units: see turns.py). May yield until a later iteration of
        the event loop."""
        if self._unshared_work > 0:
            self._unshared_work -= work
        else:
            self.share.spend(work)

    def prove(self, caller: str, agent: bool) -> None:
        """A request on this connection was identified as one of `caller`. `agent`: whether that is an agent."""
        if self.caller != caller:
            self._book.proven(self, caller, agent)

    def leave(self) -> None:
        self._book.left(self)
        self.cut = _nothing  # breaks the reference cycle with the connection, which would stay in memory


class _Caller:
    """The proven connections of one caller, and the share of work that they have in common."""

    __slots__ = ("handles", "share")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.handles: dict[ConnectionHandle, None] = {}  # oldest first


class ConnectionLimiter:
    """All HTTP connections of a manager, of all its listeners."""

    def __init__(self, limits: WebLimits, most: int | None = None) -> None:
        """`most`: maximum number of connections, if the operating system allows fewer than `limits`."""
        self._limits = limits
        self.most = limits.connections if most is None else min(most, limits.connections)
        self._all = 0
        self._unproven: Unproven[ConnectionHandle] = Unproven(
            limits.unproven_connections, limits.unproven_per_address, TIME_TO_SPEAK_S
        )
        self._callers: dict[str, _Caller] = {}  # those with proven connections
        self.strangers_share = Share()
        self.refused: Counter[str] = Counter()  # for /metrics: name of the limit -> number of refusals

    def __len__(self) -> int:
        return self._all

    @property
    def unproven_count(self) -> int:
        return len(self._unproven)

    def admit(self, address: str, cut: Cut, now: float) -> ConnectionHandle | None:
        """Admit a new connection. `cut`: closes it. Returns None if the total is reached; then the oldest unproven
        connection is evicted, so that there is room for a later one."""
        if self._all >= self.most:
            self._evict(self._unproven.oldest, "connections")  # its place is free once it has ended
            self.refused["connections"] += 1
            return None
        handle = ConnectionHandle(self, cut)
        self._all += 1
        for another, limit in self._unproven.add(handle, address, now):
            self._evict(another, limit)
        return handle

    def proven(self, handle: ConnectionHandle, caller: str, agent: bool) -> None:
        if handle.evicted:
            return
        known = self._callers.get(caller)
        if known is None:
            known = self._callers[caller] = _Caller(Share(self.strangers_share))
            if handle.caller:
                known.share.go_on_from(handle.share)
        self._forget(handle)
        handle.caller, handle.share = caller, known.share
        known.handles[handle] = None
        if agent and len(known.handles) > self._limits.connections_per_agent:
            self._evict(next(iter(known.handles)), "connections_per_agent")

    def left(self, handle: ConnectionHandle) -> None:
        self._all -= 1
        self._forget(handle)

    def _evict(self, handle: ConnectionHandle | None, limit: str) -> None:
        if handle is not None:
            handle.evicted = True
            self._forget(handle)
            self.refused[limit] += 1
            handle.cut()

    def _forget(self, handle: ConnectionHandle) -> None:
        """Remove a connection from all lists; it is counted in the total until it has ended."""
        if not handle.caller:
            self._unproven.remove(handle)
            return
        own = self._callers.get(handle.caller)
        if own is not None:
            own.handles.pop(handle, None)
            if not own.handles:
                del self._callers[handle.caller]


class Waiting(Protocol):
    """A connection that may wait for its peer. `waits_since`: monotonic seconds; 0.0 while it does not wait.
    `idle_timeout_s`: how long it may wait."""

    waits_since: float

    @property
    def idle_timeout_s(self) -> float: ...

    def cut(self) -> None:
        """Close the connection, which ends pending reads and writes."""
        ...


class IdleTimeouts:
    """Closes connections that wait too long, by checking all of them periodically instead of with a timer per wait.

    Starting and ending a wait is then only an assignment (`Waiting.waits_since`). A timer would cost more than the read
    that it limits, and tens of thousands of connections wait nearly all the time.
    """

    def __init__(self, shortest_s: float) -> None:
        self._check_interval_s = shortest_s / CHECKS_PER_TIMEOUT
        self._connections: set[Waiting] = set()
        self._greenlet: Any = None

    def __len__(self) -> int:
        return len(self._connections)

    def add(self, connection: Waiting) -> None:
        if self._greenlet is None:
            self._greenlet = gevent.spawn(self._loop)
        self._connections.add(connection)

    def remove(self, connection: Waiting) -> None:
        self._connections.discard(connection)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None

    def cut_all(self) -> None:
        """Close every idle connection; no further requests are served."""
        for connection in list(self._connections):
            if connection.waits_since:
                connection.cut()

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._check_interval_s)
            for number, connection in enumerate(list(self._connections), 1):
                since = connection.waits_since
                if since and time.monotonic() - since > connection.idle_timeout_s:
                    connection.cut()
                if number % REST_EVERY == 0:
                    gevent.sleep(0.001)
