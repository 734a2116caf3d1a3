"""The network cuts of the chaos suite drop packets silently, in the specified direction."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.fleet.conftest import require_fleet
from tests.fleet.cuts import Direction, partitioned, restore, slow_link
from tests.fleet.hosts import Fleet, FleetHost
from tests.waiting import wait_until

pytestmark = pytest.mark.fleet

PORT = 9999
LISTEN = f'python3 -I -S -c \'import socket; s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(("", {PORT}))'
LISTEN += '\nwhile True: open("/tmp/heard", "ab").write(s.recv(99))\''


@pytest.fixture(scope="module")
def fleet() -> Iterator[Fleet]:
    require_fleet()
    with Fleet(2) as one:
        for host in one.hosts:
            host.run(f"{LISTEN} >/dev/null 2>&1 &")
        yield one


def reaches_host(host: FleetHost) -> bool:
    """Whether a packet from here arrives there. UDP needs no response."""
    host.run("rm -f /tmp/heard")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for _ in range(20):
            sender.sendto(b"x", (host.address, PORT))
            time.sleep(0.02)
            if host.path("/tmp/heard").exists():
                return True
    return False


def reaches_manager(host: FleetHost) -> bool:
    """The other direction. A failing send would not be a silent cut."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as here:
        here.bind((host.fleet.manager_address, 0))
        here.settimeout(0.5)
        to = f'("{host.fleet.manager_address}", {here.getsockname()[1]})'
        host.run(f"python3 -I -S -c 'import socket; socket.socket(2, 2).sendto(b\"x\", {to})'")
        try:
            return here.recv(9) == b"x"
        except TimeoutError:
            return False


@pytest.mark.parametrize(
    ("direction", "to_host", "to_manager"),
    [("to manager", True, False), ("from manager", False, True), ("both", False, False)],
)
def test_a_cut_stops_its_own_direction_for_this_host_only(
    fleet: Fleet, direction: Direction, to_host: bool, to_manager: bool
) -> None:
    cut_off, other = fleet.hosts
    wait_until(lambda: reaches_host(cut_off) and reaches_host(other), 10, "the listeners")
    with partitioned(cut_off, direction):
        assert (reaches_host(cut_off), reaches_manager(cut_off)) == (to_host, to_manager)
        assert reaches_host(other) and reaches_manager(other)
    wait_until(lambda: reaches_host(cut_off) and reaches_manager(cut_off), 10, "both ways again")
    restore(cut_off)  # where nothing is broken it does nothing


def test_a_slow_link_lets_no_more_through_than_it_says(fleet: Fleet) -> None:
    """200 KB over 800 kbit/s take 2 s; the burst takes a little off."""
    host = fleet[0]
    slow_link(host, 800)
    try:
        began = time.monotonic()
        done = subprocess.run(
            [*host.ssh_command(), "wc -c"], input=b"\0" * 200_000, capture_output=True, check=True, timeout=60
        )
        took_s = time.monotonic() - began
    finally:
        slow_link(host, 0)
    assert done.stdout.strip() == b"200000"
    assert took_s > 1.5
