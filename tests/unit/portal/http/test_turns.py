"""A caller that never pauses gets its share of each event-loop iteration, and all others get the rest."""

from __future__ import annotations

import time

import gevent
import gevent.socket

from procguard.admission.connections import UNSHARED_WORK, ConnectionHandle, ConnectionLimiter
from procguard.admission.turns import SLICE_WORK, SLICES_PER_TURN, Share
from procguard.config.limits import WebLimits


def connection_handle(book: ConnectionLimiter, address: str = "a") -> ConnectionHandle:
    made = book.admit(address, lambda: None, time.monotonic())
    assert made is not None
    return made


def used_before_another_is_served(*shares: Share) -> list[int]:
    """The slices that each of these greenlets has used when a byte on a socket has been read."""
    ours, theirs = gevent.socket.socketpair()
    done = [0] * len(shares)
    served = gevent.event.Event()

    def work(number: int) -> None:
        while not served.is_set() and done[number] < 10_000:
            done[number] += 1
            shares[number].spend(SLICE_WORK)

    def read() -> None:
        ours.recv(1)
        served.set()

    reader = gevent.spawn(read)
    gevent.sleep(0.01)  # it waits now
    workers = [gevent.spawn(work, number) for number in range(len(shares))]
    theirs.send(b"x")
    gevent.joinall([reader, *workers], timeout=30)
    ours.close()
    theirs.close()
    return done


def test_who_never_pauses_gives_way_after_its_slice() -> None:
    assert used_before_another_is_served(Share())[0] <= 4


def test_a_hundred_connections_of_one_caller_get_no_more_than_one_share() -> None:
    share = Share()
    assert (
        sum(used_before_another_is_served(*[share] * 100)) <= 100 + 3 * SLICES_PER_TURN
    )  # each one's first piece of work


def test_connections_of_a_caller_alternate() -> None:
    share, order = Share(), []

    def work(name: str) -> None:
        for _ in range(4):
            share.spend(SLICE_WORK + 1)
            order.append(name)

    gevent.joinall([gevent.spawn(work, name) for name in "abc"])
    assert "".join(order) == "abc" * 4


def test_who_is_killed_while_it_waits_holds_up_nobody() -> None:
    share = Share()

    def work() -> None:
        while True:
            share.spend(SLICE_WORK + 1)

    first, second = gevent.spawn(work), gevent.spawn(work)
    gevent.sleep(0.01)
    first.kill()
    ended = gevent.spawn(share.spend, SLICE_WORK + 1)
    ended.join(timeout=5)
    assert ended.successful()
    second.kill()


def test_strangers_share_and_who_is_known_has_a_share_of_its_own() -> None:
    book = ConnectionLimiter(WebLimits())
    one, two, three = connection_handle(book, "a"), connection_handle(book, "b"), connection_handle(book, "b")
    assert one.share is two.share is book.strangers_share
    one.prove("agent:g1", True)
    two.prove("agent:g1", True)
    three.prove("agent:g2", True)
    assert one.share is two.share and one.share is not book.strangers_share
    assert three.share is not one.share and three.share is not book.strangers_share
    for each in (one, two, three):
        each.leave()
    del one, two, three, each
    assert not book._callers


def test_who_changes_callers_on_a_connection_begins_no_new_slice() -> None:
    book = ConnectionLimiter(WebLimits())
    hostile = connection_handle(book)
    hostile.spend(UNSHARED_WORK)
    spent = 0

    def changes_callers() -> None:
        nonlocal spent
        while spent < 1000:
            hostile.prove(f"token:{spent % 2}", False)
            hostile.spend(SLICE_WORK // 2)
            spent += 1

    before = gevent.get_hub().loop.iteration
    gevent.spawn(changes_callers).join(timeout=30)
    assert spent == 1000
    assert gevent.get_hub().loop.iteration - before >= 1000 // (2 * SLICES_PER_TURN)


def test_the_first_request_of_a_connection_waits_for_no_stranger() -> None:
    book = ConnectionLimiter(WebLimits())
    hostile = connection_handle(book)
    hostile.spend(UNSHARED_WORK)

    def never_pauses() -> None:
        while True:
            hostile.spend(SLICE_WORK)

    attack = gevent.spawn(never_pauses)
    gevent.sleep(0.01)
    before = gevent.get_hub().loop.iteration
    connection_handle(book).spend(UNSHARED_WORK // 2)
    assert gevent.get_hub().loop.iteration == before
    attack.kill()
