"""The last lines of a worker's log file, bounded, as a terminal would leave them."""

from __future__ import annotations

import os

TAIL_BYTES = 64 * 1024
MAX_LINES = 400
MAX_LINE_CHARS = 2000


def read_tail(path: str) -> list[tuple[int, str]]:
    """(offset, text) of the last lines of a file, as a terminal would leave them."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        size = os.fstat(descriptor).st_size
        start = max(0, size - TAIL_BYTES)
        data = os.pread(descriptor, TAIL_BYTES, start)
    except OSError:
        return []
    finally:
        os.close(descriptor)
    first, *rest = data.rsplit(b"\n", MAX_LINES)
    if start or len(rest) == MAX_LINES:  # the first line is incomplete
        start += len(first) + 1
    else:
        rest.insert(0, first)
    lines = []
    for line in rest:
        shown = line.rstrip(b"\r")
        cut = shown.rfind(b"\r") + 1
        lines.append((start + cut, plain(shown[cut : cut + MAX_LINE_CHARS])))
        start += len(line) + 1
    return lines


def plain(line: bytes) -> str:
    """The line as text, without colours and control characters."""
    text = line.decode("utf-8", "replace")
    if "\x1b" in text:
        first, *rest = text.split("\x1b")
        text = first + "".join(_behind_escape(part) for part in rest)
    text = text.replace("\t", "    ")
    return text if text.isprintable() else "".join(one for one in text if one.isprintable())


def _behind_escape(part: str) -> str:
    if part.startswith("]"):  # a title or a link (OSC), up to BEL or to an escape, with which the next part begins
        return part.partition("\x07")[2]
    if not part.startswith("["):
        return part[1:]
    for at in range(1, len(part)):
        if "@" <= part[at] <= "~":
            return part[at + 1 :]
    return ""
