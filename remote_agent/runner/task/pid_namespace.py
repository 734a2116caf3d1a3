"""A pid namespace for what a fenced container runs: the kernel ends it together with this runner, however that ends.

Its first process, the holder, only sleeps. It is a child of this runner with a parent-death signal. When the first
process of a namespace ends, the kernel kills every other process inside, whatever its session or parent, and starts no
more. A container that joins the namespace is therefore bound to its runner like a plain fenced process, including
processes that detach inside. Needs root. Imported only for fenced workers with a container; knows nothing of podman.
"""

from __future__ import annotations

import _socket
import ctypes
import os

from remote_agent.system import processes
from remote_agent.system.processes import Identity
from remote_agent.system.signals import signal

CLONE_NEWPID = 0x20000000
PR_SET_DUMPABLE = 4
NOBODY = 65534
NAME = b"procguard-fence"  # as ps shows it
EMPTY = "/proc/self/fdinfo"  # an empty root directory: processes in the container may trace the holder
BOUND = b"bound"


class PidNamespace:
    """Created immediately, by a single-threaded process. Raises OSError if this user may not create one."""

    def __init__(self, cookie: str) -> None:
        """`cookie`: the attempt's cookie, set in the holder's environment."""
        ours, theirs = _socket.socketpair()
        home = os.open("/proc/self/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        before = processes.mark_descendants(cookie)
        try:
            _check(processes.libc().unshare(CLONE_NEWPID))
            try:
                pid = os.fork()
                if pid == 0:
                    _hold(theirs.fileno(), os.getppid() == 0)  # never returns
            finally:
                _check(processes.libc().setns(home, CLONE_NEWPID))
            theirs.close()
            said = ours.recv(256)  # it is bound to this process or has ended; until then nothing may join
        finally:
            processes.unmark(before)
            os.close(home)
            ours.close()
            theirs.close()
        if said != BOUND:
            raise OSError(0, said.decode("utf-8", "replace") or "the first process of a pid namespace ended")
        found = processes.identity_of(pid)
        self.holder = found or Identity(pid, 0, "")

    @property
    def path(self) -> str:
        """The namespace's path, for podman's --pid=ns:PATH."""
        return f"/proc/{self.holder.pid}/ns/pid"

    def members(self) -> list[Identity]:
        """The orphaned processes inside the namespace, without the holder."""
        below = processes.descendants({self.holder.pid}, processes.all_processes())
        return [Identity(one.pid, one.start, self.holder.boot_id) for one in below]

    def end(self) -> None:
        """Kill everything inside, by killing the holder, which is then reaped like any child."""
        processes.send_signal(self.holder, signal.SIGKILL)


def _check(result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def _hold(descriptor: int, is_first: bool) -> None:
    try:
        signal.set_wakeup_fd(-1)
        for number in (*range(1, 9), *range(10, 19), *range(20, 32)):  # the first process of a namespace ignores these
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the kernel reaps processes that end inside
        for name in os.listdir("/proc/self/fd"):
            if int(name) != descriptor:
                _close(int(name))
        _rename()
        os.chroot(EMPTY)
        os.chdir("/")
        os.setgroups([])
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        libc = processes.libc()
        libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
        _check(libc.prctl(processes.PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0))
        # Fails if the runner has died before.
        os.write(descriptor, BOUND if is_first else b"it is not the first process of its pid namespace")
        os.close(descriptor)
        while True:
            signal.pause()
    except OSError as exc:
        os.write(descriptor, f"{exc.strerror or exc}"[:200].encode("utf-8", "replace"))
    finally:
        os._exit(1)


def _close(descriptor: int) -> None:
    try:
        os.close(descriptor)
    except OSError:  # that of the listing itself
        pass


def _rename() -> None:
    """Rename the holder: ps would otherwise show the runner's command line."""
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # 48 and 49 of proc(5)
    if 0 < begin < end:
        ctypes.memset(begin, 0, end - begin)
        ctypes.memmove(begin, NAME, min(len(NAME), end - begin - 1))
