"""The agent's end of a runner's control socket: connects, sends operations, reads messages.

JSON lines in both directions over a unix stream socket. The protocol is versioned by `v` in the hello, because a runner
may be older or newer than the agent that adopts it. Never blocks after `connect`: unsent data waits in a bounded
buffer. Knows nothing of workers' states; the caller interprets the messages.

    agent -> runner   {"op":"hello","v":1}  {"op":"assign","desired":"stopped","generation":4,"epoch":1000003}
                      {"op":"restart","attempt":3,"id":"c-1","until_ns":…}
                      {"op":"kill","attempt":3,"id":"c-2","until_ns":…}
                      {"op":"lease","epoch":1000003,"until_ns":…}      times on CLOCK_BOOTTIME
                      {"op":"health","status":"failing","detail":"…","restart":true}
                      {"op":"progress","value":12.0}
    runner -> agent   {"type":"status", …state.json…}  {"type":"event", …WorkerEvent…}
                      {"type":"result","id":"c-1","status":"done","message":""}  {"type":"bye"}
"""

from __future__ import annotations

import _socket  # the module socket imports selectors and enum: 0.26 MB and 2 ms per runner
import os
import sys

from remote_agent.protocol import reasons
from remote_agent.protocol.reasons import Reason
from remote_agent.system import lean_json

TYPE_CHECKING = False  # as in typing, which a runner does not load
if TYPE_CHECKING:
    from collections.abc import Iterable

PROTOCOL_VERSION = 1
SO_PEERCRED = getattr(_socket, "SO_PEERCRED", 17)  # the kernel's number; PyPy has no name for it
MAX_LINE_BYTES = 1024 * 1024
MAX_UNSENT_BYTES = 1024 * 1024

# How the command `runner/__main__.py` ends: 0 = the daemon's socket listens.
EXIT_STARTED = 0
EXIT_USAGE = 64
EXIT_CANNOT_START = 71  # stderr says why
EXIT_ALREADY_RUNNING = 75  # another runner holds this worker: connect to it instead


def runner_argv(
    python: str,
    release_dir: str,
    worker_dir: str,
    runtime_dir: str,
    lease: tuple[int, int] | None = None,
    stop: tuple[int, int] | None = None,
    seen: Iterable[tuple[int, int]] = (),
) -> list[str]:
    """The command that starts a runner. The runner daemonises itself: wait for the command to exit, then connect.

    `release_dir` holds the package remote_agent (in a checkout: the repository's root). `lease`: (epoch, until_ns) of a
    fenced worker, so that its start does not wait for the connection. `stop`: (generation, epoch) of an assignment that
    does not want it to run and that could not be written. `seen`: (pid, start) of processes that the agent observed
    below a runner that has died.
    """
    script = os.path.join(release_dir, "remote_agent", "runner", "__main__.py")
    words = [python, "-I", "-S", script, "--worker-dir", worker_dir, "--runtime-dir", runtime_dir]
    words += ["--lease", f"{lease[0]}:{lease[1]}"] if lease else []
    words += ["--stop", f"{stop[0]}:{stop[1]}"] if stop else []
    listed = ",".join(f"{pid}:{start}" for pid, start in seen)
    words += ["--seen", listed] if listed else []
    return words


def is_ours(peer: _socket.socket) -> bool:
    """Whether the peer process runs as our user or root, according to the kernel (SO_PEERCRED)."""
    credentials = peer.getsockopt(_socket.SOL_SOCKET, SO_PEERCRED, 12)  # pid, uid, gid
    return int.from_bytes(credentials[4:8], sys.byteorder) in (0, os.geteuid())


class LineBuffer:
    """Splits bytes into lines and parses JSON objects. Lines that are too long or no object are dropped and counted."""

    def __init__(self) -> None:
        self._rest = b""
        self._skipping = False
        self.dropped = 0

    def feed(self, data: bytes) -> list[dict[str, object]]:
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        messages = []
        for line in lines:
            message = None if self._skipping else _parse(line)
            if message is not None:
                messages.append(message)
            elif self._skipping or line.strip():
                self.dropped += 1
            self._skipping = False  # the end of a line that was too long
        if len(self._rest) > MAX_LINE_BYTES:
            self._rest = b""
            self._skipping = True
        return messages


def _parse(line: bytes) -> dict[str, object] | None:
    try:
        value = lean_json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


class JsonConnection:
    """A non-blocking stream of JSON lines, used by both ends of the control socket.

    `closed` becomes true when the peer has closed or does not read; then only `close` may be called.
    """

    def __init__(self, sock: _socket.socket) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._incoming = LineBuffer()
        self._unsent = b""
        self.closed = False

    def fileno(self) -> int:
        return self._sock.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether unsent bytes remain: call `flush` when the socket is writable."""
        return bool(self._unsent) and not self.closed

    def send(self, message: dict[str, object]) -> None:
        """Send as much as the socket accepts and buffer the rest. The connection is closed beyond MAX_UNSENT_BYTES."""
        if self.closed:
            return
        self._unsent += lean_json.dumps(message).encode() + b"\n"
        self.flush()
        if len(self._unsent) > MAX_UNSENT_BYTES:
            self.closed = True

    def flush(self) -> None:
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            pass
        except OSError:
            self.closed = True

    def receive(self) -> list[dict[str, object]]:
        """All complete messages received so far. If the peer has closed, `closed` is set when the last ones are
        returned."""
        messages: list[dict[str, object]] = []
        while not self.closed:
            try:
                data = self._sock.recv(65536)
            except BlockingIOError:
                break
            except OSError:
                self.closed = True
                break
            if not data:
                self.closed = True
                break
            messages += self._incoming.feed(data)
        return messages

    def close(self) -> None:
        self.closed = True
        self._sock.close()


class RunnerLink(JsonConnection):
    """The agent's connection to one runner. The runner sends its status after `connect`."""

    @classmethod
    def connect(cls, socket_path: str, timeout_s: float = 1.0) -> RunnerLink:
        """Connect and send hello. Raises OSError if no runner listens (FileNotFoundError, ConnectionRefusedError)."""
        sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
        try:
            sock.settimeout(timeout_s)
            sock.connect(socket_path)
            if not is_ours(sock) and os.geteuid() != 0:  # root may end a user's agent by hand
                raise PermissionError(f"somebody else listens at {socket_path}")
        except OSError:
            sock.close()
            raise
        link = cls(sock)
        link.send({"op": "hello", "v": PROTOCOL_VERSION})
        return link

    def assign(self, desired: str = "", generation: int = 0, epoch: int = 0) -> None:
        """Notify the runner that spec.json has changed. The desired state is also sent, since a full disk may keep it
        out of the file."""
        self.send({"op": "assign", "desired": desired, "generation": generation, "epoch": epoch})

    def lease(self, epoch: int, until_ns: int) -> None:
        """Renew the lease of a fenced worker until `until_ns` (CLOCK_BOOTTIME)."""
        self.send({"op": "lease", "epoch": epoch, "until_ns": until_ns})

    def restart(self, attempt: int, command_id: str, until_ns: int = 0) -> None:
        """Restart attempt `attempt`. `until_ns`: expiry (CLOCK_BOOTTIME), also while a frozen runner does not read;
        0: never."""
        self.send({"op": "restart", "attempt": attempt, "id": command_id, "until_ns": until_ns})

    def kill(self, attempt: int, command_id: str, until_ns: int = 0) -> None:
        self.send({"op": "kill", "attempt": attempt, "id": command_id, "until_ns": until_ns})

    def time_limit(self, attempt: int, detail: Reason) -> None:
        """End an attempt that has reached max_run_s; its evidence has been collected."""
        self.send({"op": "time_limit", "attempt": attempt, **reasons.fields("detail", detail)})

    def progress(self, value: float) -> None:
        """Send the progress value of restart.progress: the value of a metric, or the time when a file was changed."""
        self.send({"op": "progress", "value": value})

    def health(self, status: str, detail: Reason, restart: bool) -> None:
        """Report a health status. `restart`: the policy requires that the attempt be ended; otherwise it is only
        shown."""
        self.send({"op": "health", "status": status, **reasons.fields("detail", detail), "restart": restart})
