"""Measures the cost of each frame of a scroll in the page's thread: handlers, refilled rows, style, layout, paint, and
anything else (live frames, garbage collection) before the next frame. The cost is processor time from Chromium's trace,
because on a shared machine a frame may wait for a processor; the elapsed time is reported for comparison."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from playwright.sync_api import Page

CATEGORIES = ["blink.user_timing", "disabled-by-default-devtools.timeline"]
MARK = "scrolled"
# Scrolls by most of a screen in each of 200 frames.
SCROLL = """async (mark) => {
  const grid = document.querySelector('.workers-table');
  grid.scrollTop = 0;
  for (let step = 0; step <= 200; step += 1) {
    await new Promise((done) => requestAnimationFrame(done));
    performance.mark(mark);
    grid.scrollTop += 500;
  }
  await new Promise((done) => requestAnimationFrame(done));
}"""


class Frame(NamedTuple):
    processor_ms: float
    clock_ms: float


def scroll(page: Page) -> list[Frame]:
    browser = page.context.browser
    assert browser is not None
    browser.start_tracing(page=page, categories=CATEGORIES)
    page.evaluate(SCROLL, MARK)
    return frames(json.loads(browser.stop_tracing())["traceEvents"])


def frames(events: list[dict[str, Any]]) -> list[Frame]:
    """One frame for each task of the page's thread with a mark, including the tasks up to the next such task."""
    marks = [one for one in events if one["name"] == MARK and "blink.user_timing" in one["cat"]]
    threads = {(one["pid"], one["tid"]) for one in marks}
    assert len(threads) == 1, f"marks of {len(threads)} threads"
    tasks = [one for one in events if one["name"] == "RunTask" and (one["pid"], one["tid"]) in threads and "dur" in one]
    times = sorted(one["ts"] for one in marks)
    found: list[list[float]] = []
    at = 0
    for task in sorted(tasks, key=lambda one: one["ts"]):
        if at < len(times) and task["ts"] <= times[at] <= task["ts"] + task["dur"]:
            at += 1
            found.append([0.0, 0.0])
        if found:
            found[-1][0] += task.get("tdur", task["dur"]) / 1000
            found[-1][1] += task["dur"] / 1000
    assert at == len(times), f"{at} of {len(times)} frames have a task"
    return [Frame(*one) for one in found[:-1]]  # the last frame is incomplete
