"""Limits concurrent SSH connections, in total and through one jump host.

sshd randomly drops connections beyond 10 that have not logged in yet (MaxStartups), so that a jump host for a hundred
targets must not receive them all at once. A slot is released at the end of its work or at its deadline, whichever
comes first, so that a hanging connection does not block others.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

ALL = 32
PER_JUMP_HOST = 8
MAX_STUCK = 64  # number of threads beyond their deadline at which the process is restarted


class PoolExhausted(Exception):
    """No slot became free before the deadline. `ahead`: the number of connections in progress."""

    def __init__(self, ahead: int) -> None:
        super().__init__(f"{ahead} connection attempts were in progress")
        self.ahead = ahead


class ConnectionPool:
    def __init__(self, most: int = ALL, per_jump_host: int = PER_JUMP_HOST) -> None:
        self._most = most
        self._per_jump_host = per_jump_host
        self._free = threading.Condition()
        self._taken: dict[int, tuple[str, float]] = {}  # slot -> (jump host, deadline)
        self._stuck: set[int] = set()
        self._next = 0

    @property
    def stuck(self) -> int:
        """The number of tasks that continue after their deadline."""
        with self._free:
            self._expire()
            return len(self._stuck)

    @contextmanager
    def connection(self, jump_host: str, deadline: float) -> Iterator[None]:
        """Occupy the slot of one connection, until `deadline` (monotonic) at the latest. Raises PoolExhausted."""
        number = self._take(jump_host, deadline)
        try:
            yield
        finally:
            with self._free:
                self._taken.pop(number, None)
                self._stuck.discard(number)
                self._free.notify_all()

    def _take(self, jump_host: str, deadline: float) -> int:
        with self._free:
            while True:
                self._expire()
                if self._room(jump_host):
                    self._next += 1
                    self._taken[self._next] = (jump_host, deadline)
                    return self._next
                now = time.monotonic()
                if now >= deadline:
                    raise PoolExhausted(len(self._taken))
                next_end = min(until for _, until in self._taken.values())
                self._free.wait(max(0.01, min(deadline, next_end) - now))

    def _room(self, jump_host: str) -> bool:
        if len(self._taken) >= self._most:
            return False
        through = sum(1 for jump, _ in self._taken.values() if jump == jump_host)
        return not jump_host or through < self._per_jump_host

    def _expire(self) -> None:
        now = time.monotonic()
        for number in [number for number, (_, until) in self._taken.items() if now >= until]:
            del self._taken[number]
            self._stuck.add(number)


def jump_host(proxy_jump: str, proxy_command: str) -> str:
    """The first jump host; "" if the inventory names none."""
    return proxy_jump.partition(",")[0].strip() or proxy_command
