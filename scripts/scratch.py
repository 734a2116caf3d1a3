"""Where the tests write: a folder in memory where there is room, else in the usual place.

A test's database waits for the disk with each commit, and a fifth of the processor time of such a test is fsync's.
What depends on the file system of a disk asks for `disk_path` (tests/unit/conftest.py).

    python scripts/scratch.py      makes a folder and prints its path, for run_tests.sh, which removes it
"""

from __future__ import annotations

import os
import tempfile

MEMORY = "/dev/shm"  # noqa: S108 - the folder in it has a name that nobody can guess
LEAST_FREE_BYTES = 4 << 30  # tests/unit leaves 0.6 GiB there, most of it logs


def base(memory: str = MEMORY, meminfo: str = "/proc/meminfo") -> str | None:
    """`memory`, if programs may run from it and both it and the machine have room; None: the usual place."""
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
    """Its path is short, as unix sockets must be, and other users may pass through it: tests become them."""
    path = tempfile.mkdtemp(prefix="pgt.", dir=base() or "/tmp")  # noqa: S108 - the same
    os.chmod(path, 0o711)  # noqa: S103
    return path


if __name__ == "__main__":
    print(make())
