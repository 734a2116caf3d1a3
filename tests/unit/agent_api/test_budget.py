"""The bytes of bodies in memory are bounded, and waiting requests are served in turn."""

from __future__ import annotations

import gevent
import gevent.event
import pytest

from procguard.admission.memory import ByteBudget


class Sender:
    """A request that wants `size` bytes and holds them until `done`."""

    def __init__(self, budget: ByteBudget, size: int, timeout_s: float = 5.0) -> None:
        self.got: bool | None = None
        self.done = gevent.event.Event()
        self.greenlet = gevent.spawn(self._run, budget, size, timeout_s)
        gevent.sleep(0)

    def _run(self, budget: ByteBudget, size: int, timeout_s: float) -> None:
        with budget.taken(size, timeout_s) as self.got:
            if self.got:
                self.done.wait()

    def finish(self) -> None:
        self.done.set()
        self.greenlet.join()
        gevent.sleep(0)


def test_who_does_not_fit_waits_for_who_was_first() -> None:
    budget = ByteBudget(10)
    first, second, third = Sender(budget, 8), Sender(budget, 8), Sender(budget, 1)
    assert (first.got, second.got, third.got) == (True, None, None), "the small one does not overtake"
    first.finish()
    assert (second.got, third.got) == (True, True)
    second.finish()
    third.finish()
    assert budget.left_bytes == 10


def test_who_waits_too_long_is_reported_and_makes_way() -> None:
    budget = ByteBudget(10)
    first, second, third = Sender(budget, 8), Sender(budget, 8, timeout_s=0.02), Sender(budget, 2)
    second.greenlet.join(2)
    gevent.sleep(0)
    assert (second.got, third.got) == (False, True)
    first.finish()
    third.finish()
    assert budget.left_bytes == 10


@pytest.mark.parametrize("already_granted", [False, True])
def test_a_request_that_is_ended_while_it_waits_leaves_nothing_behind(already_granted: bool) -> None:
    budget = ByteBudget(10)
    first, second, third = Sender(budget, 8), Sender(budget, 8), Sender(budget, 8)
    if already_granted:
        first.done.set()
        gevent.sleep(0)
    second.greenlet.kill()
    first.finish()
    assert third.got is True
    third.finish()
    assert budget.left_bytes == 10
