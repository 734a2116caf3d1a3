"""A cable that works in one direction only, or slowly. Between a host and the manager; hosts still see each other.

A cut is silent, as in a broken switch: the sender gets no error. The sender's neighbour table is made to name a
machine that does not exist, so that its packets go nowhere (a blackhole route would make the sender's own calls fail).
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from typing import Literal

from tests.fleet.hosts import FleetHost, ip

NOBODY = "02:de:ad:00:00:01"
Direction = Literal["to manager", "from manager", "both"]


def cut(host: FleetHost, direction: Direction = "both") -> None:
    """From now on no packet passes in this direction. Connections stay open on both sides."""
    if direction in ("to manager", "both"):
        _inside(
            host, "neigh", "replace", host.fleet.manager_address, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0"
        )
    if direction in ("from manager", "both"):
        ip("neigh", "replace", host.address, "lladdr", NOBODY, "nud", "permanent", "dev", host.fleet.bridge)


def cut_off(host: FleetHost, address: str) -> None:
    """Nothing that this host sends to that address arrives; everything else does."""
    _inside(host, "neigh", "replace", address, "lladdr", NOBODY, "nud", "permanent", "dev", "eth0")


def restore_to(host: FleetHost, address: str) -> None:
    _inside(host, "neigh", "del", address, "dev", "eth0")


def restore(host: FleetHost) -> None:
    """Restore both directions; no effect if they work."""
    with contextlib.suppress(subprocess.CalledProcessError):
        ip("neigh", "del", host.address, "dev", host.fleet.bridge)
    if host.is_on:
        with contextlib.suppress(subprocess.CalledProcessError):
            _inside(host, "neigh", "del", host.fleet.manager_address, "dev", "eth0")


@contextlib.contextmanager
def partitioned(host: FleetHost, direction: Direction = "both") -> Iterator[None]:
    cut(host, direction)
    try:
        yield
    finally:
        restore(host)


def slow_link(host: FleetHost, kbit_per_s: int) -> None:
    """Limit the rate at which the manager sends to this host; 0 removes the limit."""
    if kbit_per_s:
        rate = ["rate", f"{kbit_per_s}kbit", "burst", "4kb", "latency", "500ms"]
        subprocess.run(["tc", "qdisc", "replace", "dev", host.cable, "root", "tbf", *rate], check=True)
    else:
        subprocess.run(["tc", "qdisc", "del", "dev", host.cable, "root"], check=False, capture_output=True)


def _inside(host: FleetHost, *words: str) -> None:
    enter = ["nsenter", "--target", str(host.init_pid), "--net"]
    subprocess.run([*enter, "ip", *words], check=True, capture_output=True, text=True)
