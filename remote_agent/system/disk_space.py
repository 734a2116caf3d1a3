"""Free space of a file system, and space reserved inside a file for later writes.

Blocks allocated beyond the end of a file (fallocate with KEEP_SIZE) belong to the file: appends up to there succeed
even if the disk is full. Knows neither logs nor workers.
"""

from __future__ import annotations

import ctypes
import errno
import os

from remote_agent.protocol.hints import Optional

KEEP_SIZE = 0x01  # FALLOC_FL_KEEP_SIZE
# Below this free space, the next write may fail.
LOW_BYTES = 1024 * 1024
LOW_INODES = 8
PROBE_BYTES = 4096
_libc: Optional[ctypes.CDLL] = None


def allocate(descriptor: int, offset: int, length: int) -> int:
    """Allocate `length` bytes from `offset` on without changing the size. Returns 0 or the errno: ENOSPC if the disk
    is full, EOPNOTSUPP (or ENOSYS) if the file system does not support it."""
    global _libc
    try:
        if _libc is None:
            _libc = ctypes.CDLL(None, use_errno=True)
        fallocate = _libc.fallocate64
    except (OSError, AttributeError):
        return errno.ENOSYS
    arguments = (ctypes.c_int(descriptor), ctypes.c_int(KEEP_SIZE), ctypes.c_int64(offset), ctypes.c_int64(length))
    while fallocate(*arguments) != 0:
        if ctypes.get_errno() != errno.EINTR:
            return ctypes.get_errno() or errno.EIO
    return 0


def give_back_beyond_end(path: str) -> None:
    """Release the reserved space beyond the end of a file that is no longer written. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        size = os.fstat(descriptor).st_size
        os.ftruncate(descriptor, size)
    finally:
        os.close(descriptor)


def is_low(directory: str) -> bool:
    """Whether little space or few inodes are available to this user. Raises OSError."""
    found = os.statvfs(directory)
    free_inodes = found.f_favail if found.f_files else LOW_INODES  # btrfs counts none
    return found.f_bavail * found.f_frsize < LOW_BYTES or free_inodes < LOW_INODES


def refusal(directory: str) -> int:
    """Try to create a small file. Returns 0 or the errno (ENOSPC, EDQUOT, EROFS, EIO)."""
    path = os.path.join(directory, f".probe.{os.getpid()}")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            written = os.write(descriptor, b"\0" * PROBE_BYTES)
        finally:
            os.close(descriptor)
            os.unlink(path)
    except OSError as exc:
        return exc.errno or errno.EIO
    return 0 if written == PROBE_BYTES else errno.ENOSPC


def which_is_used_up(directory: str) -> str:
    """Space, or inodes: for a message."""
    try:
        found = os.statvfs(directory)
    except OSError:
        return "space"
    return "inodes" if found.f_files and found.f_favail < LOW_INODES else "space"
