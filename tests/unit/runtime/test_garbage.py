"""When the manager looks for garbage: seldom, and not in vain."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from procguard.admission.connections import ConnectionLimiter
from procguard.config.limits import WebLimits
from procguard.runtime.gc_policy import LEAST_NEW, GcScheduler


class Circle:
    def __init__(self) -> None:
        self.me = self


@pytest.fixture
def scheduler(monkeypatch: pytest.MonkeyPatch) -> Iterator[GcScheduler]:
    """The million objects of the test session stay frozen, here and after: each look would go through all of them."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)
    made = GcScheduler()
    made.start()
    yield made
    gc.enable()


def test_nothing_is_looked_through_while_little_is_new(scheduler: GcScheduler) -> None:
    gone = weakref.ref(Circle())
    for _ in range(3 * LEAST_NEW):
        _ = [[]]  # comes and goes, as heartbeats do
    assert not scheduler.collect_if_due(1.0)
    assert gone() is not None


def test_circles_are_freed_before_they_fill_the_memory_and_the_next_look_waits(scheduler: GcScheduler) -> None:
    gone = weakref.ref(Circle())
    objects = len(gc.get_objects())
    for _ in range(LEAST_NEW + objects):
        Circle()
    assert scheduler.collect_if_due(1.0)
    assert gone() is None
    for _ in range(LEAST_NEW + objects):
        Circle()
    assert not scheduler.collect_if_due(1.0), "it had just looked"
    assert scheduler.collect_if_due(3600.0)


def test_what_was_there_when_it_was_started_is_no_reason_to_check(scheduler: GcScheduler) -> None:
    kept = [[number] for number in range(2 * LEAST_NEW + len(gc.get_objects()))]
    scheduler.start()
    assert not scheduler.collect_if_due(1.0)
    del kept


def test_a_connection_that_ended_leaves_no_circle() -> None:
    class Connection:
        def __init__(self, book: ConnectionLimiter) -> None:
            self.handle = book.admit("127.0.0.1", lambda: None, 0.0)
            assert self.handle is not None
            self.handle.cut = self.end

        def end(self) -> None: ...

    gc.disable()
    try:
        connection = Connection(ConnectionLimiter(WebLimits()))
        gone = weakref.ref(connection)
        connection.handle.leave()  # type: ignore[union-attr]
        del connection
        assert gone() is None
    finally:
        gc.enable()
