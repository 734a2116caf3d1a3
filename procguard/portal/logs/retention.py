"""Retention of workers' logs on the manager: what to delete, so that each worker and all together stay within their
limits. Pure except for `measure`, which reads the disk.

Old attempts are deleted first; of a worker's newest attempt the beginning is deleted, as a hole with a marker. If the
total is too large, workers above an equal share are trimmed first, so that the largest writer displaces only its own
output.
"""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

_NAME = re.compile(r"^([0-9]{1,10})\.(out|err)\.(log|idx|gaps|absent)$")
STEP_BYTES = 1024 * 1024  # holes end at multiples of it: few, and of whole blocks
ROOM = 8  # frees an eighth more than needed, so that it is not done for every line
GONE = ".gone"  # suffix of the folder of a removed worker


@dataclass(frozen=True)
class Held:
    """One stream: its length, its size on the disk, the size of its index and list of gaps (deleted only with the
    attempt), and the time of its last write."""

    attempt: int
    stream: str
    size: int
    held: int
    beside: int = 0
    written_at: float = 0.0  # Unix seconds


@dataclass(frozen=True)
class Cut:
    """The deletions: attempts below `floor` completely, and the bytes before an offset of each stream in `heads`."""

    floor: int
    heads: dict[tuple[int, str], int]


def measure(directory: str) -> dict[str, list[Held]]:
    """{worker's folder: its streams}. Folders of removed workers are named with their suffix."""
    found: dict[str, list[Held]] = {}
    for folder in os.scandir(directory):
        if folder.is_dir(follow_symlinks=False):
            found[folder.name] = measure_one(folder.path)
    return found


def measure_one(folder: str) -> list[Held]:
    logs: dict[tuple[int, str], tuple[int, int, float]] = {}
    beside: Counter[tuple[int, str]] = Counter()
    try:
        for entry in os.scandir(folder):
            match = _NAME.match(entry.name)
            if match:
                status, key = entry.stat(follow_symlinks=False), (int(match[1]), match[2])
                if match[3] == "log":
                    logs[key] = (status.st_size, status.st_blocks * 512, status.st_mtime)
                else:
                    beside[key] += status.st_blocks * 512
    except FileNotFoundError:
        pass
    return [Held(*key, size, held, beside[key], written_at) for key, (size, held, written_at) in logs.items()]


def total(streams: list[Held]) -> int:
    return sum(one.held + one.beside for one in streams)


def decide(streams: list[Held], keep_bytes: int) -> Cut | None:
    """Decide what is deleted of one worker's logs; None if they are within the limit."""
    held = total(streams)
    if held <= keep_bytes or not streams:
        return None
    over = held - keep_bytes + keep_bytes // ROOM
    newest = max(one.attempt for one in streams)
    floor = 0
    for attempt in sorted({one.attempt for one in streams} - {newest}):
        if over <= 0:
            break
        over -= total([one for one in streams if one.attempt == attempt])
        floor = attempt + 1
    heads = {}
    for one in sorted((one for one in streams if one.attempt == newest), key=lambda one: -one.held):
        give = min(over, one.held) // STEP_BYTES * STEP_BYTES
        if give > 0:
            heads[(one.attempt, one.stream)] = (one.size - one.held + give) // STEP_BYTES * STEP_BYTES
            over -= give
    return Cut(floor, heads)


def share(held: Mapping[str, int], keep_bytes: int) -> int | None:
    """The size that each worker may keep if the total exceeds its limit; None if it does not. Unused parts of an equal
    share are available to the others."""
    if sum(held.values()) <= keep_bytes:
        return None
    left, sizes = keep_bytes - keep_bytes // ROOM, sorted(held.values())
    for index, size in enumerate(sizes):
        equal = left // (len(sizes) - index)
        if size > equal:
            return equal
        left -= size
    return None


def bound_of_disk(directory: str, keep_bytes: int) -> int:
    """The limit for all logs in bytes: `keep_bytes`, but at most half of the file system of the logs."""
    return min(keep_bytes, shutil.disk_usage(directory).total // 2)
