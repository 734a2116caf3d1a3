"""How much of larger bodies may be in memory at once: strangers have a small share of their own, and no known caller
takes more than a quarter of what the known ones have.

First come, first served within each share; who waits keeps its bytes in its own socket. Event loop only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from procguard.channels.budget import ByteBudget
from procguard.errors import LimitExceeded

SMALL_BYTES = 64 * 1024  # what a live heartbeat or log line has: it never waits behind backlogs
SMALL_STRANGER_BYTES = 4 * 1024
TURN_S = 8.0
ONE_OF = 4  # a caller's part of the known callers' share


class Bodies:
    def __init__(self, known_bytes: int, strangers_bytes: int) -> None:
        self._known = ByteBudget(known_bytes)
        self._strangers = ByteBudget(strangers_bytes)
        self._one_bytes = known_bytes // ONE_OF
        self._by_caller: dict[str, tuple[ByteBudget, int]] = {}  # its share, how many of its requests use it

    @contextlib.contextmanager
    def turn(self, size_bytes: int, caller: str) -> Iterator[None]:
        """Room for a body of that size; `caller` "" for a stranger. Raises LimitExceeded (429)."""
        if size_bytes <= (SMALL_BYTES if caller else SMALL_STRANGER_BYTES):
            yield
            return
        if not caller:
            with _room(self._strangers, size_bytes):
                yield
            return
        with (
            self._own_share(caller) as own,
            _room(own, min(size_bytes, self._one_bytes)),
            _room(self._known, size_bytes),
        ):
            yield

    @contextlib.contextmanager
    def _own_share(self, caller: str) -> Iterator[ByteBudget]:
        share, users = self._by_caller.get(caller) or (ByteBudget(self._one_bytes), 0)
        self._by_caller[caller] = (share, users + 1)
        try:
            yield share
        finally:
            share, users = self._by_caller[caller]
            self._by_caller[caller] = (share, users - 1)
            if users == 1:
                del self._by_caller[caller]


@contextlib.contextmanager
def _room(budget: ByteBudget, size_bytes: int) -> Iterator[None]:
    with budget.taken(size_bytes, TURN_S) as got:
        if not got:
            raise LimitExceeded(
                "many send large bodies at once", "send it again", status=429, code="busy", retry_after_s=1
            )
        yield
