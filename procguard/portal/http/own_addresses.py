"""This machine's addresses: which of them may be offered to agents, and whether a connection arrived at the address
that it claims.

Reads the kernel's tables; knows no agents. An unconfigured address is offered only if it may be reachable from
outside: a bridge whose ports all belong to containers or virtual machines (docker0, virbr0) has an address that
another machine may use differently.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import urlsplit

import psutil

NET = "/sys/class/net"
ROUTES = "/proc/net/route"
RECHECK_S = 5.0
_GATEWAY = 0x2  # RTF_GATEWAY


def all_own() -> list[str]:
    """Addresses that other machines may reach, IPv4 first; without loopback and link-local ones."""
    return _of(psutil.net_if_addrs())


def offered(net: str = NET, routes: str = ROUTES) -> list[str]:
    """As `all_own`, without those of bridges that connect only containers and virtual machines of this machine."""
    interfaces = psutil.net_if_addrs()
    way_out = _with_gateway(routes)
    return _of({name: known for name, known in interfaces.items() if name in way_out or not is_inner(name, net)})


def manager_urls(advertised: Iterable[str], scheme: str, host: str, port: int) -> list[str]:
    """The URLs of a manager that listens on `host`: configured ones first, then this machine's addresses. The latter
    are candidates; a deployment keeps those that reach this manager from its host."""
    addresses = offered() if host in ("0.0.0.0", "::", "") else [host]
    own = [f"{scheme}://{f'[{one}]' if ':' in one else one}:{port}" for one in addresses]
    return list(dict.fromkeys([*advertised, *own]))


def is_inner(name: str, net: str = NET) -> bool:
    """Whether an interface is a bridge without a port to the outside of this machine."""
    ports = os.path.join(net, name, "brif")
    try:
        return not any(_leads_out(os.path.join(net, port)) for port in os.listdir(ports))
    except OSError:  # the interface is not a bridge
        return False


def _leads_out(interface: str) -> bool:
    """Whether an interface is a network card, or is stacked on one, or tunnels (vlan, bond, vxlan, …). Interfaces of
    containers and virtual machines (veth, tap) and dummies have neither a device nor a type."""
    if os.path.exists(os.path.join(interface, "device")):
        return True
    try:
        with open(os.path.join(interface, "uevent"), encoding="utf-8", errors="replace") as file:
            return any(line.startswith("DEVTYPE=") for line in file)
    except OSError:
        return False


def _with_gateway(routes: str) -> set[str]:
    """Interfaces with a route to other networks."""
    found = set()
    try:
        with open(routes, encoding="utf-8") as lines:
            for line in lines:
                words = line.split()
                if len(words) > 3 and words[0] != "Iface" and int(words[3], 16) & _GATEWAY:
                    found.add(words[0])
    except (OSError, ValueError):
        pass
    return found


def _of(interfaces: Mapping[str, Iterable[Any]]) -> list[str]:
    found: dict[socket.AddressFamily, list[str]] = {socket.AF_INET: [], socket.AF_INET6: []}
    for addresses in interfaces.values():
        for entry in addresses:
            if entry.family in found and "%" not in entry.address:
                found[entry.family].append(entry.address)
    own = [*found[socket.AF_INET], *found[socket.AF_INET6]]
    return [one for one in own if not one.startswith(("127.", "169.254.", "fe80:")) and one != "::1"]


class Arrivals:
    """Decides whether the manager proves its identity for a URL on a given connection.

    An address of this machine is accepted only on a connection that arrived at it, and loopback only from this
    machine: elsewhere the same address may belong to an attacker who relays everything. Configured URLs, names, and
    addresses of other machines (NAT, a load balancer) are always accepted.
    """

    def __init__(self, configured: Iterable[str], port: Callable[[], int]) -> None:
        self._configured = {url.rstrip("/") for url in configured}
        self._port = port
        self._own: frozenset[str] = frozenset()
        self._refreshed_at = float("-inf")

    def why_not(self, url: str, peer: str, arrived_at: str, direct: bool) -> str:
        """`arrived_at`: the connection's local address, "" behind a trusted proxy; `direct`: not through a tunnel."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError:
            return "it is no address"
        if url.rstrip("/") in self._configured:
            return ""
        address = _ip(host)
        if host == "localhost" or (address is not None and address.is_loopback):
            from_here = _ip(peer)
            if not direct or (from_here is not None and from_here.is_loopback):
                return ""
            return "loopback is for agents on the manager's own machine, and for its tunnels"
        if not direct:
            return "this is the end of a tunnel"
        if address is None or not arrived_at or str(address) not in self._known():
            return ""
        if port != self._port() or _ip(arrived_at) == address:
            return ""
        return f"it is an address of this machine, but the connection came to {arrived_at}"

    def _known(self) -> frozenset[str]:
        now = time.monotonic()
        if now - self._refreshed_at > RECHECK_S:
            self._own, self._refreshed_at = frozenset(all_own()), now
        return self._own


def _ip(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        found = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (found.ipv4_mapped or found) if isinstance(found, ipaddress.IPv6Address) else found
