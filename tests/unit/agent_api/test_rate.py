"""Rate limits: a burst, then a steady rate, for a bounded number of addresses."""

from __future__ import annotations

import pytest

from procguard.admission.connections import ConnectionLimiter
from procguard.admission.rate import RateLimiter
from procguard.agent_api.handlers import AgentApi
from procguard.config.limits import WebLimits
from procguard.errors import LimitExceeded


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


def test_an_ipv6_network_of_one_machine_is_one_address_to_every_limit() -> None:
    """The owner of one address of a /64 has all of them: 2^64 buckets would be no limit."""
    limits = WebLimits(registrations_at_once=3, unproven_per_address=4)
    agent_api = AgentApi(None, None, None, limits)  # type: ignore[arg-type]
    for number in range(3):
        agent_api._limit_registrations(f"2001:db8::{number:x}")
    with pytest.raises(LimitExceeded):
        agent_api._limit_registrations("2001:db8::ffff")
    agent_api._limit_registrations("2001:db8:0:1::1")
    book = ConnectionLimiter(limits)
    cut: list[int] = []
    for number in range(40):
        book.admit(f"2001:db8::{number:x}", lambda number=number: cut.append(number), number * 10.0)  # type: ignore[misc]
    assert len(cut) == 36 and book.unproven_count == 4
