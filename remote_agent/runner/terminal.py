"""The pseudo-terminal of a worker with `tty`: everything written to it is appended to the attempt's log.

    job --slave /dev/pts/N--> kernel --master--> keeper --append--> out.log
                                       |
                                     runner (holds the master too, reads nothing while a keeper lives)

The keeper is a process forked from the runner. It alone copies while it lives, so no byte is copied twice or out of
order, and it outlives a runner that is killed: without it the kernel would send SIGHUP to the job and discard its last
output. It ends once no process has the terminal open any more. A live runner replaces a killed keeper. The only
possible loss is what a keeper had read but not yet written when it was killed with SIGKILL: at most READ_BYTES.

Loaded for workers with `tty` only: the memory of other runners does not grow.
"""

from __future__ import annotations

import _socket
import errno
import fcntl
import os
import select
import signal
import sys
import termios
import time

from remote_agent.system import processes

READ_BYTES = 65536
SETTLE_S = 0.5  # the maximum time that the keeper needs to copy the output written so far
REVIVE_S = 1.0
ROOM_AGAIN_S = 0.2  # a full disk: the job waits at its terminal, as it would at a slow one
MAX_DRAIN_BYTES = 1024 * 1024  # more than the kernel buffers for a terminal
KEEPER_NAME = b"procguard-tty"
PR_SET_NAME = 15
PTMX = "/dev/ptmx"
F_DUPFD_CLOEXEC = 1030  # pypy's fcntl lacks the name


class Terminal:
    """A pseudo-terminal and its keeper. `path`: of the slave; a process that opens it as the leader of a new session
    gets it as its controlling terminal."""

    def __init__(self, rows: int, columns: int, log: int, cookie: str, uid: int = -1) -> None:
        """`log`: open for appending; duplicated. `cookie`: of the attempt. `uid`: the owner of the terminal; -1: this
        process. Raises OSError naming PTMX if the host has no terminal left."""
        self._cookie = cookie
        self.keeper = 0  # the keeper's pid; 0: no keeper
        self._revive_at = 0.0
        self._asked = 0
        self._ending = False
        self._log = self._ask = -1
        try:
            self._master, self._slave = os.openpty()
        except OSError as exc:  # ENOSPC means that all are in use, not that a disk is full
            raise OSError(errno.EAGAIN, os.strerror(exc.errno or 0), PTMX) from exc
        try:
            self._log = fcntl.fcntl(log, F_DUPFD_CLOEXEC, 3)
            os.set_blocking(self._master, False)
            self.path = os.ttyname(self._slave)
            _prepare(self._slave, rows, columns)
            if uid >= 0:
                os.fchown(self._slave, uid, -1)
            self._keep()
        except BaseException:
            self.close()
            raise

    def started(self) -> None:
        """The job has the terminal open now. Close this process's own end, so that the closing by the job is
        detected."""
        if self._slave >= 0:
            os.close(self._slave)
        self._slave = -1

    def settle(self) -> bool:
        """Wait until the output written so far is in the log, at most SETTLE_S. False: the keeper ends."""
        if not self.keeper:
            return True
        self._asked = (self._asked + 1) % 256
        poller = select.poll()
        poller.register(self._ask, select.POLLIN)
        until = time.monotonic() + SETTLE_S
        try:
            os.write(self._ask, bytes([self._asked]))
            while poller.poll(max(until - time.monotonic(), 0.0) * 1000):
                answer = os.read(self._ask, 256)
                if not answer:
                    return False
                if answer[-1] == self._asked:
                    return True
        except OSError:
            return False
        return True

    def ended(self, pid: int) -> None:
        """A child of this process has ended; if it was the keeper, the job may still be running."""
        if pid == self.keeper:
            self.keeper = 0
            os.close(self._ask)
            self._ask = -1

    @property
    def revive_in_s(self) -> float:
        """Seconds until the next call of `revive`."""
        if self.keeper or self._ending:
            return float("inf")
        return max(self._revive_at - time.monotonic(), 0.0)

    def revive(self) -> None:
        """Start another keeper if one was killed. If it has ended because the job closed its terminal, check
        periodically whether the job has opened it again."""
        if self.revive_in_s > 0:
            return
        self._revive_at = time.monotonic() + REVIVE_S
        poller = select.poll()
        poller.register(self._master, 0)
        if not any(events & select.POLLHUP for _, events in poller.poll(0)):
            try:
                self._keep()
            except OSError:  # no process can be created: retry later
                pass

    def kill(self) -> None:
        """The process tree is being killed. A keeper that waits for space on a full disk would never end; `finish`
        copies the rest."""
        self._ending = True
        if self.keeper:
            os.kill(self.keeper, signal.SIGKILL)  # our own child, not reaped yet

    def finish(self) -> None:
        """Append the remaining output once no process has the terminal open, if there is no keeper."""
        self.started()
        copied = 0
        try:
            while copied < MAX_DRAIN_BYTES:
                data = os.read(self._master, READ_BYTES)
                if not data:
                    break
                copied += len(data)
                while data:
                    data = data[os.write(self._log, data) :]
        except OSError:  # EIO: end of the output. ENOSPC: no space for the rest
            pass
        self.close()

    def close(self) -> None:
        for descriptor in (self._master, self._slave, self._log, self._ask):
            if descriptor >= 0:
                os.close(descriptor)
        self._master = self._slave = self._log = self._ask = -1

    def _keep(self) -> None:
        """Fork a keeper. It carries the mark of the worker, by which the next runner finds it. All its signals are
        blocked: those that end a job are sent to its keeper too where its runner has died."""
        ours, theirs = _socket.socketpair()
        before = processes.mark_descendants(self._cookie)
        signal.pthread_sigmask(signal.SIG_BLOCK, range(1, signal.NSIG))
        try:
            pid = os.fork()
            if pid == 0:
                _keep(self._master, self._log, theirs.fileno())  # never returns
        except OSError:
            ours.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            processes.unmark(before)
            theirs.close()
        self.keeper, self._ask = pid, ours.detach()


def _prepare(slave: int, rows: int, columns: int) -> None:
    """Set the terminal's size, and disable output processing, which would turn every newline into carriage return and
    newline."""
    attributes = termios.tcgetattr(slave)
    attributes[1] &= ~termios.OPOST
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    size = b"".join(number.to_bytes(2, sys.byteorder) for number in (rows, columns, 0, 0))
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)


# -------------------------------------------------------------------------------------------------- in the keeper


def _keep(master: int, log: int, ask: int) -> None:
    try:
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) not in (master, log, ask):
                try:
                    os.close(int(name))
                except OSError:  # the descriptor that listed them
                    pass
        processes.libc().prctl(PR_SET_NAME, KEEPER_NAME, 0, 0, 0)
        _copy(master, log, ask)
    finally:  # no exception may propagate into the runner's own code
        os._exit(0)


def _copy(master: int, log: int, ask: int) -> None:
    """Append the terminal's output to the log until no process has it open. A byte received from `ask` is sent back
    once everything before it is in the log."""
    poller = select.poll()
    poller.register(master, select.POLLIN)
    poller.register(ask, select.POLLIN)
    while True:
        ready = [descriptor for descriptor, _ in poller.poll()]
        if master in ready:
            try:
                data = os.read(master, READ_BYTES)
            except BlockingIOError:
                continue
            except OSError:  # EIO: no process has it open
                return
            _append(log, data)
        elif ask in ready:
            try:
                question = os.read(ask, 256)
                os.write(ask, question)
            except OSError:
                question = b""
            if not question:  # the runner has ended
                poller.unregister(ask)


def _append(log: int, data: bytes) -> None:
    while data:
        try:
            data = data[os.write(log, data) :]
        except OSError:
            time.sleep(ROOM_AGAIN_S)
