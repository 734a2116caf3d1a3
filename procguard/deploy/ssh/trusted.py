"""Host keys of known_hosts files, each file read once for all connections of this process.

paramiko needs quadratic time to read a file, and would read it for every connection. Knows nothing of unknown keys.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Mapping

import paramiko

SSH_PORT = 22

_lock = threading.Lock()
_files: dict[str, tuple[tuple[int, ...], paramiko.HostKeys]] = {}  # path -> (version of the file, its keys)


def give(client: paramiko.SSHClient, host: str, port: int, paths: Iterable[str]) -> None:
    """Let `client` trust the files' keys for `host`; the first of each type. Missing files are skipped."""
    name = host if port == SSH_PORT else f"[{host}]:{port}"
    known = client.get_host_keys()
    for path in paths:
        with contextlib.suppress(OSError):
            found: Mapping[str, paramiko.PKey] = _read(path).lookup(name) or {}
            for kind in found:
                if kind not in (known.lookup(name) or {}):
                    known.add(name, kind, found[kind])


def _read(path: str) -> paramiko.HostKeys:
    status = os.stat(path)
    version = (status.st_ino, status.st_size, status.st_mtime_ns)
    with _lock:
        if path not in _files or _files[path][0] != version:
            _files[path] = (version, paramiko.HostKeys(path))
        return _files[path][1]
