"""The port an agent offers for a rendezvous: free, outside the kernel's ephemeral range, replaced once it is in use."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from remote_agent.system import free_port
from remote_agent.system.free_port import FIRST_PORT, PORTS, FreePort


@pytest.fixture
def first() -> int:
    """Of ten ports that are free, away from those of other tests and agents on this machine."""
    return FreePort(FIRST_PORT, PORTS - 10).offer() or FIRST_PORT


def test_it_is_the_same_while_it_is_free_and_outside_the_ephemeral_range() -> None:
    rig = FreePort()
    port = rig.offer()
    low, high = (int(word) for word in Path(free_port.EPHEMERAL_FILE).read_text().split())
    assert FIRST_PORT <= port < FIRST_PORT + PORTS and not low <= port <= high
    assert rig.offer() == port


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_a_port_that_somebody_took_on_one_address_is_not_named_again(
    first: int, family: socket.AddressFamily, address: str
) -> None:
    rig = FreePort(first, 10)
    port = rig.offer()
    try:
        taken = socket.socket(family)
        taken.bind((address, port))
    except OSError:
        pytest.skip(f"no {address} here")
    with taken:
        taken.listen()
        assert rig.offer() not in (port, 0)


def test_a_port_that_was_handed_out_is_not_named_again(first: int) -> None:
    """There is no listener yet: its job has not been started."""
    rig = FreePort(first, 10)
    port = rig.offer()
    rig.handed_out({"RANK": "0", "MASTER_PORT": str(port)})
    assert rig.offer() not in (port, 0)
    before = rig.offer()
    rig.handed_out({"RANK": "3"})
    assert rig.offer() == before


def test_none_is_named_where_the_kernel_may_give_all_of_them_away(tmp_path: Path, monkeypatch, first: int) -> None:
    file = tmp_path / "range"
    file.write_text("1024\t65535\n")
    monkeypatch.setattr(free_port, "EPHEMERAL_FILE", str(file))
    assert FreePort().offer() == 0
    file.write_text(f"{first}\t{first + 4}\n")
    assert FreePort(first, 10).offer() in (0, *range(first + 5, first + 10))
    file.write_text("nonsense")
    assert FreePort(first, 10).offer() != 0
