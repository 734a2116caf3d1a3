"""Guards every route: enforces the access that the route's declaration (agent_api/declaration.py) allows.

A route without a declaration is for operators only. agent_api/handlers.py checks requests of agents and launchers on
every channel; access.py identifies callers. Every requested change is audited (audit.py). Access lasts as long as the
caller's token or session: when it ends, the connections of its unfinished responses are closed (live_uses.py).
"""

from __future__ import annotations

import contextlib
import functools
import socket
import struct
from collections.abc import Callable
from typing import Any
from wsgiref.types import WSGIEnvironment

import bottle

from procguard.agent_api import http_io
from procguard.agent_api.declaration import Who
from procguard.errors import ProcGuardError
from procguard.portal.auth.access import CALLER, Auth
from procguard.portal.auth.audit import Audit

_RESET = struct.pack("ii", 1, 0)  # linger for 0 s
_SAFE = ("GET", "HEAD")
_NOT_OURS = ("anyone", "agent", "agent or operator")


class Gate:
    """A bottle plugin: wraps every route of the application that it is installed in."""

    name = "gate"
    api = 2

    def __init__(self, access: Auth, audit: Audit) -> None:
        self._access = access
        self._audit = audit

    def apply(self, callback: Callable[..., Any], route: Any) -> Callable[..., Any]:
        who: Who = route.config.get("who", "operator")
        if who in _NOT_OURS:
            return callback
        changes = route.method not in _SAFE

        def gated(**arguments: str) -> Any:
            environ = bottle.request.environ
            try:
                caller = environ[CALLER] = self._access.admit(environ, who)
            except ProcGuardError as exc:
                if changes:
                    self._audit.refused(environ, exc)
                return http_io.error_response(exc, http_io.request_id(), http_io.accept_language())
            environ[http_io.CLOSE_USE] = self._access.hold(caller, functools.partial(_cut, environ))
            if not changes:
                return callback(**arguments)
            status = 500
            self._audit.begin(environ, caller, arguments, route.config.get("status", 200))
            try:
                result = callback(**arguments)
                status = getattr(result, "status_code", 200)
            finally:
                self._audit.end(status)
            return result

        return gated


def _cut(environ: WSGIEnvironment) -> None:
    """Close the connection and discard unsent data."""
    connection_handle, sock = environ.get(http_io.CONNECTION_HANDLE), environ.get("procguard.socket")
    if connection_handle is None or sock is None:
        return
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    connection_handle.cut()
