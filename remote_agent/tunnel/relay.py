"""The host's end of a tunnel: forwards connections to a local port over the installer's session to the manager.

Runs inside `remote_agent.install session` (over the manager's SSH) until the session ends. One per agent: a new relay
ends the previous one, whose connection may be dead without having been detected. Needs no forwarding by sshd.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import signal
import socket
import time

from remote_agent.protocol.hints import Callable
from remote_agent.tunnel.mux import Mux, MuxEnded, Wire

FIRST_PORT, PORTS = 20000, 12000  # below the kernel's range of ephemeral ports
TRIES = 64
TAKE_OVER_S = 1.0
READ_BYTES = 64 * 1024
LOOPBACK = "127.0.0.1"
LOCK = "relay.lock"


class RelayError(Exception):
    """An error for people: `message` with its cause, `next_step`, and a stable `code`."""

    def __init__(self, code: str, message: str, next_step: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.next_step = next_step


class Relay:
    """A relay, which listens once it is created; `serve` forwards."""

    def __init__(self, fleet_id: str, host: str, directory: str, port: int = 0, may_move: bool = True) -> None:
        """`port`: the port that the agent uses; another one is used only if `may_move`. `directory`: the directory of
        the lock. Raises RelayError."""
        self._directory = directory
        self._held = take_over(host, directory)
        self.listener = listen(fleet_id, host, port, may_move)
        self.port: int = self.listener.getsockname()[1]

    def serve(self) -> None:
        """Forward between the port and stdin/stdout until the session ends."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # if sudo joined stdout and stderr, a warning would corrupt a frame
        os.close(null)
        with contextlib.suppress(MuxEnded, OSError):
            Mux(_Stdio(), accept=self.listener).run()
        self.listener.close()
        with contextlib.suppress(OSError):  # empty if no agent is installed
            os.unlink(os.path.join(self._directory, LOCK))
            os.rmdir(self._directory)


class _Stdio(Wire):
    def __init__(self) -> None:
        for fd in (0, 1):
            os.set_blocking(fd, False)

    def fileno(self) -> int:
        return 0

    def write_fileno(self) -> int:
        return 1

    def read(self) -> bytes:
        try:
            data = os.read(0, READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise MuxEnded("the session ended")
        return data

    def write(self, data: bytes) -> int:
        try:
            return os.write(1, data)
        except BlockingIOError:
            return 0


def listen(fleet_id: str, host: str, port: int, may_move: bool) -> socket.socket:
    """A listening socket on a loopback address. Raises RelayError if the port is unavailable."""
    candidates = [port] if port else []
    if may_move or not port:
        start = _number(fleet_id, host)
        candidates += [FIRST_PORT + (start + step) % PORTS for step in range(TRIES)]
    for candidate in candidates:
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, candidate))
            listener.listen(64)
            return listener
        except OSError as exc:
            listener.close()
            if exc.errno != errno.EADDRINUSE:
                raise
    raise RelayError(
        "port_taken",
        f"{host}: port {port} is in use by another program there",
        "deploy again: another port is used then",
    )


def take_over(host: str, directory: str) -> int:
    """Become the only relay of this agent; a previous relay is ended. Raises RelayError.

    `directory`: the private directory of the lock. Returns the lock's descriptor, which must stay open as long as this
    process is the relay.
    """
    path = os.path.join(directory, LOCK)
    held: "list[int]" = []
    if not _insist(lambda: _take_lock(path, held), lambda sig: _end_writer(path, sig)):
        raise RelayError("busy", f"{host}: another relay is already running", "stop it, then try again")
    return held[0]


def _insist(attempt: "Callable[[], bool]", end: "Callable[[int], None]") -> bool:
    """Retry `attempt` while the holder is first asked and then forced to end. Returns whether it succeeded."""
    for sig in (signal.SIGTERM, signal.SIGKILL):
        deadline, asked = time.monotonic() + TAKE_OVER_S, False
        while time.monotonic() < deadline:
            if attempt():
                return True
            if not asked:
                end(sig)
                asked = True
            time.sleep(0.01)
    return False


def _take_lock(path: str, held: "list[int]") -> bool:
    with contextlib.suppress(FileExistsError):
        os.mkdir(os.path.dirname(path), 0o700)  # the previous relay has just removed it
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.stat(path).st_ino == os.fstat(fd).st_ino:
            os.ftruncate(fd, 0)
            os.write(fd, f"{os.getpid()} {_start_of(os.getpid())}".encode())
            held.append(fd)
            return True
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(fd)
    return False


def _end_writer(path: str, sig: int) -> None:
    """Signal the process that the lock's file names."""
    with contextlib.suppress(OSError, ValueError):
        with open(path, encoding="ascii") as file:
            pid, start = file.read(64).split()
        _end(int(pid), start, sig)


def _end(pid: int, start: str, sig: int) -> None:
    if _alive(pid, start):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, sig)


def _alive(pid: int, start: str) -> bool:
    return start != "" and _start_of(pid) == start


def _start_of(pid: int) -> str:
    """The start time of a process, in clock ticks since boot, which with the pid identifies it permanently. "" if there
    is no such process, or it is dead."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
        return "" if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        return ""


def _number(fleet_id: str, host: str) -> int:
    return int(hashlib.sha256(f"{fleet_id}/{host}".encode()).hexdigest()[:8], 16)
