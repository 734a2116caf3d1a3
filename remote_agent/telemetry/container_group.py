"""Usage of a container according to its control groups: CPU time, including processes too short-lived to be sampled,
and memory, with shared pages counted once.

Reads the kernel's files of cgroup v1 or v2, in the directories recorded by the runner. Knows no processes.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import Optional
from remote_agent.system import cgroup

GROUPS_FILE = "container.groups"  # written by the runner (runner/task/container_job.py) to the worker's directory
PREFIX = "libpod-"
MAX_BYTES = 65536


def directories(worker_directory: str) -> list[str]:
    """The control groups of the worker's container, outermost first; empty if it has none or they no longer exist."""
    try:
        with open(os.path.join(worker_directory, GROUPS_FILE), encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read(MAX_BYTES).split("\n")
    except OSError:
        return []
    found = [line for line in lines if line.startswith(cgroup.MOUNTS[0] + "/") and PREFIX in line and "/.." not in line]
    return sorted((one for one in found if os.path.isdir(one)), key=len)


def cpu_ns(groups: list[str]) -> Optional[int]:
    """User and system CPU time since the container's start; None if it is not accounted or not readable."""
    for group in groups:
        value = _values(os.path.join(group, "cpu.stat")).get("usage_usec")  # version 2
        if value is not None:
            return value * 1000
        value = _number(os.path.join(group, "cpuacct.usage"))
        if value is not None:
            return value
    return None


def memory_bytes(groups: list[str]) -> Optional[int]:
    """Memory without the inactive file cache, which can be reclaimed at once. None if it is not accounted."""
    for group in groups:
        for usage, inactive in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
            value = _number(os.path.join(group, usage))
            if value is not None:
                return max(0, value - _values(os.path.join(group, "memory.stat")).get(inactive, 0))
    return None


def _number(path: str) -> Optional[int]:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _values(path: str) -> dict[str, int]:
    """Parse lines of the form "name 123"."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdigit()}


def _read(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.read(MAX_BYTES)
    except OSError:
        return ""
