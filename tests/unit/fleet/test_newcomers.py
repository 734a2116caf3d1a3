"""Unauthenticated connections: the one silent for longest is closed, of one address or of all."""

from __future__ import annotations

from procguard.admission.connections import HARD, Unproven


def came(unproven: Unproven[int], connection: int, address: str, now: float = 0.0) -> list[int]:
    """Whose place it needed."""
    return [gone for gone, _ in unproven.add(connection, address, now)]


def test_the_longest_silent_one_of_an_address_goes_first() -> None:
    unproven: Unproven[int] = Unproven(100, 2)
    assert [came(unproven, number, "a") for number in (1, 2)] == [[], []]
    assert came(unproven, 3, "b") == []
    assert came(unproven, 4, "a") == [1]
    unproven.remove(2)  # it has said something
    assert came(unproven, 5, "a") == [] and len(unproven) == 3


def test_there_is_a_bound_for_all_addresses_together() -> None:
    unproven: Unproven[int] = Unproven(3, 2)
    gone = [came(unproven, number, f"address-{number}") for number in range(6)]
    assert gone == [[], [], [], [0], [1], [2]] and len(unproven) == 3


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    unproven: Unproven[int] = Unproven(10, 10)
    came(unproven, 1, "a")
    assert came(unproven, 1, "b") == [] and len(unproven) == 1
    unproven.remove(1)
    unproven.remove(1)
    assert len(unproven) == 0 and not unproven._of_address


def test_who_has_just_come_stays_unless_there_are_far_too_many() -> None:
    unproven: Unproven[int] = Unproven(100, 2, grace_s=1.0)
    crowd = [came(unproven, number, "a", now=0.5) for number in range(2 * HARD)]
    assert crowd == [[]] * (2 * HARD)
    assert came(unproven, 100, "a", now=0.5) == [0]
    assert came(unproven, 101, "a", now=2.0) == [*range(1, 2 * HARD)] and len(unproven) == 2


def test_the_addresses_of_one_ipv6_network_are_one() -> None:
    unproven: Unproven[int] = Unproven(100, 2)
    gone = [came(unproven, number, f"2001:db8::{number:x}") for number in range(4)]
    assert gone == [[], [], [0], [1]]
