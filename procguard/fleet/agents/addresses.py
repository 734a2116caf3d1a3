"""Groups addresses that count as one sender for limits. Pure."""

from __future__ import annotations

import ipaddress


def address_group(address: str) -> str:
    """An address of IPv4; of IPv6 the /64, which one machine has as a whole."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
