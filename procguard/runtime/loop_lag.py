"""Measures how late the event loop is, and what blocked it. One loop serves all: long work in it delays every
heartbeat.

A timer measures the lag many times a second. A native thread samples the loop's stack while the timer is overdue, so
that a log line names the function that blocked the loop. Knows the interpreter and gevent only.

gevent's own monitor thread is unsuitable: it traces each greenlet switch, several per request, and reports that the
loop was blocked, but not for how long.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from bisect import bisect_left
from collections import Counter
from types import FrameType
from typing import Any

import gevent
from gevent.monkey import get_original

log = logging.getLogger(__name__)

# interval of the timer; 0.02, with a sample every 0.025 s, used a twentieth of a small manager's processor time
PERIOD_S = 0.05
HELD_S = 0.1  # longer lags are logged
POLL_INTERVAL_S = 0.05  # between samples of the stack while the timer is overdue
MAX_SAMPLES = 200  # samples of one stall: 10 s
LINE_EVERY_S = 10.0  # interval of log lines; stalls in between are counted and reported by the next line
MOST_OBSERVED = 500  # observations for one stall
BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)

_HERE = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep
_OURS = (_HERE + "procguard" + os.sep, _HERE + "remote_agent" + os.sep)
CodeLocation = tuple[str, str]  # the function that ran, and the entry point of its greenlet


class LagHistogram:
    """A histogram of the lags that requests experience, in seconds. `buckets`: counts up to each of BOUNDS_S, the last
    one for longer lags."""

    def __init__(self) -> None:
        self.buckets = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    def add(self, lag_s: float) -> None:
        """Record a lag. Requests that arrive during a stall wait for the rest of it, so a stall is counted once per
        period, each time with the remaining duration."""
        left_s = max(0.0, lag_s)
        for _ in range(MOST_OBSERVED):
            self.buckets[bisect_left(BOUNDS_S, left_s)] += 1
            self.sum_s += left_s
            left_s -= PERIOD_S
            if left_s <= 0:
                break


class LoopWatchdog:
    """Watches the event loop of the thread that starts it. `lags` is exported by /metrics."""

    def __init__(self) -> None:
        self.lags = LagHistogram()
        self._timer: Any = None
        self._thread_id = 0
        self._run = 0  # number of the start; the thread of an earlier one exits
        self._ticked_at = 0.0  # by perf_counter; the thread reads it
        self._processor_s = 0.0
        self._samples: list[CodeLocation] = []  # of the current stall; appended by the thread
        self._logged_at = float("-inf")
        self._suppressed, self._longest_suppressed_s = 0, 0.0

    def start(self) -> None:
        self._thread_id = get_original("_thread", "get_ident")()
        self._ticked_at, self._processor_s = time.perf_counter(), time.thread_time()
        self._timer = gevent.get_hub().loop.timer(PERIOD_S, PERIOD_S, ref=False)
        self._timer.start(self._tick)
        self._run += 1
        get_original("_thread", "start_new_thread")(self._watch, (self._run,))

    def stop(self) -> None:
        self._run += 1
        if self._timer is not None:
            self._timer.stop()
            self._timer.close()
            self._timer = None

    def _tick(self) -> None:
        """Called by the timer, in the hub."""
        now, processor_s = time.perf_counter(), time.thread_time()
        lag_s = now - self._ticked_at - PERIOD_S
        self.lags.add(lag_s)
        if self._samples or lag_s >= HELD_S:
            samples, self._samples = self._samples, []
            if lag_s >= HELD_S:
                self._log_stall(lag_s, processor_s - self._processor_s, samples, now)
        self._ticked_at, self._processor_s = now, processor_s

    def _log_stall(self, lag_s: float, processor_s: float, samples: list[CodeLocation], now: float) -> None:
        if now - self._logged_at < LINE_EVERY_S:
            self._suppressed += 1
            self._longest_suppressed_s = max(self._longest_suppressed_s, lag_s)
            return
        self._logged_at = now
        (what, whose), seen = Counter(samples).most_common(1)[0] if samples else (("not seen", "not seen"), 0)
        others = f" ({self._suppressed} more since the last line, {self._longest_suppressed_s:.2f} s at most)"
        log.warning(
            "event loop held seconds=%.2f processor_seconds=%.2f by=%s for=%s seen=%d/%d%s",
            lag_s,
            processor_s,
            what,
            whose,
            seen,
            len(samples),
            others if self._suppressed else "",
        )
        self._suppressed, self._longest_suppressed_s = 0, 0.0

    def _watch(self, run: int) -> None:
        """Sample the loop's stack while the timer is overdue. Runs in a native thread."""
        sleep = get_original("time", "sleep")
        while self._run == run:
            sleep(POLL_INTERVAL_S)
            late = time.perf_counter() - self._ticked_at > HELD_S / 2 + PERIOD_S
            if late and len(self._samples) < MAX_SAMPLES:
                frame = sys._current_frames().get(self._thread_id)
                if frame is not None:
                    self._samples.append(place_of(frame))


def place_of(frame: FrameType | None) -> CodeLocation:
    """The innermost function of ProcGuard on the stack (of any library if there is none) and the outermost one of its
    greenlet, each as `name (file:line)`."""
    innermost, ours, whose = frame, None, None
    while frame is not None:
        if frame.f_code.co_filename.startswith(_OURS):
            ours = ours or frame
            whose = frame
        frame = frame.f_back
    what = ours or innermost
    return _words(what), _words(whose)


def _words(frame: FrameType | None) -> str:
    if frame is None:
        return "the event loop"
    name = frame.f_code.co_filename.removeprefix(_HERE)
    return f"{frame.f_code.co_qualname} ({name}:{frame.f_lineno})"
