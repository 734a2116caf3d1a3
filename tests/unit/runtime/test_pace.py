"""Long work in the event loop gives way to sockets, not only to what is ready by itself."""

from __future__ import annotations

import time
from collections.abc import Callable

import gevent
import gevent.socket
import pytest

from procguard.runtime.cooperative import SLICE_S, Pace, yield_to_hub

PIECES = 30


def pieces_until_served(rest: Callable[[], None]) -> int:
    """How many pieces of work are done before another greenlet has read what came on its socket."""
    ours, theirs = gevent.socket.socketpair()
    read: list[bytes] = []
    reader = gevent.spawn(lambda: read.append(ours.recv(1)))
    gevent.sleep(0.01)  # it waits now
    theirs.send(b"x")
    done = 0
    while not read and done < PIECES:
        done += 1
        rest()
    reader.join()
    ours.close()
    theirs.close()
    return done


def busy(pace: Pace) -> None:
    ends = time.perf_counter() + 1.2 * SLICE_S
    while time.perf_counter() < ends:
        pass
    pace()


@pytest.mark.parametrize("kind", ["yield_to_hub", "pace"])
def test_what_came_on_a_socket_is_read_within_two_iterations(kind: str) -> None:
    pace = Pace()
    assert pieces_until_served(yield_to_hub if kind == "yield_to_hub" else lambda: busy(pace)) <= 2


def test_sleep_0_would_not_do() -> None:
    """Why there is yield_to_hub: should gevent ever change this, it can go."""
    assert pieces_until_served(lambda: gevent.sleep(0)) == PIECES
