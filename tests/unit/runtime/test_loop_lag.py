"""A stall of the event loop is measured and named. Stalls are injected: a greenlet that holds the loop for a while."""

from __future__ import annotations

import logging
import re
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import gevent
import pytest

from procguard.runtime import loop_lag
from procguard.runtime.loop_lag import BOUNDS_S, HELD_S, LagHistogram, LoopWatchdog, place_of
from tests.server_process import RunningManager
from tests.waiting import wait_until


@pytest.fixture
def watchdog() -> Iterator[LoopWatchdog]:
    made = LoopWatchdog()
    made.start()
    gevent.sleep(2 * loop_lag.PERIOD_S)
    yield made
    made.stop()


def hold_the_loop(seconds: float) -> None:
    """Busy, so that a stack can be seen at any moment of it."""
    ends = time.perf_counter() + seconds
    while time.perf_counter() < ends:
        sum(range(1000))


def stall(seconds: float) -> None:
    gevent.spawn(hold_the_loop, seconds).join()
    gevent.sleep(2 * loop_lag.PERIOD_S)  # the timer has ticked


def longer_than(lags: LagHistogram, seconds: float) -> int:
    return sum(lags.buckets[BOUNDS_S.index(seconds) + 1 :])


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == loop_lag.__name__]


def test_a_stall_is_measured_and_its_function_named(watchdog: LoopWatchdog, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, loop_lag.__name__):
        stall(0.4)
    assert longer_than(watchdog.lags, 0.25) > 0
    reported = lines(caplog)[0]
    assert re.fullmatch(
        r"event loop held seconds=\d\.\d\d processor_seconds=\d\.\d\d by=\S*hold_the_loop \(tests\S+\.py:\d+\)"
        r" for=the event loop seen=\d+/\d+",
        reported,
    )


def test_many_stalls_are_one_line_and_the_next_reports_how_many(
    watchdog: LoopWatchdog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_lag, "LINE_EVERY_S", 3600.0)
    with caplog.at_level(logging.WARNING, loop_lag.__name__):
        for _ in range(4):
            stall(HELD_S + 0.1)
        assert len(lines(caplog)) == 1
        monkeypatch.setattr(loop_lag, "LINE_EVERY_S", 0.0)
        stall(HELD_S + 0.1)
    more = re.search(r"\((\d+) more since the last line, \d\.\d\d s at most\)", lines(caplog)[1])
    assert more is not None and int(more[1]) >= 3


def test_a_short_stall_is_measured_and_not_reported(
    watchdog: LoopWatchdog, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_lag, "HELD_S", 5.0)  # whatever else this machine does meanwhile
    with caplog.at_level(logging.WARNING, loop_lag.__name__):
        stall(0.15)
    assert longer_than(watchdog.lags, 0.05) > 0
    assert lines(caplog) == []


def test_a_stall_counts_for_everybody_who_would_have_waited() -> None:
    """One lag of 1 s among 98 periods without: an eighth of the requests waits over 0.25 s, not one of a hundred."""
    lags = LagHistogram()
    for _ in range(98):
        lags.add(0.0)
    lags.add(1.0)
    assert sum(lags.buckets) == 98 + 20
    assert longer_than(lags, 0.25) == 15
    assert lags.sum_s == pytest.approx(sum(1.0 - 0.05 * n for n in range(20)))
    lags.add(1e6)  # a machine that slept
    assert sum(lags.buckets) == 98 + 20 + loop_lag.MOST_OBSERVED


def test_what_is_not_ours_is_reported_as_the_call_of_ours_that_led_there() -> None:
    def called_by_ours() -> loop_lag.CodeLocation:
        return place_of(sys._getframe())

    what, whose = place_of(None), called_by_ours()
    assert what == ("the event loop", "the event loop")
    assert "called_by_ours (" in whose[0] and whose[1] == "the event loop", "a test is not the product"
    histogram = LagHistogram()
    locations: list[loop_lag.CodeLocation] = []

    class Looks(list[int]):
        def __setitem__(self, key: object, value: object) -> None:
            locations.append(place_of(sys._getframe()))

    histogram.buckets = Looks(histogram.buckets)
    histogram.add(0.0)
    assert locations[0][0].startswith("LagHistogram.add (procguard/runtime/loop_lag.py:")
    assert locations[0][1] == locations[0][0]


def test_it_ends(watchdog: LoopWatchdog) -> None:
    watchdog.stop()
    before = sum(watchdog.lags.buckets)
    gevent.sleep(3 * loop_lag.PERIOD_S)
    assert sum(watchdog.lags.buckets) == before


@pytest.mark.slow
def test_the_manager_reports_a_stall(tmp_path: Path) -> None:
    """Injected from outside: a process that is stopped uses no processor time, which the line says too."""
    manager = RunningManager(tmp_path)
    try:

        def held() -> float:
            text = manager.ask("GET", "/metrics").body.decode()
            found = dict(line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("procguard_loop_lag"))
            whole, within = (found[f'procguard_loop_lag_seconds_bucket{{le="{le}"}}'] for le in ("+Inf", "0.5"))
            return float(whole) - float(within)

        before = held()
        manager.process.send_signal(signal.SIGSTOP)
        time.sleep(1.0)
        manager.process.send_signal(signal.SIGCONT)
        wait_until(lambda: held() > before, 10, "the stall is counted")
        wait_until(lambda: "event loop held seconds=" in (tmp_path / "manager.log").read_text(), 10, "and told")
    finally:
        manager.close()
