"""How long a connection may wait for its peer: one look at all of them now and then, instead of a timer for each wait.

Owns the set of connections. Beginning and ending a wait is an assignment (`Waiting.waits_since`): a timer would cost
more than the reading it guards, and tens of thousands of connections wait nearly all the time.
"""

from __future__ import annotations

import time
from typing import Any, Protocol

import gevent

LOOKS_PER_PATIENCE = 15  # a wait ends at most this fraction of the patience late
REST_EVERY = 2_000  # connections looked at in one go: well under a millisecond


class Waiting(Protocol):
    """`waits_since`: monotonic seconds; 0.0 while it is not its peer's turn. `patience_s`: so long it may wait."""

    waits_since: float

    @property
    def patience_s(self) -> float: ...

    def cut(self) -> None:
        """End the connection below whoever reads or writes it."""
        ...


class Patience:
    def __init__(self, shortest_s: float) -> None:
        self._look_every_s = shortest_s / LOOKS_PER_PATIENCE
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

    def _loop(self) -> None:
        while True:
            gevent.sleep(self._look_every_s)
            for number, connection in enumerate(list(self._connections), 1):
                since = connection.waits_since
                if since and time.monotonic() - since > connection.patience_s:
                    connection.cut()
                if number % REST_EVERY == 0:
                    gevent.sleep(0.001)
