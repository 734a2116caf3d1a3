"""Records which bytes of a stored stream are not on this manager's disk although the archive has them or the worker's
host may have them: after a takeover, a log begins where the previous manager stopped receiving it.

`<attempt>.<stream>.absent` has a line "start end" for each range, ascending; the log file has a hole there. Rewritten
atomically and durably: a range is removed once its bytes are on the disk or known to be lost. Knows no hosts.
"""

from __future__ import annotations

import contextlib
import errno
import os

from procguard.portal.logs.archive.coverage import Range, merged
from remote_agent.system import paths

ENDING = ".absent"
MAX_RANGES = 1_000  # per stream: one for each takeover, and for each part fetched from the middle


def read(base: str, size: int) -> list[Range]:
    """The absent ranges, ascending, none beyond the stream's `size`."""
    try:
        with open(base + ENDING, encoding="ascii") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError):
        return []
    found = []
    for line in lines:
        words = line.split()
        if len(words) == 2 and all(word.isdigit() for word in words):
            start, end = int(words[0]), min(int(words[1]), size)
            if start < end:
                found.append((start, end))
    return sorted(found)


def add(base: str, start: int, end: int) -> None:
    """Raises OSError."""
    ranges = read(base, start)
    if len(ranges) >= MAX_RANGES:
        raise OSError(errno.EFBIG, "too many parts of this log are not on the manager's disk")
    if ranges and ranges[-1][1] == start:
        start = ranges.pop()[0]
    _write(base, [*ranges, (start, end)])


def put(base: str, size: int, ranges: list[Range]) -> None:
    """Mark bytes as absent: they are removed from the disk, and the archive has them. Raises OSError."""
    found = merged([*read(base, size), *ranges])
    if len(found) > MAX_RANGES:
        raise OSError(errno.EFBIG, "too many parts of this log are not on the manager's disk")
    _write(base, found)


def within(ranges: list[Range], start: int, end: int) -> list[Range]:
    """The absent parts of [start, end)."""
    return [(max(one, start), min(other, end)) for one, other in ranges if one < end and start < other]


def remove(base: str, size: int, start: int, end: int) -> None:
    """Unmark bytes that are on the disk now or known to be lost. Raises OSError."""
    left: list[Range] = []
    for one, other in read(base, size):
        left += [part for part in ((one, min(other, start)), (max(one, end), other)) if part[0] < part[1]]
    if len(left) > MAX_RANGES:
        raise OSError(errno.EFBIG, "too many parts of this log are not on the manager's disk")
    if left:
        _write(base, left)
    else:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(base + ENDING)


def _write(base: str, ranges: list[Range]) -> None:
    text = "".join(f"{start} {end}\n" for start, end in ranges)
    paths.write_atomic(base + ENDING, text.encode(), durable=True)
