"""Measures CPU, memory and processes with psutil, for hosts without /proc. Fewer numbers than proc_usage.

Owns the earlier readings that a percentage needs. One thread at a time may call `sample`.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, Optional

from remote_agent.proc_usage import Sample
from remote_agent.protocol import HostUsage, WorkerUsage

VENDOR_DIR = os.path.join(os.path.dirname(os.path.abspath(__file__)), "vendor")


def load_psutil(vendor_dir: str = VENDOR_DIR) -> Any:
    """The psutil module: the one that travels in the bundle first, else the system's, else None."""
    if os.path.isdir(os.path.join(vendor_dir, "psutil")) and vendor_dir not in sys.path:
        sys.path.insert(0, vendor_dir)
    try:
        import psutil
    except Exception:  # a wheel for another platform fails in more ways than ImportError
        return None
    return psutil


class PsutilMeter:
    """sample() -> Sample; percentages are over the time since the sample before."""

    def __init__(self, psutil: Any, disk_path: str) -> None:
        self._psutil = psutil
        self._disk_path = disk_path
        self._sampled_at = 0.0  # monotonic
        self._cpu_s: dict[tuple[int, float], float] = {}  # (pid, start) -> CPU seconds at the last sample
        psutil.cpu_percent(None)  # the first call has nothing to compare with

    available = True

    def sample(self, runner_pids: dict[str, int], now: Optional[float] = None) -> Sample:
        """`runner_pids`: worker_id -> pid of its runner, whose descendants are the worker's tree."""
        now = time.monotonic() if now is None else now
        elapsed_s = now - self._sampled_at if self._sampled_at else 0.0
        self._sampled_at = now
        seen: dict[tuple[int, float], float] = {}
        children = self._children() if runner_pids else {}
        usages = {}
        for worker_id, pid in runner_pids.items():
            usages[worker_id] = self._tree(_descendants(children, pid), elapsed_s, seen)
        self._cpu_s = seen
        return Sample(self._host(), usages, {}, now)

    def _children(self) -> dict[int, list[Any]]:
        """parent pid -> processes, in one pass over the host."""
        children: dict[int, list[Any]] = {}
        for process in self._psutil.process_iter():
            try:
                children.setdefault(process.ppid(), []).append(process)
            except self._psutil.Error:
                continue
        return children

    def _tree(self, processes: list[Any], elapsed_s: float, seen: dict[tuple[int, float], float]) -> WorkerUsage:
        usage = WorkerUsage()
        used_s = 0.0
        for process in processes:
            try:
                with process.oneshot():
                    times = process.cpu_times()
                    key = (process.pid, process.create_time())
                    usage.rss_bytes += process.memory_info().rss
                    usage.threads += process.num_threads()
            except self._psutil.Error:
                continue  # ended meanwhile
            usage.processes += 1
            seen[key] = times.user + times.system
            # A process unknown before is younger than the last sample: all it used counts. Not at the first sample.
            used_s += seen[key] - self._cpu_s.get(key, 0.0 if self._cpu_s else seen[key])
        usage.cpu_percent = round(100.0 * max(0.0, used_s) / elapsed_s, 1) if elapsed_s > 0 else 0.0
        return usage

    def _host(self) -> Optional[HostUsage]:
        try:
            memory = self._psutil.virtual_memory()
            disk = os.statvfs(self._disk_path)
            return HostUsage(
                cpu_percent=self._psutil.cpu_percent(None),
                load1=round(os.getloadavg()[0], 2),
                memory_used_bytes=memory.total - memory.available,
                disk_free_bytes=disk.f_bavail * disk.f_frsize,
            )
        except (OSError, self._psutil.Error):
            return None


def _descendants(children: dict[int, list[Any]], pid: int) -> list[Any]:
    found: list[Any] = []
    todo = [pid]
    known = {pid}
    while todo:
        for process in children.get(todo.pop(), ()):
            if process.pid not in known:  # pids are reused while one pass reads them: never go round in circles
                known.add(process.pid)
                found.append(process)
                todo.append(process.pid)
    return found
