"""Connections that have said nothing yet: the longest silent one goes, of an address or of all."""

from __future__ import annotations

from procguard.channels.zmq_port import Newcomers


def test_the_longest_silent_one_of_an_address_goes_first() -> None:
    newcomers = Newcomers(100, 2)
    assert [newcomers.came(number, "a") for number in (1, 2)] == [[], []]
    assert newcomers.came(3, "b") == []
    assert newcomers.came(4, "a") == [1]
    newcomers.left(2)  # it has said something
    assert newcomers.came(5, "a") == [] and len(newcomers) == 3


def test_there_is_a_bound_for_all_addresses_together() -> None:
    newcomers = Newcomers(3, 2)
    gone = [newcomers.came(number, f"address-{number}") for number in range(6)]
    assert gone == [[], [], [], [0], [1], [2]] and len(newcomers) == 3


def test_a_descriptor_that_is_used_again_is_another_connection() -> None:
    newcomers = Newcomers(10, 10)
    newcomers.came(1, "a")
    assert newcomers.came(1, "b") == [] and len(newcomers) == 1
    newcomers.left(1)
    newcomers.left(1)
    assert len(newcomers) == 0 and not newcomers._of_address
