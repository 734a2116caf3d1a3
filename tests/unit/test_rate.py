"""The bound on how often: a burst, then a steady pace, for a bounded number of addresses."""

from __future__ import annotations

from procguard.channels.rate import RateLimiter


def test_a_burst_then_the_pace() -> None:
    limiter = RateLimiter(burst=3, per_s=2.0)
    assert [limiter.wait_s("a", 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert limiter.wait_s("a", 0.0) == 0.5
    assert limiter.wait_s("b", 0.0) == 0.0
    assert limiter.wait_s("a", 0.5) == 0.0
    assert limiter.wait_s("a", 0.5) > 0.0


def test_floods_of_addresses_are_bounded() -> None:
    limiter = RateLimiter(burst=1, per_s=1.0, max_keys=10)
    for number in range(1000):
        limiter.wait_s(str(number), 0.0)
    assert len(limiter._buckets) == 10
