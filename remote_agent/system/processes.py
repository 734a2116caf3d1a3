"""Finds the processes of an attempt, and signals them without the risk of signalling an unrelated process.

A process is identified by (pid, start time from /proc, boot id), because pids are reused. The members of a tree are
found by several methods that complement each other: descent from the runner, which is a subreaper, so that even
double-forked daemons become its children; descent from the recorded child; the environment cookie and the mark, which
also find daemons after their runner has died; and the processes that the agent observed while the runner was alive.
Knows neither states nor policies nor ProcGuard's files.
"""

from __future__ import annotations

import os
from _operator import itemgetter

from remote_agent.system import libc as c
from remote_agent.system.signals import signal

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable


class Identity(tuple[int, int, "str | None"]):  # as a named tuple, without `collections`
    """start: field 22 of /proc/<pid>/stat, clock ticks since boot."""

    __slots__ = ()

    def __new__(cls, pid: int, start: int, boot_id: str | None) -> Identity:
        return tuple.__new__(cls, (pid, start, boot_id))

    pid, start, boot_id = property(itemgetter(0)), property(itemgetter(1)), property(itemgetter(2))


class StatLine(tuple[int, int, int, str, int]):
    """One line of /proc/<pid>/stat. state "Z" and "X" are dead already and can't be signalled."""

    __slots__ = ()

    def __new__(cls, pid: int, ppid: int, session: int, state: str, start: int) -> StatLine:
        return tuple.__new__(cls, (pid, ppid, session, state, start))

    pid, ppid, session = property(itemgetter(0)), property(itemgetter(1)), property(itemgetter(2))
    state, start = property(itemgetter(3)), property(itemgetter(4))


PR_SET_CHILD_SUBREAPER = 36
PR_SET_PDEATHSIG = 1
# The numbers are the same on all supported architectures of Linux (x86-64, aarch64, riscv64, ppc64le).
SYS_PIDFD_SEND_SIGNAL = 424
SYS_PIDFD_OPEN = 434
MAX_ENVIRON_BYTES = 1024 * 1024
COOKIE_VARIABLE = "PROCGUARD_COOKIE"
# The mark: a soft limit that is never reached (microseconds of real-time CPU without a pause; 146,000 years), inherited
# over fork and exec, whatever a process does to its environment, its session and its parents.
RLIMIT_RTTIME = 15
_MARK_BASE = 1 << 62
_MARK_LINE = b"Max realtime timeout"

_libc = c.load()


def libc() -> c.Library:
    """The C library, for functions that Python does not provide."""
    return _libc


def become_subreaper() -> bool:
    """Make orphaned descendants children of this process. Returns False if the kernel does not support it."""
    return bool(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def die_with_parent(parent: int) -> None:
    """Called in a new child: the kernel kills it when its parent ends, also after exec (except of set-uid programs). A
    parent that has already died is detected by its pid. Raises OSError."""
    if _libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(c.get_errno(), os.strerror(c.get_errno()), "prctl")
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def mark_descendants(cookie: str) -> int | None:
    """Mark this process and all processes that it starts with `cookie`, until the returned value is passed to `unmark`.
    Returns None if marking is impossible, because the limit that carries the mark is already lower."""
    limits = (c.c_uint64 * 2)()  # soft, hard
    if c.sizeof(c.c_long) != 8 or _libc.getrlimit(RLIMIT_RTTIME, limits) != 0:
        return None
    mark, before = mark_of(cookie), int(limits[0])
    if not mark or limits[1] <= mark or before < _MARK_BASE:
        return None
    limits[0] = mark
    return before if _libc.setrlimit(RLIMIT_RTTIME, limits) == 0 else None


def unmark(before: int | None) -> None:
    limits = (c.c_uint64 * 2)()
    if before is not None and _libc.getrlimit(RLIMIT_RTTIME, limits) == 0:
        limits[0] = before
        _libc.setrlimit(RLIMIT_RTTIME, limits)


def mark_of(cookie: str) -> int:
    """The mark of a cookie; 0 if it is not a runner's cookie."""
    try:
        return _MARK_BASE | int(cookie[:14], 16)
    except ValueError:
        return 0


def give_memory_back() -> None:
    """Return unused memory to the kernel, if the C library supports it."""
    if hasattr(_libc, "malloc_trim"):
        _libc.malloc_trim(0)


# ------------------------------------------------------------------------------------------------------ identity


def boot_id() -> str:
    """An id that changes with every boot and differs between containers, which have separate pids."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def read_process(pid: int) -> StatLine | None:
    """The process according to the kernel; None if there is no such process."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            line = file.read()
    except OSError:
        return None
    fields = line[line.rfind(b")") + 2 :].split()  # a command name may hold spaces and brackets
    if len(fields) < 20:
        return None
    return StatLine(pid, int(fields[1]), int(fields[3]), fields[0].decode(), int(fields[19]))


def identity_of(pid: int) -> Identity | None:
    found = read_process(pid)
    return Identity(pid, found.start, boot_id()) if found else None


def is_alive(identity: Identity) -> bool:
    """Whether exactly the process of `identity` is running; a zombie is not."""
    found = _match(identity)
    return found is not None and found.state not in ("Z", "X")


def _match(identity: Identity) -> StatLine | None:
    if identity.pid <= 0 or identity.boot_id != boot_id():
        return None
    found = read_process(identity.pid)
    return found if found is not None and found.start == identity.start else None


# ------------------------------------------------------------------------------------------------------- signals


def send_signal(identity: Identity, number: int) -> bool:
    """Signal exactly the process of `identity`. Returns False if it is gone or must not be signalled.

    The pidfd is opened first and the identity checked afterwards: if the process still exists then, the pidfd refers to
    it, and a reused pid cannot be signalled. Kernels before 5.3 have no pidfd: the check immediately precedes kill().
    """
    descriptor = _open_pidfd(identity.pid)
    try:
        if _match(identity) is None:
            return False
        if descriptor is None:
            os.kill(identity.pid, number)
        else:
            _send_to_pidfd(descriptor, number)
        return True
    except OSError:
        return False
    finally:
        if descriptor is not None:
            os.close(descriptor)


def _open_pidfd(pid: int) -> int | None:
    """A pidfd; None if the process or the system call does not exist."""
    if hasattr(os, "pidfd_open"):
        try:
            return os.pidfd_open(pid)
        except OSError:
            return None
    descriptor = _libc.syscall(SYS_PIDFD_OPEN, pid, 0)
    return int(descriptor) if descriptor >= 0 else None


def _send_to_pidfd(descriptor: int, number: int) -> None:
    if hasattr(signal, "pidfd_send_signal"):
        signal.pidfd_send_signal(descriptor, number)
    elif _libc.syscall(SYS_PIDFD_SEND_SIGNAL, descriptor, number, None, 0) != 0:
        raise OSError(c.get_errno(), "pidfd_send_signal")


# ------------------------------------------------------------------------------------------------------ members


def all_processes() -> dict[int, StatLine]:
    found = (read_process(int(name)) for name in os.listdir("/proc") if name.isdigit())
    return {process.pid: process for process in found if process is not None}


def descendants(roots: set[int], processes: dict[int, StatLine]) -> list[StatLine]:
    """Every live process below `roots` (without the roots), nearest first."""
    children: dict[int, list[StatLine]] = {}
    for process in processes.values():
        children.setdefault(process.ppid, []).append(process)
    found: list[StatLine] = []
    seen = set(roots)
    pending = list(roots)
    while pending:
        for process in children.get(pending.pop(0), ()):
            if process.pid not in seen:
                seen.add(process.pid)
                found.append(process)
                pending.append(process.pid)
    return [process for process in found if process.state not in ("Z", "X")]


def members_below(runner_pid: int) -> list[Identity]:
    """The live processes below a live runner, which as subreaper is an ancestor of all of them."""
    boot, processes = boot_id(), all_processes()
    for orphan in [one for one in processes.values() if one.ppid and one.ppid not in processes]:
        again = read_process(orphan.pid)  # its parent has ended since: it is the runner's child now
        if again is not None:
            processes[orphan.pid] = again
    return [Identity(p.pid, p.start, boot) for p in descendants({runner_pid}, processes)]


def members_left_behind(
    child: Identity | None, cookie: str, known: Iterable[int] = (), seen: Iterable[Identity] = ()
) -> list[Identity]:
    """The processes left by a dead runner: the recorded child, `seen` (observed by the agent), those with the cookie
    or its mark, and all their descendants.

    `known`: pids that are members in any case (the worker's control group). `cookie`: the common prefix of
    PROCGUARD_COOKIE of all of the runner's attempts. Session and group ids are not used, because they may be reused.
    Never includes the caller or its ancestors.
    """
    processes = all_processes()
    boot = boot_id()
    roots = {pid for pid in processes if cookie and (carries_cookie(pid, cookie) or carries_mark(pid, cookie))}
    roots.update(pid for pid in known if pid in processes)
    for one in (child, *seen) if child else seen:
        found = processes.get(one.pid)
        if found is not None and (found.start, boot) == (one.start, one.boot_id):
            roots.add(one.pid)
    ours = _self_and_ancestors(processes)
    roots -= ours
    members = [processes[pid] for pid in roots if processes[pid].state not in ("Z", "X")]
    members += [process for process in descendants(roots, processes) if process.pid not in ours]
    return [Identity(process.pid, process.start, boot) for process in members]


def carries_cookie(pid: int, cookie: str) -> bool:
    """Whether the initial environment of `pid` contains the cookie. False if it is not readable (another user's
    process)."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = b"\0" + file.read(MAX_ENVIRON_BYTES)
    except OSError:
        return False
    return f"\0{COOKIE_VARIABLE}={cookie}".encode() in environment


def carries_mark(pid: int, cookie: str) -> bool:
    """Whether the process was started below a runner with this cookie. Unlike the environment, the mark is readable by
    all users."""
    mark = mark_of(cookie)
    if not mark:
        return False
    try:
        with open(f"/proc/{pid}/limits", "rb") as file:
            lines = file.read(8192).splitlines()
    except OSError:
        return False
    wanted = b"%d" % mark
    return any(line.startswith(_MARK_LINE) and wanted in line.split() for line in lines)


def names(members: Iterable[Identity], most: int = 5) -> list[str]:
    """The commands of some of them, each once."""
    found: dict[str, None] = {}
    for member in members:
        try:
            with open(f"/proc/{member.pid}/comm", "rb") as file:
                found[file.read(64).decode("utf-8", "replace").strip()] = None
        except OSError:
            continue
    return list(found)[:most]


def _self_and_ancestors(processes: dict[int, StatLine]) -> set[int]:
    chain: set[int] = set()
    pid = os.getpid()
    while pid > 0 and pid not in chain:
        chain.add(pid)
        process = processes.get(pid)
        pid = process.ppid if process else 0
    return chain


def signal_all(members: list[Identity], number: int) -> int:
    """Send the signal to each; returns the number of processes that received it."""
    return sum(send_signal(member, number) for member in members)
