"""Ensures one runner per worker: the lock, the check of the previous runner, and the socket that belongs to the lock.

Knows paths and processes, but not what a runner does with them.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import time

from remote_agent.runner.control import EXIT_ALREADY_RUNNING
from remote_agent.system import paths, processes, state_files
from remote_agent.system.locks import is_still_at
from remote_agent.system.processes import Identity

LOCK_TIMEOUT_S = 2.0  # a runner that is ending releases its lock within this time


class CannotStart(Exception):
    """`code` is the exit status; the text names the worker's directory and the next step."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(text)
        self.code = code


def take_lock(path: str, timeout_s: float = LOCK_TIMEOUT_S) -> int:
    """Take the lock and return its descriptor. Raises CannotStart if another runner holds it."""
    deadline = time.monotonic() + timeout_s
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, paths.PRIVATE_FILE)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_still_at(path, descriptor):
                return descriptor
        except OSError:
            pass
        os.close(descriptor)
        if time.monotonic() > deadline:
            raise CannotStart(EXIT_ALREADY_RUNNING, f"another runner holds {path}: connect to it instead")
        time.sleep(0.02)


def refuse_second(worker_dir: str, runtime_dir: str = "", timeout_s: float = LOCK_TIMEOUT_S) -> None:
    """Raise CannotStart if the runner in state.json is alive: the lock file can vanish (a cleaned /tmp) while it still
    owns the worker."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            state = state_files.read(worker_dir, runtime_dir)
        except (ValueError, OSError):
            return  # damaged: only the lock is checked
        if state is None:
            return
        pid, start = (
            value if isinstance(value := state.get(name), int) else 0 for name in ("runner_pid", "runner_start")
        )
        runner = Identity(pid, start, str(state.get("boot_id")))
        if pid == os.getpid() or not processes.is_alive(runner):
            return
        if time.monotonic() > deadline:
            raise CannotStart(
                EXIT_ALREADY_RUNNING, f"the runner of {worker_dir} is alive (pid {pid}), but not its lock"
            )
        time.sleep(0.02)


def listen(path: str) -> _socket.socket:
    """Create the control socket. Only the holder of the lock may call this, because it replaces an existing socket."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    listener = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(8)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener
