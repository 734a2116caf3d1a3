"""Children for log tests, as text for `python -c`: they print numbered lines and watch their own clock for gaps."""

from __future__ import annotations

import json
import sys
from pathlib import Path

# Prints `count` lines (0: for ever) at `per_s` lines a second, in bursts each `step_s`; notes the worst gap between two
# moments in which it was free to go on, beyond its own sleep. What it notes, it writes to `notes` when done, and each
# second.
_NUMBERS = """
import json, os, sys, time
count, per_s, step_s, notes, pad = int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4], sys.argv[5]
def note(done):
    with open(notes + ".new", "w") as file:
        json.dump({"lines": number, "worst_write_ms": worst_write * 1000, "worst_gap_ms": worst_gap * 1000,
                   "gaps_over_100_ms": gaps, "done": done}, file)
    os.replace(notes + ".new", notes)
number, worst_write, worst_gap, gaps = 0, 0.0, 0.0, 0
began = last = noted = time.monotonic()
while not count or number < count:
    due = int((time.monotonic() - began) * per_s) + 1
    if count:
        due = min(due, count)
    if due - number > per_s:
        due = number + int(per_s)
    if due > number:
        data = "".join("%d %s\\n" % (one, pad) for one in range(number, due)).encode()
        before = time.monotonic()
        view = memoryview(data)
        while view:
            view = view[os.write(1, view):]
        after = time.monotonic()
        worst_write = max(worst_write, after - before)
        number = due
    now = time.monotonic()
    gap = now - last
    if gap > worst_gap:
        worst_gap = gap
    if gap > 0.1:
        gaps += 1
    if now - noted > 1.0:
        noted = now
        note(False)
        now = time.monotonic()
    last = now
    time.sleep(step_s)
note(True)
"""


def numbers(notes: Path, count: int = 0, per_s: float = 1000, step_s: float = 0.002, pad: str = "") -> list[str]:
    """The command. Line n is `n <pad>`."""
    return [sys.executable, "-c", _NUMBERS, str(count), str(per_s), str(step_s), str(notes), pad]


def noted(notes: Path) -> dict[str, float]:
    try:
        found = json.loads(notes.read_text())
    except (FileNotFoundError, ValueError):
        return {}
    return dict(found)


def wrong_lines(data: bytes) -> tuple[int, int]:
    """(lost, doubled) among the numbered lines of `data`, up to its last whole line."""
    seen = [int(line.split(b" ", 1)[0]) for line in data.split(b"\n")[:-1]]
    distinct = set(seen)
    expected = (max(distinct) + 1) if distinct else 0
    return expected - len(distinct), len(seen) - len(distinct)
