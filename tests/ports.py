"""Ports for servers that must know theirs before they listen."""

from __future__ import annotations

import random
import socket


def free_ports(count: int = 1) -> int:
    """The first of `count` ports in a row that nobody has now. Below those that the kernel hands out for connections:
    nobody is given one by chance before it is used, and one that tries again and again to reach a port that is closed
    may end up connected with itself, on that port."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("", port))
        except OSError:
            continue
        return first


def free_port() -> int:
    return free_ports(1)
