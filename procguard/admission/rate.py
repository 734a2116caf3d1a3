"""Limits how often a key may do something. In memory, for a bounded number of keys; `now` is passed in.

A key is an address, an agent or a token. Flooding with keys has no effect: the least recently used key is dropped and
starts again with the default allowance.
"""

from __future__ import annotations

from collections import OrderedDict

from procguard.fleet.agents.addresses import address_group

MAX_KEYS = 10_000

FREE_FAILURES = 5  # wrong tokens of one address before it has to wait
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 900.0
FORGET_FAILURES_S = 3600.0


class RateLimiter:
    """A token bucket per key: `burst` at once, then `per_s` per second."""

    def __init__(self, burst: float, per_s: float, max_keys: int = MAX_KEYS) -> None:
        self._burst = burst
        self._per_s = per_s
        self._max_keys = max_keys
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, key: str, now_monotonic: float) -> float:
        """Take one token. Returns 0.0 if there was one, else the seconds until there will be one."""
        level, at = self._buckets.pop(key, (self._burst, now_monotonic))
        level = min(self._burst, level + (now_monotonic - at) * self._per_s)
        allowed = level >= 1.0
        self._buckets[key] = (level - 1.0 if allowed else level, now_monotonic)
        if len(self._buckets) > self._max_keys:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1.0 - level) / self._per_s


class RecordLimiter:
    """Limits how many records one caller can cause. Suppressed records are counted, and the next one that is written
    reports their number."""

    def __init__(self, at_once: int, per_s: float) -> None:
        self._rate = RateLimiter(at_once, per_s)
        self._suppressed: OrderedDict[str, int] = OrderedDict()

    def suppressed(self, key: str, now_monotonic: float) -> int | None:
        """Whether to write a record: None for no, otherwise the number of records suppressed since the last one that
        was written."""
        if self._rate.wait_s(key, now_monotonic) <= 0:
            return self._suppressed.pop(key, 0)
        self._suppressed[key] = self._suppressed.pop(key, 0) + 1
        if len(self._suppressed) > MAX_KEYS:
            self._suppressed.popitem(last=False)
        return None


class BackOff:
    """Doubling waits per address after wrong tokens.

    Only wrong tokens have to wait. Tokens are too long to be guessed; the waits bound the cost of guessing to the
    manager, and no caller can lock out others that share its address (a NAT, a proxy, this machine).
    """

    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float, float]] = OrderedDict()  # (count, end of wait, last time)

    def __len__(self) -> int:
        return len(self._failures)

    def wait_s(self, address: str, now: float) -> float:
        """Seconds this address still has to wait; 0.0 if it may try."""
        _, until, _ = self._failures.get(address_group(address), (0, 0.0, 0.0))
        return max(0.0, until - now)

    def wrong(self, address: str, now: float) -> float:
        """Report a wrong token from an address. Returns 0.0 if it was counted; otherwise the seconds for which the
        address must still wait, and the response says only that."""
        wait_s = self.wait_s(address, now)
        if wait_s <= 0:
            self.failed(address, now)
        return wait_s

    def failed(self, address: str, now: float) -> None:
        key = address_group(address)
        count, _, last = self._failures.pop(key, (0, 0.0, now))
        count = 1 if now - last > FORGET_FAILURES_S else count + 1
        beyond = count - FREE_FAILURES
        wait_s = min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(beyond, 20)) if beyond >= 0 else 0.0
        self._failures[key] = (count, now + wait_s, now)
        if len(self._failures) > MAX_KEYS:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(address_group(address), None)
