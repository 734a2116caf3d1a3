"""Determines the owner of a path, so that root acts there only with that owner's rights.

A session of root follows paths through users' folders, where a user can place a link, a pipe or another folder at any
moment. From the first path component that belongs to another user on, only that user's rights apply:
`walk` returns the owner, `acting_as` switches to it temporarily. Processes that are not root do not switch.

For single-threaded processes (the installer).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from remote_agent.protocol.hints import Iterator, List, Optional
from remote_agent.protocol.records import record

MAX_LINKS = 40
_PATH_ONLY = getattr(os, "O_PATH", 0o10000000) | os.O_NOFOLLOW | os.O_CLOEXEC


@record(frozen=True)
class Actor:
    uid: int
    gid: int
    groups: "List[int]"
    name: str


@record(frozen=True)
class Walk:
    """`actor`: the user whose rights apply; None: this process's. `shared`: another user can replace a component.
    `fd`: the target (O_PATH), to be closed by the caller; None if it does not exist."""

    actor: "Optional[Actor]"
    shared: bool
    fd: "Optional[int]"


def walk(path: str) -> Walk:
    """Follow an absolute path, part by part. Raises OSError, except for a part that does not exist."""
    folder: "Optional[int]" = os.open("/", _PATH_ONLY)
    actor: "Optional[Actor]" = None
    shared, links, root = False, 0, os.geteuid() == 0
    parts: "List[str]" = path.split("/")[::-1]
    try:
        while parts:
            part = parts.pop()
            if part in ("", "."):
                continue
            assert folder is not None
            if root and actor is None and _open_to_others(os.fstat(folder)):
                shared = True
            try:
                with acting_as(actor):
                    found = _step(folder, part)
            except FileNotFoundError:
                os.close(folder)
                folder = None
                break
            here = os.fstat(found)
            if root and actor is None and here.st_uid != 0 and not _of_outside(here.st_uid):
                actor = _actor(here.st_uid, here.st_gid)
            if stat.S_ISLNK(here.st_mode):
                links += 1
                if links > MAX_LINKS:
                    os.close(found)
                    raise OSError(errno.ELOOP, "too many links", path)
                target = os.readlink("", dir_fd=found)
                os.close(found)
                parts += target.split("/")[::-1]
                if not target.startswith("/"):
                    continue
                found = os.open("/", _PATH_ONLY)
            os.close(folder)
            folder = found
        return Walk(actor, shared, folder)
    except BaseException:
        if folder is not None:
            os.close(folder)
        raise


def _step(folder: int, part: str) -> int:
    """Open a component, as a directory if it is one, which triggers automounts."""
    try:
        return os.open(part, _PATH_ONLY | os.O_DIRECTORY, dir_fd=folder)
    except OSError as exc:
        if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        return os.open(part, _PATH_ONLY, dir_fd=folder)


def _of_outside(uid: int) -> bool:
    """Whether the owner is unmapped: in a user's container, files of the machine's root appear to belong to nobody."""
    try:
        with open("/proc/sys/kernel/overflowuid", "rb") as file:
            overflow = int(file.read())
        if uid != overflow:
            return False
        with open("/proc/self/uid_map", "rb") as file:
            mapped = [[int(word) for word in line.split()] for line in file]
    except (OSError, ValueError):
        return False
    return not any(first <= uid < first + count for first, _, count in mapped)


def _open_to_others(folder: os.stat_result) -> bool:
    """Whether users other than root and the owner may replace entries of the directory."""
    if folder.st_mode & stat.S_ISVTX:
        return False  # sticky: users may replace only their own entries
    return bool(folder.st_mode & 0o002) or bool(folder.st_mode & 0o020 and _has_members(folder.st_gid))


def _has_members(gid: int) -> bool:
    import grp
    import pwd

    try:
        members = set(grp.getgrgid(gid).gr_mem)
    except KeyError:
        members = set()
    return bool(members - {"root"}) or any(one.pw_gid == gid and one.pw_uid != 0 for one in pwd.getpwall())


def _actor(uid: int, gid: int) -> Actor:
    import pwd

    try:
        found = pwd.getpwuid(uid)
    except KeyError:
        return Actor(uid, gid, [gid], f"uid {uid}")
    groups = os.getgrouplist(found.pw_name, found.pw_gid)
    return Actor(uid, found.pw_gid, groups, found.pw_name)


def open_file(path: str) -> int:
    """Open a regular file for reading, with the rights of the owner of its path. Raises OSError."""
    found = walk(path)
    if found.fd is None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", path)
    try:
        here = os.fstat(found.fd)
        if not stat.S_ISREG(here.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if found.shared and here.st_nlink > 1:
            raise PermissionError(errno.EACCES, "a second name of a file in a folder that others can write to", path)
        with acting_as(found.actor):
            return os.open(f"/proc/self/fd/{found.fd}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    finally:
        os.close(found.fd)


@contextlib.contextmanager
def acting_as(actor: "Optional[Actor]") -> Iterator[None]:
    """Use that user's rights, and only those, within the context. None: no change."""
    if actor is None or os.geteuid() != 0:
        yield
        return
    before = (os.getegid(), os.getgroups())
    os.setgroups(actor.groups)
    os.setegid(actor.gid)
    os.seteuid(actor.uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(before[0])
        os.setgroups(before[1])
