"""Measures the host and each worker's process tree by reading /proc, without packages or helper processes. CPU and
memory of a container are those of its control groups, where these can be read (container_group.py).

Owns the values and the previous readings that rates require. Knows neither workers' states nor the manager. Only one
thread at a time may call `sample`. Reading /proc/<pid>/stat, status and io never waits for the process; smaps_rollup
may (it takes the lock of the memory map), so PSS is read rarely and with a time limit.
"""

from __future__ import annotations

import os
import time
from collections import namedtuple
from itertools import islice

from remote_agent.protocol.hints import Mapping, Optional
from remote_agent.protocol.messages import HostUsage, WorkerUsage
from remote_agent.system.bounded import Bounded, HangsError
from remote_agent.telemetry import container_group

PSS_EVERY_S = 60.0
PSS_TIMEOUT_S = 1.0
MAX_PSS_PROCESSES = 64
MAX_FDS = 65536
_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")

# One process at one time. ticks: user and system CPU time; start: clock ticks since boot.
Proc = namedtuple("Proc", ["pid", "ppid", "name", "state", "ticks", "threads", "start", "rss_pages"])
# The result of one reading. trees: worker_id -> its processes, including zombies.
Sample = namedtuple("Sample", ["host", "workers", "trees", "at"])


def available() -> bool:
    return read(os.getpid()) is not None


def read(pid: int) -> Optional[Proc]:
    """The state of a process; None if it does not exist."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    opening, closing = line.find(b"("), line.rfind(b")")  # a command name may contain spaces and brackets
    fields = line[closing + 2 :].split()
    if closing < 0 or len(fields) < 22:
        return None
    return Proc(
        pid,
        int(fields[1]),
        line[opening + 1 : closing].decode("utf-8", "replace"),
        fields[0].decode(),
        int(fields[11]) + int(fields[12]),
        int(fields[17]),
        int(fields[19]),
        int(fields[21]),
    )


def trees_below(roots: dict[str, int]) -> dict[str, list[Proc]]:
    """worker_id -> every process below its root (not the root), in one pass over /proc."""
    children: dict[int, list[Proc]] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            process = read(int(name))
            if process is not None:
                children.setdefault(process.ppid, []).append(process)
    return {key: _below(children, pid) for key, pid in roots.items()}


def _below(children: dict[int, list[Proc]], root: int) -> list[Proc]:
    found: list[Proc] = []
    pending, known = [root], {root}
    while pending:
        for process in children.get(pending.pop(), ()):
            if process.pid not in known:  # prevents an endless loop if a pid is reused during the pass
                known.add(process.pid)
                found.append(process)
                pending.append(process.pid)
    return found


class _Before:
    """The previous readings of one tree."""

    def __init__(self) -> None:
        self.at = 0.0  # monotonic
        self.ticks: dict[tuple[int, int], int] = {}
        self.io: Optional[tuple[int, int]] = None
        self.group: tuple[str, int] = ("", 0)  # of a container: (control group, CPU time in ns)
        self.pss_bytes: Optional[int] = None
        self.pss_at = float("-inf")


class ProcMeter:
    """Measures by /proc: sample() -> Sample. Rates refer to the time since the previous sample."""

    available = True

    def __init__(self, disk_path: str) -> None:
        self._disk_path = disk_path
        self._trees: dict[str, _Before] = {}
        self._cpu: tuple[int, int] = _host_ticks()
        self._network: Optional[tuple[float, int, int]] = None
        self._bounded = Bounded()

    def sample(
        self,
        runner_pids: dict[str, int],
        now: Optional[float] = None,
        directories: Optional[Mapping[str, str]] = None,
    ) -> Sample:
        """`runner_pids`: worker_id -> pid of its runner, whose descendants are the worker's tree. `directories`:
        worker_id -> its directory, in which the runner records the control groups of a container."""
        now = time.monotonic() if now is None else now
        trees = trees_below(runner_pids) if runner_pids else {}
        self._trees = {key: self._trees.get(key) or _Before() for key in trees}
        groups = {key: container_group.directories((directories or {}).get(key, "")) for key in trees}
        usages = {key: self._usage(tree, self._trees[key], now, groups[key]) for key, tree in trees.items()}
        return Sample(self._host(now), usages, trees, now)

    def _usage(self, tree: list[Proc], before: _Before, now: float, groups: list[str]) -> WorkerUsage:
        living = [process for process in tree if process.state not in "ZX"]
        usage = WorkerUsage(
            processes=len(living),
            rss_bytes=sum(process.rss_pages for process in living) * _PAGE,
            threads=sum(process.threads for process in living),
            fds=_sum([_open_files(process.pid) for process in living]),
        )
        elapsed_s = now - before.at if before.at else 0.0
        ticks = {(process.pid, process.start): process.ticks for process in living}
        if elapsed_s > 0:
            # A new process is younger than the previous sample, so that all its CPU time counts.
            used = sum(count - before.ticks.get(key, 0) for key, count in ticks.items())
            usage.cpu_percent = round(100.0 * max(0, used) * _TICK_S / elapsed_s, 1)
        if groups:
            _count_container(usage, before, elapsed_s, groups)
        counters = [_io(process.pid) for process in living]
        usage.read_bytes = _sum([one[0] if one else None for one in counters])
        usage.written_bytes = _sum([one[1] if one else None for one in counters])
        io = None
        if usage.read_bytes is not None and usage.written_bytes is not None:
            io = (usage.read_bytes, usage.written_bytes)
        if io is not None and before.io is not None and elapsed_s > 0:
            # A reaped child's counts are added to its parent's, so that the sum falls only if the tree's root ends.
            usage.read_bytes_per_s = round(max(0, io[0] - before.io[0]) / elapsed_s, 1)
            usage.written_bytes_per_s = round(max(0, io[1] - before.io[1]) / elapsed_s, 1)
        if now - before.pss_at >= PSS_EVERY_S and living:
            before.pss_at = now
            before.pss_bytes = self._pss(living)
        usage.pss_bytes = before.pss_bytes if living else None
        before.at, before.ticks, before.io = now, ticks, io
        return usage

    def _pss(self, living: list[Proc]) -> Optional[int]:
        if len(living) > MAX_PSS_PROCESSES or any(process.state == "D" for process in living):
            return None
        try:
            pids = [process.pid for process in living]
            found: Optional[int] = self._bounded.call(
                "pss", lambda: _sum([_pss_of(pid) for pid in pids]), PSS_TIMEOUT_S
            )
            return found
        except HangsError:
            return None

    def _host(self, now: float) -> Optional[HostUsage]:
        try:
            memory = _key_values("/proc/meminfo")
            disk = os.statvfs(self._disk_path)
            load1 = round(os.getloadavg()[0], 2)
        except (OSError, ValueError):
            return None
        usage = HostUsage(
            cpu_percent=self._host_cpu(),
            load1=load1,
            memory_used_bytes=(memory.get("MemTotal", 0) - memory.get("MemAvailable", memory.get("MemFree", 0))) * 1024,
            disk_free_bytes=disk.f_bavail * disk.f_frsize,
            disk_total_bytes=disk.f_blocks * disk.f_frsize,
            swap_used_bytes=(memory.get("SwapTotal", 0) - memory.get("SwapFree", 0)) * 1024,
        )
        totals = _network_totals()
        if totals is not None and self._network is not None and now > self._network[0]:
            elapsed_s = now - self._network[0]
            usage.network_received_bytes_per_s = round(max(0, totals[0] - self._network[1]) / elapsed_s, 1)
            usage.network_sent_bytes_per_s = round(max(0, totals[1] - self._network[2]) / elapsed_s, 1)
        self._network = (now, *totals) if totals is not None else None
        return usage

    def _host_cpu(self) -> float:
        busy, whole = _host_ticks()
        busy_before, whole_before = self._cpu
        self._cpu = (busy, whole)
        if whole <= whole_before:
            return 0.0
        return round(min(100.0, max(0.0, 100.0 * (busy - busy_before) / (whole - whole_before))), 1)


def _count_container(usage: WorkerUsage, before: _Before, elapsed_s: float, groups: list[str]) -> None:
    """Replace the sums over the processes by the control group's values. A new group is younger than the last
    sample."""
    memory = container_group.memory_bytes(groups)
    if memory is not None:
        usage.rss_bytes = memory
    cpu_ns = container_group.cpu_ns(groups)
    if cpu_ns is None:
        return
    known = before.group[1] if before.group[0] == groups[0] else 0
    if elapsed_s > 0:
        usage.cpu_percent = round(max(0, cpu_ns - known) / 1e7 / elapsed_s, 1)
    before.group = groups[0], cpu_ns


def _sum(values: list[Optional[int]]) -> Optional[int]:
    """The sum of the known values; None if there are none, as for processes of another user."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _open_files(pid: int) -> Optional[int]:
    """The number of open files, up to MAX_FDS, because counting a million descriptors would delay all measurements."""
    folder = f"/proc/{pid}/fd"
    try:
        known = os.stat(folder).st_size  # their number, since Linux 6.2
        if known:
            return known
        with os.scandir(folder) as entries:
            return sum(1 for _ in islice(entries, MAX_FDS))
    except OSError:
        return None


def _io(pid: int) -> Optional[tuple[int, int]]:
    """(bytes read from storage, bytes written to it)."""
    try:
        values = _key_values(f"/proc/{pid}/io")
        return values["read_bytes"], values["write_bytes"]
    except (OSError, KeyError, ValueError):
        return None


def _pss_of(pid: int) -> Optional[int]:
    try:
        return _key_values(f"/proc/{pid}/smaps_rollup")["Pss"] * 1024
    except (OSError, KeyError, ValueError):
        return None


def _key_values(path: str) -> dict[str, int]:
    """Parse lines of the form "Name: 123 kB" in a file of /proc."""
    values = {}
    with open(path, "rb") as file:
        for line in file.read().splitlines():
            name, colon, rest = line.partition(b":")
            words = rest.split()
            if colon and words and words[0].isdigit():
                values[name.decode("ascii", "replace")] = int(words[0])
    return values


def _host_ticks() -> tuple[int, int]:
    """(busy, total) CPU time of all cores since boot. I/O wait does not count as busy."""
    try:
        with open("/proc/stat", "rb") as file:
            fields = [int(word) for word in file.readline().split()[1:9]]
    except (OSError, ValueError):
        return 0, 0
    return (sum(fields) - fields[3] - fields[4], sum(fields)) if len(fields) >= 5 else (0, 0)


def _network_totals() -> Optional[tuple[int, int]]:
    """(received, sent) bytes of all interfaces except loopback."""
    received = sent = 0
    try:
        with open("/proc/net/dev", "rb") as file:
            for line in file.read().splitlines()[2:]:
                name, _, rest = line.partition(b":")
                words = rest.split()
                if name.strip() != b"lo" and len(words) >= 9:
                    received += int(words[0])
                    sent += int(words[8])
    except (OSError, ValueError):
        return None
    return received, sent
