"""Emulates a slower processor: a control group whose quota makes a bare request of pywsgi take a given time.

The quota limits the share of one core that a server gets, in periods of 10 ms, by the kernel's CFS bandwidth control
(`cpu.max` of cgroup v2, `cpu.cfs_quota_us` of v1). Needs root and a writable control group; otherwise the benchmark
reports this and runs without a quota.
"""

from __future__ import annotations

import contextlib
import os
import time

SLOW_TO = "a quota by which a bare request of pywsgi takes so many microseconds of the clock (default: none)"
PERIOD_US = 10_000
LEAST_US = 1_000  # the kernel's least quota
V1, V2 = "/sys/fs/cgroup/cpu", "/sys/fs/cgroup"
ENDS_WITHIN_S = 5.0


class Quota:
    """A control group whose processes get `share` of one core. `why_not`: why there is no quota; "" if there is one."""

    def __init__(self, share: float, v1: str = V1, v2: str = V2) -> None:
        self.share = min(1.0, share)
        self.why_not = ""
        quota_us = max(LEAST_US, round(self.share * PERIOD_US))
        name = f"procguard-bench-{os.getpid()}"
        if os.path.exists(os.path.join(v1, "cpu.cfs_quota_us")):
            self._folder = os.path.join(v1, name)
            values = {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(quota_us)}
        else:
            self._folder = os.path.join(v2, name)
            values = {"cpu.max": f"{quota_us} {PERIOD_US}"}
        try:
            os.makedirs(self._folder, exist_ok=True)
            for file, value in values.items():
                _write(os.path.join(self._folder, file), value)
        except OSError as exc:
            self.why_not = f"no quota: {self._folder} cannot be set up ({exc.strerror}); run as root"
            self.close()

    def add(self, pid: int) -> None:
        """Add a process, with all processes that it starts from now on."""
        if not self.why_not:
            _write(os.path.join(self._folder, "cgroup.procs"), str(pid))

    def close(self) -> None:
        """Remove the control group; its processes must have ended."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while os.path.isdir(self._folder) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)
                return
            time.sleep(0.05)


def slowed(bare_us: float, slow_to_us: float) -> Quota | None:
    """A quota with which a request of `bare_us` takes `slow_to_us`, both in µs; None if `slow_to_us` is not larger, for
    example 0 for no quota."""
    return Quota(bare_us / slow_to_us) if slow_to_us > bare_us else None


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
