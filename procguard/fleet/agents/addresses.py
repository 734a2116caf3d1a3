"""Groups addresses that count as one sender for limits. Pure."""

from __future__ import annotations

import ipaddress


def address_group(address: str) -> str:
    """The IPv4 address, or the IPv6 /64 prefix, since a single machine usually owns a whole /64."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
