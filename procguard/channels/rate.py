"""A bound on how often one address may do something. Pure: `now` is passed in."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict


class RateLimiter:
    """A token bucket per key: `burst` at once, then `per_s` per second. Keeps at most `max_keys`, oldest use first
    forgotten (a forgotten key starts with a full bucket, so flooding with keys gains nothing per key)."""

    def __init__(self, burst: float, per_s: float, max_keys: int = 10_000) -> None:
        self._burst = burst
        self._per_s = per_s
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str, now_monotonic: float) -> float:
        """Take one; 0.0 if it was there, else the seconds until one will be."""
        level, at = self._buckets.pop(key, (self._burst, now_monotonic))
        level = min(self._burst, level + (now_monotonic - at) * self._per_s)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now_monotonic)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - level) / self._per_s


def key_of(address: str) -> str:
    """What counts as one: an address of IPv4; of IPv6 the /64, which one machine has as a whole."""
    if ":" not in address:
        return address
    try:
        ip = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(ip.ipv4_mapped or ipaddress.IPv6Network((int(ip), 64), strict=False))
