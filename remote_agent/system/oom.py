"""Counts kills by the kernel's OOM killer in this control group or host: an increase explains a SIGKILL."""

from __future__ import annotations

import os

EVERYWHERE = "/proc/vmstat"
MAX_BYTES = 65536  # /proc/vmstat has about 4 KiB, memory.events 100 bytes


class OomCounter:
    """Counts OOM kills in this process's control group, or that of `pid`; on the whole host without control groups.

    The file is located at the first reading, which must follow joining the group. If it is gone, the last count is
    kept.
    """

    def __init__(self, pid: int = 0) -> None:
        self._pid = pid
        self._path = ""
        self._last = 0

    def read(self) -> int:
        for path in (self._path,) if self._path else (*_counters(self._pid), EVERYWHERE):
            count = _read(path)
            if count is not None:
                self._path, self._last = path, count
                break
        return self._last


def _read(path: str) -> int | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = b"\n" + os.read(descriptor, MAX_BYTES)
        finally:
            os.close(descriptor)
        found = text.partition(b"\noom_kill ")[2].split(maxsplit=1)
        return int(found[0]) if found else None
    except (OSError, ValueError):
        return None


def _counters(pid: int) -> list[str]:
    """The nearest group first: a v2 group without the memory controller has none, but one above it may."""
    found = []
    try:
        with open(f"/proc/{pid or 'self'}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
            for line in file:
                number, controllers, path = line.rstrip("\n").split(":", 2)
                if number == "0":
                    while path not in ("", "/"):
                        found.append(f"/sys/fs/cgroup{path}/memory.events")
                        path = os.path.dirname(path)
                elif controllers == "memory":
                    found.append(f"/sys/fs/cgroup/memory{path}/memory.oom_control")
    except (OSError, ValueError):
        pass
    return found
