"""The host's end of a tunnel: connections to a port of this machine go over the installer's session to the manager.

Runs inside `install.py session` (over the manager's SSH) until that ends. Only one for each agent: a new one ends the
one before it, whose connection may be dead without having noticed. Needs no forwarding by sshd, leaves no file.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import signal
import socket
import struct
import time

from remote_agent.mux import Mux, MuxEnded, Wire
from remote_agent.release import InstallError

FIRST_PORT, PORTS = 20000, 12000  # below what the kernel gives to outgoing connections
TRIES = 64
TAKE_OVER_S = 1.0
READ_BYTES = 64 * 1024
LOOPBACK = "127.0.0.1"


class Relay:
    """Listening from its making on; `serve` carries."""

    def __init__(self, fleet_id: str, host: str, port: int = 0, may_move: bool = True) -> None:
        """`port`: the one that the agent knows; another is taken only where it `may_move`. Raises InstallError."""
        self._mark = take_over(fleet_id, host)  # kept open: its name is the lock
        self.listener = listen(fleet_id, host, port, may_move)
        self.port: int = self.listener.getsockname()[1]

    def serve(self) -> None:
        """Carry between the port and stdin/stdout until the session ends."""
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 2)  # where sudo joined both, a warning would land in the middle of a frame
        os.close(null)
        with contextlib.suppress(MuxEnded, OSError):
            Mux(_Stdio(), accept=self.listener).run()
        self.listener.close()


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
    """A listening socket of this machine alone. Raises InstallError where the port can't be had."""
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
    raise InstallError(
        "port_taken",
        f"{host}: port {port} is taken by another program there",
        "deploy again: another one is taken then",
    )


def take_over(fleet_id: str, host: str) -> socket.socket:
    """Be the only relay of this agent: whoever was it before is ended. Raises InstallError.

    The lock is a name without a file (Linux's abstract sockets), which its holder's end frees; the kernel says who
    holds it.
    """
    name = f"\0procguard-relay-{os.getuid()}-{_digest(fleet_id, host)[:16]}"
    mine = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    deadline = time.monotonic() + TAKE_OVER_S
    told = 0
    while True:
        try:
            mine.bind(name)
            mine.listen(1)
            return mine
        except OSError as exc:
            if exc.errno != errno.EADDRINUSE:
                mine.close()
                raise
        late = time.monotonic() > deadline
        if late and told == signal.SIGKILL:
            mine.close()
            raise InstallError("busy", f"{host}: another relay holds the way to the manager", "end it, then try again")
        wanted = signal.SIGKILL if late else signal.SIGTERM
        if wanted != told:
            told = wanted
            deadline = time.monotonic() + TAKE_OVER_S
            _end_holder(name, wanted)
        time.sleep(0.01)


def _end_holder(name: str, sig: int) -> None:
    """Signal whoever listens at `name`, if it is this user's."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
        asking.setblocking(False)
        try:
            asking.connect(name)
        except OSError:
            return  # it has just ended
        pid, uid, _ = struct.unpack("3i", asking.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
        if uid == os.getuid() and pid > 0:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sig)


def _digest(fleet_id: str, host: str) -> str:
    return hashlib.sha256(f"{fleet_id}/{host}".encode()).hexdigest()


def _number(fleet_id: str, host: str) -> int:
    return int(_digest(fleet_id, host)[:8], 16)
