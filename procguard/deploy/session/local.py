"""`ansible_connection: local`: the same installer session on this machine, without SSH.

Owns the clean environment in which such an agent starts; does not know what is installed.
"""

from __future__ import annotations

import contextlib
import os
import select
import subprocess
import sys

from procguard.deploy.session.session import REMOTE_COMMAND
from procguard.deploy.ssh.deadline import remaining_s
from procguard.errors import HostError

# Only these variables of the operator's shell reach the local host's workers: an agent outlives the shell, and other
# variables (tokens, an activated venv) are not meant for its children and would be gone after a reboot.
KEPT = ("HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "LANGUAGE", "TZ", "PROCGUARD_HOME")


def clean_environment(environ: dict[str, str]) -> dict[str, str]:
    """The environment of a login on this machine, as far as it can be determined, without ProcGuard's own venv."""
    kept = {name: value for name, value in environ.items() if name in KEPT or name.startswith("LC_")}
    own = {os.path.join(prefix, "bin") for prefix in (sys.prefix, environ.get("VIRTUAL_ENV", "")) if prefix}
    if sys.prefix == sys.base_prefix and not environ.get("VIRTUAL_ENV"):
        own = set()  # no venv: this is the machine's own Python
    entries = [entry for entry in kept.get("PATH", os.defpath).split(os.pathsep) if entry not in own]
    kept["PATH"] = os.pathsep.join(entries) or os.defpath
    return kept


class LocalPipe:
    """A session's shell on this machine, as a `channel.Pipe`."""

    def __init__(self, host: str, command: str = REMOTE_COMMAND) -> None:
        self._host = host
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=clean_environment(dict(os.environ)),
            cwd=os.path.expanduser("~"),
            start_new_session=True,
        )
        assert self._process.stdin and self._process.stdout and self._process.stderr
        self._in, self._out, self._err = (
            self._process.stdin.fileno(),
            self._process.stdout.fileno(),
            self._process.stderr.fileno(),
        )
        for fd in (self._in, self._out, self._err):
            os.set_blocking(fd, False)

    def send(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            self._wait([], [self._in], deadline, "sending")
            try:
                view = view[os.write(self._in, view[: 64 * 1024]) :]
            except BlockingIOError:
                continue
            except OSError as exc:
                message = f"{self._host}: the installer ended early ({self.errors() or exc.strerror})"
                raise HostError(message, "try again", code="connection_lost") from exc

    def receive(self, deadline: float) -> bytes:
        while True:
            self._wait([self._out], [], deadline, "waiting for its answer")
            with contextlib.suppress(BlockingIOError):
                return os.read(self._out, 64 * 1024)

    def errors(self) -> str:
        said = b""
        with contextlib.suppress(OSError):
            said = os.read(self._err, 8 * 1024)
        lines = [line.strip() for line in said.decode("utf-8", "replace").splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-400:]

    def close(self) -> None:
        """End the session; an agent that it started runs in a session of its own."""
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        try:
            self._process.wait(2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _wait(self, reading: list[int], writing: list[int], deadline: float, doing: str) -> None:
        ready = select.select(reading, writing, [], remaining_s(deadline, self._host, doing))
        if not any(ready):
            remaining_s(deadline, self._host, doing)
