"""A processor as slow as another machine's: a control group whose quota makes a bare request of pywsgi take as long.

The quota bounds how much of one core a server gets, in slices of 10 ms, by the kernel's CFS bandwidth control
(`cpu.max` of cgroup v2, `cpu.cfs_quota_us` of v1). Needs root and a writable control group; else the bench says so and
runs without.
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
    """`share` of one core for those whose pids are added; `why_not` says why there is none, "" where there is."""

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
        """It and what it starts from now on."""
        if not self.why_not:
            _write(os.path.join(self._folder, "cgroup.procs"), str(pid))

    def close(self) -> None:
        """Once its processes have ended."""
        deadline = time.monotonic() + ENDS_WITHIN_S
        while os.path.isdir(self._folder) and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                os.rmdir(self._folder)
                return
            time.sleep(0.05)


def slowed(bare_us: float, slow_to_us: float) -> Quota | None:
    """As much of a core that a request of `bare_us` takes `slow_to_us`; None: none is asked for, or it takes as long
    without."""
    return Quota(bare_us / slow_to_us) if slow_to_us > bare_us else None


def _write(path: str, value: str) -> None:
    with open(path, "w", encoding="ascii") as file:
        file.write(value)
