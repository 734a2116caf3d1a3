"""Who is connected, and who has to go when there are too many: strangers first, the longest silent one first.

A connection is unproven until a request on it was identified as an agent's or a token's. Only unproven connections have
limits per address and an order in which they are closed, so a thousand agents behind one address are no crowd, and
whoever opens connections and says nothing closes his own. Owns the counts; how a connection is cut is handed in. Event
loop only.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from procguard.config_limits import Limits
from procguard.fleet.addresses import address_group
from procguard.portal.turns import Share

Cut = Callable[[], None]


def _nothing() -> None:
    """There is nothing left to cut."""


# After a restart of the manager a thousand agents of one NAT may stand at the door at once: nobody is sent away who had
# no time to speak, unless there are so many times more strangers than the limit.
TIME_TO_SPEAK_S = 1.0
HARD = 4
UNSHARED_WORK = 40  # a new connection's: the request by which an agent proves itself waits for no stranger


class Ticket:
    """One connection. `caller` is set by its first identified request; `evicted`: it was told to go; `share`: what it
    may do in one turn of the event loop, together with the caller's others or with all strangers."""

    __slots__ = ("_book", "_unshared_work", "address", "caller", "cut", "evicted", "share", "since")

    def __init__(self, book: ConnectionBook, address: str, cut: Cut, since: float) -> None:
        self._book = book
        self.address = address
        self.cut = cut
        self.since = since  # monotonic
        self.caller = ""
        self.evicted = False
        self.share = book.strangers_share
        self._unshared_work = UNSHARED_WORK

    def spend(self, work: int) -> None:
        """So much was done for this connection's peer; the next may be a turn of the event loop away."""
        if self._unshared_work > 0:
            self._unshared_work -= work
        else:
            self.share.spend(work)

    def prove(self, caller: str, agent: bool) -> None:
        """A request on this connection came from `caller`."""
        if self.caller != caller:
            self._book.proven(self, caller, agent)

    def leave(self) -> None:
        self._book.left(self)
        self.cut = _nothing  # whose connection it was refers to this ticket: a circle, which would stay in memory


class _Caller:
    """Whose connections these are, and what they may do together."""

    __slots__ = ("share", "tickets")

    def __init__(self, share: Share) -> None:
        self.share = share
        self.tickets: dict[Ticket, None] = {}  # oldest first


class ConnectionBook:
    """All connections of a manager, over all its listeners."""

    def __init__(self, limits: Limits, most: int | None = None) -> None:
        """`most`: connections in all, where the system allows fewer than the limits."""
        self._limits = limits
        self.most = limits.connections if most is None else min(most, limits.connections)
        self._all = 0
        self._unproven: OrderedDict[Ticket, None] = OrderedDict()  # oldest first
        self._by_address: dict[str, OrderedDict[Ticket, None]] = {}  # of the unproven
        self._callers: dict[str, _Caller] = {}  # who has proven connections
        self.strangers_share = Share()
        self.refused: Counter[str] = Counter()  # for /metrics: why -> how many

    def __len__(self) -> int:
        return self._all

    @property
    def unproven_count(self) -> int:
        return len(self._unproven)

    def admit(self, address: str, cut: Cut, now: float) -> Ticket | None:
        """A new connection; None when there is no room even after a stranger was sent away."""
        if self._all >= self.most:
            self._evict_oldest(self._unproven, "connections")  # its place is free once it has ended
            self.refused["connections"] += 1
            return None
        ticket = Ticket(self, address_group(address), cut, now)
        self._all += 1
        self._unproven[ticket] = None
        neighbours = self._by_address.setdefault(ticket.address, OrderedDict())
        neighbours[ticket] = None
        self._thin_out(neighbours, self._limits.unproven_per_address, "unproven_per_address", now)
        self._thin_out(self._unproven, self._limits.unproven_connections, "unproven_connections", now)
        return ticket

    def _thin_out(self, among: OrderedDict[Ticket, None], most: int, why: str, now: float) -> None:
        while len(among) > most:
            oldest = next(iter(among))
            if now - oldest.since < TIME_TO_SPEAK_S and len(among) <= most * HARD:
                return
            self._evict_oldest(among, why)

    def proven(self, ticket: Ticket, caller: str, agent: bool) -> None:
        if ticket.evicted:
            return
        known = self._callers.get(caller)
        if known is None:
            known = self._callers[caller] = _Caller(Share(self.strangers_share))
            if ticket.caller:
                known.share.go_on_from(ticket.share)
        self._forget(ticket)
        ticket.caller, ticket.share = caller, known.share
        known.tickets[ticket] = None
        if agent and len(known.tickets) > self._limits.connections_per_agent:
            self._evict_oldest(known.tickets, "connections_per_agent")

    def left(self, ticket: Ticket) -> None:
        self._all -= 1
        self._forget(ticket)

    def _evict_oldest(self, among: dict[Ticket, None], why: str) -> None:
        ticket = next(iter(among), None)
        if ticket is not None:
            ticket.evicted = True
            self._forget(ticket)
            self.refused[why] += 1
            ticket.cut()

    def _forget(self, ticket: Ticket) -> None:
        """Out of every order; it still counts until it has left."""
        if ticket.caller:
            of = self._callers.get(ticket.caller)
            if of is not None:
                of.tickets.pop(ticket, None)
                if not of.tickets:
                    del self._callers[ticket.caller]
            return
        self._unproven.pop(ticket, None)
        neighbours = self._by_address.get(ticket.address)
        if neighbours is not None:
            neighbours.pop(ticket, None)
            if not neighbours:
                del self._by_address[ticket.address]
