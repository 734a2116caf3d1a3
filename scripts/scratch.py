"""Chooses the folder to which tests write: in memory if there is room, else the usual temporary folder.

On a disk, every commit of a test's database waits, and fsync takes a fifth of the processor time of such a test. Tests
that depend on the file system of a disk use `disk_path` (tests/unit/conftest.py).

    python scripts/scratch.py      creates a folder and prints its path, for run_tests.sh, which removes it
"""

from __future__ import annotations

import os
import tempfile

MEMORY = "/dev/shm"  # noqa: S108 - the folder in it has a name that nobody can guess
LEAST_FREE_BYTES = 4 << 30  # tests/unit leaves 0.6 GiB there, most of it logs


def base(memory: str = MEMORY, meminfo: str = "/proc/meminfo") -> str | None:
    """The folder `memory`, if programs may be run from it and both it and the machine have room; None for the usual
    one."""
    try:
        found = os.statvfs(memory)
        with open(meminfo, encoding="ascii") as file:
            kib = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in file)}
        free_bytes = min(found.f_bavail * found.f_frsize, kib["MemAvailable"] * 1024)
    except (OSError, ValueError, KeyError):
        return None
    if found.f_flag & os.ST_NOEXEC or not os.access(memory, os.W_OK | os.X_OK) or free_bytes < LEAST_FREE_BYTES:
        return None
    return memory


def make() -> str:
    """Create a folder. Its path is short enough for unix sockets, and other users may traverse it, because tests run
    processes as other users."""
    path = tempfile.mkdtemp(prefix="pgt.", dir=base() or "/tmp")  # noqa: S108 - the same
    os.chmod(path, 0o711)  # noqa: S103
    return path


if __name__ == "__main__":
    print(make())
