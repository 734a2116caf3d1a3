"""Chooses a TCP port of this host for a rendezvous: currently free on all addresses, and outside the range of ephemeral
ports. The port is not reserved; it is checked again at each heartbeat.
"""

from __future__ import annotations

import errno
import os
import socket

FIRST_PORT, PORTS = 20_000, 10_000
MOST_TRIES = 4  # limit per heartbeat
EPHEMERAL_FILE = "/proc/sys/net/ipv4/ip_local_port_range"


class FreePort:
    """`offer()` at each heartbeat; `handed_out` after a port was assigned."""

    def __init__(self, first: int = FIRST_PORT, count: int = PORTS) -> None:
        self._first, self._count = first, count
        # Several agents on one host begin at different places.
        self._port = first + int.from_bytes(os.urandom(4), "big") % count

    def offer(self) -> int:
        """The port of the last heartbeat if it is still free, otherwise another one; 0 if none was found."""
        low, high = _ephemeral()
        for _ in range(MOST_TRIES):
            if not low <= self._port <= high and _is_free(self._port):
                return self._port
            self._go_on(high if low <= self._port <= high else self._port)
        return 0

    def handed_out(self, values: "dict[str, str]") -> None:
        """Mark a port as allocated, although nothing listens on it yet. `values`: a worker's variables from the
        manager."""
        if str(self._port) in values.values():
            self._go_on(self._port)

    def _go_on(self, beyond: int) -> None:
        self._port = self._first + (beyond + 1 - self._first) % self._count


def _ephemeral() -> "tuple[int, int]":
    try:
        with open(EPHEMERAL_FILE, encoding="utf-8") as file:
            low, high = file.read().split()
        return int(low), int(high)
    except (OSError, ValueError):
        return 32768, 60999


def _is_free(port: int) -> bool:
    """Test by binding to every address, of both families if the host has both."""
    families = (socket.AF_INET6, "::"), (socket.AF_INET, "0.0.0.0")
    for family, address in families:
        try:
            with socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as probe:
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
                probe.bind((address, port))
                return True  # :: covers both families
        except OSError as exc:
            if family == socket.AF_INET6 and exc.errno not in (errno.EADDRINUSE, errno.EACCES):
                continue  # a host without IPv6
            return False
    return False
