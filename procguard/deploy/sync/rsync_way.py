"""Transfers files by rsync over an open connection: the local rsync, a bridge in place of ssh, rsync on the host.

Owns the processes and threads of one transfer; does not know what the files are. The caller checks what arrived.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from procguard.deploy.session.session import Pipe
from procguard.errors import HostError, ProcGuardError

BRIDGE = str(Path(__file__).with_name("rsync_bridge.py"))
PAUSE_S = 60  # rsync's own timeout without progress


def bring(
    program: str, root: str, names: Sequence[str], incoming: str, base: str, beside: Callable[[str, float], Pipe],
    deadline: float,
) -> None:  # fmt: skip
    """Transfer the files `names` of `root` to the host's folder `incoming`; files in `base` there are used for deltas.

    Raises HostError with rsync's message.
    """
    ours, its = socket.socketpair()
    with ours, its:
        command = [
            program, "-s", "--files-from=-", "--from0", "--no-implied-dirs", "--checksum", "--perms",
            "--compress", f"--timeout={PAUSE_S}", f"--copy-dest={base}",
            "-e", f'"{sys.executable}" -I -S "{BRIDGE}" {its.fileno()}', "--", f"{root}/", f"host:{incoming}/",
        ]  # fmt: skip
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            pass_fds=[its.fileno()],
            env={**os.environ, "LC_ALL": "C.UTF-8"},
        )
        its.close()
        pump = threading.Thread(target=_pump, args=(ours, beside, deadline), daemon=True)
        pump.start()
        try:
            _, said = process.communicate(b"\0".join(map(os.fsencode, names)), max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            said = b"no end in time"
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            with contextlib.suppress(OSError):
                ours.shutdown(socket.SHUT_RDWR)
            pump.join(5)
    if process.returncode != 0:
        lines = said.decode("utf-8", "replace").strip().splitlines()
        raise HostError(f"rsync exited with {process.returncode} ({' | '.join(lines[-2:])[-300:]})", code="rsync")


def _pump(end: socket.socket, beside: Callable[[str, float], Pipe], deadline: float) -> None:
    """Start rsync's remote command on the host and relay bytes in both directions until one side ends."""
    pipe = None
    with contextlib.suppress(OSError, ValueError, ProcGuardError):
        with end.makefile("rb", buffering=0) as reader:
            words = json.loads(reader.readline())
        pipe = beside(shlex.join(words), deadline)
        there = threading.Thread(target=_to_host, args=(end, pipe, deadline), daemon=True)
        there.start()
        for data in iter(lambda: pipe.receive(deadline), b""):
            end.sendall(data)
    if pipe is not None:
        pipe.close()
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def _to_host(end: socket.socket, pipe: Pipe, deadline: float) -> None:
    with contextlib.suppress(OSError, ProcGuardError):
        for data in iter(lambda: end.recv(64 * 1024), b""):
            pipe.send(data, deadline)
