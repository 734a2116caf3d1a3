"""The sockets of a process: their inodes from /proc/PID/fd, and the addresses of its TCP sockets through duplicates of
its descriptors (pidfd_getfd, Linux 5.6).

A duplicate costs microseconds and the kernel's table of all sockets milliseconds, even if it is nearly empty. The
kernel allows it to who may trace the process: root, or the same user without Yama's restriction. A duplicate shares
its state with the process's descriptor: it is only asked, and closed at once. Knows nothing of forwarders.
"""

from __future__ import annotations

import _socket
import ctypes
import errno
import os
import socket
from collections.abc import Container, Iterator

from procguard.portal.auth.peer_uid import Tcp, plain_address

_PIDFD_GETFD = 438  # the same number on all architectures
_libc = ctypes.CDLL(None, use_errno=True)


def links(pid: int) -> Iterator[tuple[int, str]]:
    """(descriptor, target) of its descriptors; nothing if they are not readable."""
    try:
        names = os.listdir(f"/proc/{pid}/fd")
    except OSError:
        return
    for name in names:
        try:
            yield int(name), os.readlink(f"/proc/{pid}/fd/{name}")
        except OSError:  # closed meanwhile
            continue


def sockets_of(pid: int) -> dict[int, int]:
    """Inode -> descriptor."""
    return {int(link[8:-1]): number for number, link in links(pid) if link.startswith("socket:[")}


def tcp_sockets(pid: int, descriptors: dict[int, int], without: Container[int] = ()) -> list[Tcp] | None:
    """The open TCP sockets among these (inode -> descriptor), except the inodes in `without`. None if the kernel does
    not allow to look at them."""
    try:
        process = os.pidfd_open(pid)
    except (OSError, AttributeError):  # it has ended, or the kernel is older than 5.3
        return None
    found: list[Tcp] = []
    try:
        for inode, number in descriptors.items():
            if inode in without:
                continue
            duplicate = _libc.syscall(_PIDFD_GETFD, process, number, 0)
            if duplicate < 0:
                if ctypes.get_errno() == errno.EBADF:  # closed meanwhile
                    continue
                return None
            one = _tcp(duplicate, inode)
            if one is not None:
                found.append(one)
    finally:
        _socket.close(process)
    return found


def _tcp(descriptor: int, inode: int) -> Tcp | None:
    """Close the descriptor; what it is, or None if it is no open TCP socket or no longer this one."""
    if os.fstat(descriptor).st_ino != inode:
        _socket.close(descriptor)
        return None
    # not socket.socket: gevent's would make the socket non-blocking, for the process as well
    duplicate = _socket.socket(fileno=descriptor)
    try:
        if duplicate.family not in (socket.AF_INET, socket.AF_INET6) or duplicate.type != socket.SOCK_STREAM:
            return None
        listens = bool(duplicate.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        local = duplicate.getsockname()
        peer = ("", 0) if listens else duplicate.getpeername()
        return Tcp(plain_address(local), peer if listens else plain_address(peer), listens, -1, inode)
    except OSError:  # not connected
        return None
    finally:
        duplicate.close()
