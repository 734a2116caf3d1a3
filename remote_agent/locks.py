"""Whether somebody holds a lock: how agents and runners are known to be alive. A pid file alone proves nothing."""

from __future__ import annotations

import fcntl
import os


def lock_held(path: str) -> bool:
    """Whether somebody holds the flock on `path`. A missing file is held by nobody."""
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


def is_still_at(path: str, descriptor: int) -> bool:
    """False when the file was removed or replaced while we opened it: then the lock protects nothing."""
    try:
        there, here = os.stat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino)
