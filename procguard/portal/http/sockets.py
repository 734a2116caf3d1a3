"""System resources of a server: a port, or a clear error, and file descriptors for its connections."""

from __future__ import annotations

import errno
import logging
import os
import resource
import socket
from typing import Any

import gevent.socket

from procguard.errors import ProcGuardError

log = logging.getLogger(__name__)

BACKLOG = 1024
OTHER_FILES = 256  # descriptors reserved for logs, journal and the SSH helper


def listen(host: str, port: int) -> Any:
    """Create a listening socket. Raises ProcGuardError if the port is not available."""
    try:
        infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, proto, _, address = infos[0]
        listener = gevent.socket.socket(family, kind, proto)
    except OSError as exc:
        raise ProcGuardError(
            f"web.host: cannot listen on {host!r} ({exc})", "use 0.0.0.0 or an address of this machine"
        ) from exc
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as exc:
        listener.close()
        raise _cannot_listen(host, port, exc) from exc
    return listener


def _cannot_listen(host: str, port: int, exc: OSError) -> ProcGuardError:
    if exc.errno == errno.EADDRINUSE:
        return ProcGuardError(
            f"port {port} on {host} is in use by another program",
            f"see which: ss -ltnp 'sport = :{port}'; or start with --port N",
            code="port_taken",
        )
    if exc.errno == errno.EACCES:
        return ProcGuardError(
            f"port {port} needs privileges that this user does not have", "use a port above 1023: --port N"
        )
    if exc.errno == errno.EADDRNOTAVAIL:
        return ProcGuardError(f"{host} is not an address of this machine", "use 0.0.0.0, or one shown by: ip addr")
    return ProcGuardError(
        f"cannot listen on {host}:{port} ({os.strerror(exc.errno or 0)})", "see web.host and web.port"
    )


def allow_many_connections() -> int:
    """Raise the soft limit of file descriptors to the hard one, because each long poll needs one. Returns the number of
    connections that fit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(hard, 66_000) if hard != resource.RLIM_INFINITY else 66_000
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            log.warning("descriptor limit stays at %d", soft)
    return max(16, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - OTHER_FILES)
