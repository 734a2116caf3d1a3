"""Facts about the host (HostFacts), and selection of the meter: /proc if it is readable, otherwise none.

`sample()` of either returns a proc_usage.Sample. Without /proc, usage is "unavailable" and everything else works.
"""

from __future__ import annotations

import os
import pwd
import sys

from remote_agent.protocol.hints import Mapping, Optional, Union
from remote_agent.protocol.messages import HostFacts
from remote_agent.telemetry import procfs
from remote_agent.telemetry.procfs import ProcMeter, Sample


class NoMeter:
    available = False

    def sample(
        self,
        runner_pids: dict[str, int],
        now: Optional[float] = None,
        directories: Optional[Mapping[str, str]] = None,
    ) -> Sample:
        return Sample(None, {}, {}, 0.0)


Meter = Union[ProcMeter, NoMeter]


def choose_meter(disk_path: str) -> Meter:
    return ProcMeter(disk_path) if procfs.available() else NoMeter()


def host_facts() -> HostFacts:
    """The facts that do not change while the agent runs."""
    uname = os.uname()
    try:
        memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        memory_bytes = 0
    return HostFacts(
        hostname=uname.nodename,
        os=_os_name() or f"{uname.sysname} {uname.release}",
        python=".".join(str(part) for part in sys.version_info[:3]),
        user=user_name(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 0),
        memory_bytes=memory_bytes,
    )


def user_name() -> str:
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a uid without an entry, as is usual in containers
        return str(os.getuid())


def _os_name() -> str:
    try:
        with open("/etc/os-release", encoding="utf-8") as file:
            for line in file:
                if line.startswith("PRETTY_NAME="):
                    return line.split("=", 1)[1].strip().strip('"')
    except OSError:
        pass
    return ""
