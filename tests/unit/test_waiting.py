"""The stopwatch for time bounds on a busy machine."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.waiting import Stopwatch

SPIN = "while True: pass"


def test_what_others_take_of_the_processor_is_not_counted_and_waiting_for_nothing_is() -> None:
    everywhere = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(everywhere)})  # of this thread, and what it starts
    others = [subprocess.Popen([sys.executable, "-I", "-S", "-c", SPIN]) for _ in range(3)]
    try:
        watch, began, own = Stopwatch(), time.monotonic(), time.thread_time()
        while time.thread_time() - own < 0.2:
            pass
        shown, took_s = watch.seconds, time.monotonic() - began
        assert 0.15 < shown < 0.6 * took_s, "three others had their turns"
    finally:
        os.sched_setaffinity(0, everywhere)
        for one in others:
            one.kill()
            one.wait()
    watch = Stopwatch()
    time.sleep(0.05)
    assert watch.seconds > 0.04
