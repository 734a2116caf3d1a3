"""What scripts/bench/portal_frames.py reads from Chromium's trace: the page's tasks from one frame to the next."""

from __future__ import annotations

from typing import Any

from scripts.bench.portal_frames import MARK, Frame, frames


def task(start_ms: float, clock_ms: float, processor_ms: float, thread: int = 1) -> dict[str, Any]:
    times = {"ts": 1000 * start_ms, "dur": 1000 * clock_ms, "tdur": 1000 * processor_ms}
    return {"name": "RunTask", "cat": "disabled-by-default-devtools.timeline", "pid": 7, "tid": thread, **times}


def mark(at_ms: float) -> dict[str, Any]:
    return {"name": MARK, "cat": "blink.user_timing", "pid": 7, "tid": 1, "ts": 1000 * at_ms}


def test_a_frame_is_charged_with_everything_up_to_the_next() -> None:
    before, other_thread = task(0, 5, 5), task(11, 30, 30, thread=2)
    first = [task(10, 8, 4), mark(12), task(19, 6, 6)]  # a live frame comes between
    second = [task(30, 40, 3), mark(65)]  # it waited for a processor
    last = [task(80, 2, 2), mark(81)]
    assert frames([*last, before, *first, other_thread, *second]) == [Frame(10.0, 14.0), Frame(3.0, 40.0)]
