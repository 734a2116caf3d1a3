"""Detects process trees that listen for connections and have none: idle servers, which are not hangs.

Only reads /proc, in bounded time. Blocks while the kernel prints its socket tables, so it runs in a helper thread.
Knows neither workers' states nor the manager. A rank of a distributed job is connected to its peers for its whole life
and therefore never counts as idle.
"""

from __future__ import annotations

import os

from remote_agent.protocol.hints import Iterable
from remote_agent.telemetry.procfs import Sample

POLL_INTERVAL_S = 30.0
IDLE_PERCENT = 1.0  # of one core; busier trees are not examined
MAX_PROCESSES, MAX_FDS, MAX_TABLE_BYTES = 64, 1024, 4 * 1024 * 1024
_LISTEN, _ESTABLISHED = b"0A", b"01"
_UNIX_LISTENS = 0x10000


class Listening:
    """Probes the idle trees of a sample, each at most every POLL_INTERVAL_S."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, bool]] = {}  # worker -> (monotonic time, result)

    def probe(self, sample: Sample, now: float) -> set[str]:
        """Returns the workers that are waiting for connections. `sample`: proc_usage.Sample."""
        known = self._known
        self._known = {}
        for worker_id, usage in sample.workers.items():
            if usage is None or usage.cpu_percent >= IDLE_PERCENT:
                continue
            found = known.get(worker_id)
            if found is None or now - found[0] >= POLL_INTERVAL_S:
                found = (now, waits_for_connections([process.pid for process in sample.trees.get(worker_id, ())]))
            self._known[worker_id] = found
        return {worker_id for worker_id, (_, waits) in self._known.items() if waits}


def waits_for_connections(pids: Iterable[int]) -> bool:
    """Whether one of the processes listens (on TCP or a Unix socket) and none has a TCP connection."""
    pids = list(pids)[:MAX_PROCESSES]
    own = {inode for pid in pids for inode in _sockets(pid)}
    if not own:
        return False
    listening: set[bytes] = set()
    for pid in pids[:1]:  # all processes of a tree share one network namespace
        for table in ("tcp", "tcp6"):
            for line in _lines(f"/proc/{pid}/net/{table}"):
                fields = line.split()
                if len(fields) > 9 and fields[9] in own:
                    if fields[3] == _ESTABLISHED:
                        return False
                    if fields[3] == _LISTEN:
                        listening.add(fields[9])
        for line in _lines(f"/proc/{pid}/net/unix"):
            fields = line.split()
            if len(fields) > 6 and fields[6] in own and int(fields[3], 16) & _UNIX_LISTENS:
                listening.add(fields[6])
    return bool(listening)


def _sockets(pid: int) -> "set[bytes]":
    """The inodes of the process's sockets; empty if they are not readable."""
    found: "set[bytes]" = set()
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return found
    for name in names[:MAX_FDS]:
        try:
            target = os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1].encode())
    return found


def _lines(path: str) -> "list[bytes]":
    try:
        with open(path, "rb") as file:
            return file.read(MAX_TABLE_BYTES).splitlines()[1:]
    except OSError:
        return []
