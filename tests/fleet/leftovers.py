"""Ends and removes what a fleet made: its processes, its bridge and cables, its directory.

Owns the names and the records of a fleet (in `<base>/pg-<pid>-<subnet>/`: `owner.json`, `hosts/<n>/process.json`);
knows nothing of how hosts are built. Nothing is touched that the records don't name: a process is (pid, start time), a
link is a fleet's bridge or in it. Runs by itself too: `python leftovers.py <fleet directory>` waits for its standard
input to end, which it does when the tests have died in whatever way, and cleans up after them.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from typing import Any

PREFIX = "pg-"
BASES = ("/dev/shm", "/run")  # file systems that can carry an overlay's upper layer: tmpfs, everywhere


def start_time(pid: int) -> str | None:
    """Field 22 of /proc/<pid>/stat; None when the process is gone or only its exit status remains."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in ("Z", "X") else fields[19]


def is_alive(pid: int, started: str | None) -> bool:
    return started is not None and start_time(pid) == started


def fleet_name(owner_pid: int, subnet: int) -> str:
    """Of the directory and of the bridge: at most 15 characters, as a link's name must be."""
    return f"{PREFIX}{owner_pid}-{subnet}"


def owner_of(name: str) -> int | None:
    """The pid in a fleet's name, None for names that are not a fleet's."""
    found = re.fullmatch(re.escape(PREFIX) + r"(\d+)-\d+", name)
    return int(found[1]) if found else None


def cable_name(subnet: int, number: int) -> str:
    return f"pg{subnet}-{number}"


def read_record(path: str) -> dict[str, Any]:
    try:
        with open(path) as file:
            record = json.load(file)
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def end_process(pid: int, started: str | None, timeout_s: float = 10.0) -> None:
    """SIGKILL exactly this process (for a host's `unshare`: its whole pid namespace) and wait until it is gone."""
    if not is_alive(pid, started):
        return
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    deadline = time.monotonic() + timeout_s
    while is_alive(pid, started) and time.monotonic() < deadline:
        time.sleep(0.005)


def clean(directory: str) -> None:
    """Remove one fleet whole. Safe to call again, and on a half-built or half-removed one."""
    hosts = os.path.join(directory, "hosts")
    for name in sorted(os.listdir(hosts)) if os.path.isdir(hosts) else []:
        record = read_record(os.path.join(hosts, name, "process.json"))
        for role in ("init", "unshare"):
            if f"{role}_pid" in record:
                end_process(int(record[f"{role}_pid"]), record.get(f"{role}_start"))
    remove_bridge(os.path.basename(directory))
    shutil.rmtree(directory, ignore_errors=True)


def remove_bridge(name: str) -> None:
    """The bridge and the cables in it. The far end of a cable lies in its host and goes with it."""
    cables = f"/sys/class/net/{name}/brif"
    for link in [*(os.listdir(cables) if os.path.isdir(cables) else []), name]:
        if os.path.exists(f"/sys/class/net/{link}"):
            subprocess.run(["ip", "link", "delete", link], check=False, stderr=subprocess.DEVNULL)


def clean_stale() -> list[str]:
    """Remove the fleets whose tests are dead. Returns their names."""
    stale = set()
    for base in BASES:
        for name in os.listdir(base) if os.path.isdir(base) else []:
            directory = os.path.join(base, name)
            if os.path.isdir(directory) and owner_is_dead(name, read_record(os.path.join(directory, "owner.json"))):
                clean(directory)
                stale.add(name)
    for link in os.listdir("/sys/class/net"):
        if owner_is_dead(link, {}):
            remove_bridge(link)
            stale.add(link)
    return sorted(stale)


def owner_is_dead(name: str, record: dict[str, Any]) -> bool:
    """Whether `name` is a fleet's and its tests are gone. A record tells a reused pid from the owner."""
    owner = owner_of(name)
    if owner is None:
        return False
    return not is_alive(owner, record["start"]) if "start" in record else start_time(owner) is None


if __name__ == "__main__":
    sys.stdin.read()
    clean(sys.argv[1])
