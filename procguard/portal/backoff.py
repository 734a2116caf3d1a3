"""Doubling waits per address after wrong tokens. In memory, bounded; `now` is passed in.

Only wrong ones wait. Tokens are too long to be guessed: what the waits bound is what guessing costs the manager, and
nobody can lock out others who share an address (a NAT, a proxy, this machine).
"""

from __future__ import annotations

from collections import OrderedDict

from procguard.fleet.addresses import address_group

FREE_FAILURES = 5  # wrong tokens of one address before it has to wait
FIRST_WAIT_S = 5.0
LONGEST_WAIT_S = 900.0
FORGET_FAILURES_S = 3600.0
MAX_ADDRESSES = 10_000


class BackOff:
    def __init__(self) -> None:
        self._failures: OrderedDict[str, tuple[int, float, float]] = OrderedDict()  # count, waits until, last

    def __len__(self) -> int:
        return len(self._failures)

    def wait_s(self, address: str, now: float) -> float:
        """Seconds this address still has to wait; 0.0 if it may try."""
        _, until, _ = self._failures.get(address_group(address), (0, 0.0, 0.0))
        return max(0.0, until - now)

    def wrong(self, address: str, now: float) -> float:
        """A wrong token came from there. Seconds for which it is told nothing but to wait; 0.0: it was counted, and is
        told what is wrong."""
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
        if len(self._failures) > MAX_ADDRESSES:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(address_group(address), None)
