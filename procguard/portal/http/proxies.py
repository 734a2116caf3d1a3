"""Trusted reverse proxies: the client address and scheme are taken from their headers. Knows WSGI environments.

Only peers in `web.trusted_proxies` are trusted, and no client behind one is the local operator.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from wsgiref.types import WSGIEnvironment

from procguard.agent_api import http_io

PROXIED = http_io.PROXIED  # key in the environment: the peer is a trusted proxy
MAX_HOPS = 20

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(text, strict=False) for text in networks]

    def apply(self, environ: WSGIEnvironment) -> None:
        """Set REMOTE_ADDR and wsgi.url_scheme to the client's; headers of untrusted peers are ignored."""
        if not self._networks or not self._trusts(_address(environ.get("REMOTE_ADDR", ""))):
            return
        environ[PROXIED] = True
        scheme = environ.get("HTTP_X_FORWARDED_PROTO", "").rpartition(",")[2].strip().lower()
        if scheme in ("http", "https"):
            environ["wsgi.url_scheme"] = scheme
        for hop in reversed(environ.get("HTTP_X_FORWARDED_FOR", "").split(",")[-MAX_HOPS:]):
            address = _address(hop.strip())
            if address is None:
                return  # an unreadable header is ignored: the proxy counts as the client
            environ["REMOTE_ADDR"] = str(address)
            if not self._trusts(address):
                return  # the client may have forged the entries before it

    def _trusts(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.strip("[]"))
    except ValueError:
        return None
    return (address.ipv4_mapped or address) if isinstance(address, ipaddress.IPv6Address) else address
