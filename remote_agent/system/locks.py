"""File locks: waiting for a lock, and checking whether it is held, which shows that an agent or runner is alive (a pid
file alone proves nothing).
"""

from __future__ import annotations

import fcntl
import os
import time


def lock_held(path: str) -> bool:
    """Whether the flock on `path` is held. False for a missing file."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(fd)
    return False


def lock_within(descriptor: int, timeout_s: float) -> bool:
    """Take the exclusive flock of an open file. Returns False if another process holds it for `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
        time.sleep(0.05)


def is_still_at(path: str, descriptor: int) -> bool:
    """False when the file was removed or replaced while we opened it: then the lock protects nothing."""
    try:
        there, here = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
