"""What the operator's tools say to the manager, over its HTTP interface. Standard library only, no state.

Knows paths and errors of the interface; knows nothing of terminals. Safe to use from several threads.
"""

from __future__ import annotations

import http.client
import json
import socket
import urllib.parse
from collections.abc import Iterator
from typing import Any

from procguard.client import discovery
from procguard.errors import (
    Conflict,
    ManagerUnreachable,
    NotFound,
    PartlyFailed,
    ProcGuardError,
    Refused,
    UsageError,
)
from remote_agent.transport import tls

DEFAULT_URL = "http://localhost:5000"
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
MAX_REPLY_BYTES = 256 * 1024 * 1024
_BY_STATUS: dict[int, type[ProcGuardError]] = {401: Refused, 403: Refused, 404: NotFound, 409: Conflict}

Json = dict[str, Any]


class ManagerClient:
    """One manager. Every call raises ManagerUnreachable, or the ProcGuardError the manager answered with."""

    def __init__(self, url: str, token: str = "", ca_file: str = "") -> None:
        self.url = url.rstrip("/")
        self._ca_file = ca_file
        self._context: Any = None  # of https, made with the first connection
        parts = urllib.parse.urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ManagerUnreachable(f"not a manager's address: {url!r}", "write it like http://gpu-head:5000")
        self._parts = parts
        self._token = token

    def __repr__(self) -> str:
        return f"<ManagerClient {self.url}>"

    # ------------------------------------------------------------------------------------------------ routes

    def workers(self, **query: Any) -> list[Json]:
        return list(self.call("GET", "/api/remote-workers", query=query)["workers"])

    def worker(self, worker_id: str) -> Json:
        return self.call("GET", f"/api/remote-workers/{quote(worker_id)}")

    def command(self, worker_id: str, verb: str, reason: str = "") -> Json:
        body = {"command": verb, **({"reason": reason} if reason else {})}
        return self.call("POST", f"/api/workers/{quote(worker_id)}/command", body)

    def command_status(self, command_id: str) -> Json:
        return self.call("GET", f"/api/commands/{quote(command_id)}")

    def preview(self, verb: str, selector: str) -> Json:
        """What an operation would do to whom; its token begins it."""
        return self.call("POST", "/api/operations/preview", {"command": verb, "selector": selector})

    def begin_operation(self, request: Json) -> Json:
        return self.call("POST", "/api/operations", request)

    def operations(self) -> list[Json]:
        return list(self.call("GET", "/api/operations")["operations"])

    def operation(self, operation_id: str, **query: Any) -> Json:
        return self.call("GET", f"/api/operations/{quote(operation_id)}", query=query)

    def cancel_operation(self, operation_id: str) -> Json:
        return self.call("POST", f"/api/operations/{quote(operation_id)}/cancel", {})

    def retry_operation(self, operation_id: str, rest: bool) -> Json:
        return self.call("POST", f"/api/operations/{quote(operation_id)}/retry", {"rest": rest})

    def forget(self, worker_id: str) -> Json:
        return self.call("DELETE", f"/api/workers/{quote(worker_id)}")

    def hosts(self) -> Json:
        """{"hosts": [HostView…], "server_time": ISO 8601}"""
        return self.call("GET", "/api/hosts")

    def agents(self) -> Json:
        """{"agents": [HostView…], "version", "releases"}; a manager of an earlier release says nothing of itself."""
        return self.call("GET", "/api/agents")

    def managers(self) -> Json:
        """{"leader", "term", "since", "database", "replication", "warnings", "managers": […]}"""
        return self.call("GET", "/api/managers")

    def promote_manager(self, name: str) -> Json:
        return self.call("POST", "/api/managers/promote", {"name": name})

    def decide(self, agent_id: str, verb: str, fingerprint: str = "") -> Json:
        """`verb`: approve or deny."""
        body = {"fingerprint": fingerprint} if fingerprint else {}
        return self.call("POST", f"/api/agents/{quote(agent_id)}/{verb}", body)

    def revoke_agent(self, agent_id: str) -> Json:
        return self.call("POST", f"/api/agents/{quote(agent_id)}/revoke", {})

    def rotate_agents(self, agent_ids: list[str]) -> dict[str, Json]:
        """{agent: {"status": "asked", "unsupported" or "unknown", "message"}}"""
        return dict(self.call("POST", "/api/agents/rotate", {"agents": agent_ids})["agents"])

    def forget_agent(self, agent_id: str, undeployed: bool = False) -> Json:
        """`undeployed`: only one that was declared and never deployed."""
        return self.call("DELETE", f"/api/agents/{quote(agent_id)}", query={"undeployed": 1} if undeployed else {})

    def events(self, **query: Any) -> list[Json]:
        return list(self.call("GET", "/api/events", query=query)["events"])

    def explain(self, worker_id: str, language: str = "") -> Json:
        return self.call("GET", f"/api/workers/{quote(worker_id)}/explain", query={"lang": language})

    def notifications(self) -> list[Json]:
        return list(self.call("GET", "/api/notifications")["notifications"])

    def test_notifications(self, name: str = "") -> list[Json]:
        body = {"name": name} if name else {}
        return list(self.call("POST", "/api/notifications/test", body, timeout_s=150.0)["results"])

    def export_events(self, **query: Any) -> Iterator[bytes]:
        """Every event kept on disk that matches, as JSON lines, in pieces."""
        yield from self._pieces("/api/events", {**query, "format": "jsonl"})

    def deploy(self, request: Json) -> Json:
        return self.call("POST", "/api/deployments", request, timeout_s=120.0)

    def set_credentials(self, agent_id: str, secret_sha256: str) -> Json:
        return self.call("PUT", f"/api/agents/{quote(agent_id)}/credentials", {"secret_sha256": secret_sha256})

    def groups(self) -> list[Json]:
        return list(self.call("GET", "/api/groups")["groups"])

    def cordon(self, host: str, reason: str) -> Json:
        return self.call("POST", f"/api/hosts/{quote(host)}/cordon", {"reason": reason})

    def uncordon(self, host: str) -> Json:
        return self.call("POST", f"/api/hosts/{quote(host)}/uncordon", {})

    def move(self, worker_id: str, host: str) -> Json:
        return self.call("POST", f"/api/workers/{quote(worker_id)}/move", {"host": host})

    def check_ssh(self, host: str) -> Json:
        return self.call("POST", f"/api/hosts/{quote(host)}/check-ssh", {}, timeout_s=45.0)

    def open_tunnel(self, host: str) -> Json:
        """{"ok", "url", "reason"}; waits until the host's tunnel is open or has failed."""
        return self.call("POST", f"/api/hosts/{quote(host)}/tunnel", {}, timeout_s=60.0)

    def tokens(self) -> list[Json]:
        return list(self.call("GET", "/api/tokens")["tokens"])

    def create_token(self, scope: str, name: str, life_s: float | None = None, uses: int = 0) -> Json:
        body = {"scope": scope, "name": name, "expires_in_s": life_s, "uses": uses or None}
        return self.call("POST", "/api/tokens", {key: value for key, value in body.items() if value is not None})

    def audit(self, **query: Any) -> list[Json]:
        return list(self.call("GET", "/api/audit", query=query)["audit"])

    def revoke_token(self, token_id: str) -> Json:
        return self.call("DELETE", f"/api/tokens/{quote(token_id)}")

    def log_pieces(self, worker_id: str, **query: Any) -> Iterator[bytes]:
        """The last lines of its log."""
        yield from self._pieces(f"/api/remote-workers/{quote(worker_id)}/logs", query, TIMEOUT_S)

    def follow_logs(self, worker_id: str, **query: Any) -> Iterator[bytes]:
        """The log as it grows, in pieces, until the manager or the caller ends it."""
        yield from self._pieces(f"/api/remote-workers/{quote(worker_id)}/logs", {**query, "follow": 1})

    def log_lines(self, worker_id: str, **query: Any) -> list[Json]:
        """The last lines, each {"attempt", "stream", "offset", "at", "text"}."""
        path = f"/api/remote-workers/{quote(worker_id)}/logs"
        return list(self.call("GET", path, query={**query, "format": "json"})["lines"])

    def follow_log_lines(self, worker_id: str, **query: Any) -> Iterator[Json]:
        """The same as they are written, each once it is finished."""
        for line in _json_lines(self.follow_logs(worker_id, **{**query, "format": "json"})):
            if not line.get("partial"):
                yield line

    def search_logs(self, **query: Any) -> Iterator[Json]:
        """What the hosts find in their logs, as they answer: {"t": "begin" | "host" | "end", …}."""
        yield from _json_lines(self._pieces("/api/log-search", {**query, "format": "jsonl"}))

    # ------------------------------------------------------------------------------------------------ inside

    def _pieces(self, path: str, query: Json, timeout_s: float | None = None) -> Iterator[bytes]:
        with self._open("GET", path, query, None, timeout_s) as reply:
            while True:
                try:
                    data = reply.read1(64 * 1024)
                except (OSError, http.client.HTTPException) as exc:
                    raise self._unreachable(exc) from exc
                if not data:
                    return
                yield data

    def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: Json | None = None,
        timeout_s: float = TIMEOUT_S,
    ) -> Json:
        """One request; its JSON answer."""
        with self._open(method, path, query or {}, body, timeout_s) as reply:
            try:
                data = json.loads(reply.read(MAX_REPLY_BYTES) or b"{}")
            except (OSError, http.client.HTTPException) as exc:
                raise self._unreachable(exc) from exc
            except ValueError as exc:
                raise ManagerUnreachable(f"{self.url} does not answer like ProcGuard's manager", _NEXT_URL) from exc
        return data if isinstance(data, dict) else {"value": data}

    def _open(
        self, method: str, path: str, query: Json, body: Json | None, timeout_s: float | None
    ) -> http.client.HTTPResponse:
        """The answer, already known to be a success. The connection closes with it."""
        text = urllib.parse.urlencode({name: value for name, value in query.items() if value not in (None, "")})
        target = self._parts.path.rstrip("/") + path + (f"?{text}" if text else "")
        headers = {"Accept": "application/json, text/plain", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = self._connection()
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            connection.request(method, target, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            raise self._unreachable(exc) from exc
        if reply.status >= 400:
            with reply:
                raise error_of(reply.status, reply.read(1024 * 1024))
        if reply.status >= 300:  # never followed: the token would go along
            with reply:
                where = str(reply.headers.get("Location", "elsewhere"))[:200]
            raise ManagerUnreachable(f"{self.url} is not the manager: it redirects to {where}", _NEXT_URL)
        return reply

    def _connection(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme != "https":
            return http.client.HTTPConnection(host, port, timeout=CONNECT_TIMEOUT_S)
        if self._context is None:
            self._context = self._made_context()
        return http.client.HTTPSConnection(host, port, timeout=CONNECT_TIMEOUT_S, context=self._context)

    def _made_context(self) -> Any:
        import ssl

        known = discovery.find(self.url) if not self._ca_file else None
        path = self._ca_file or (known.ca_file if known is not None else "")
        try:
            context = ssl.create_default_context(cafile=path or None)
        except (OSError, ValueError) as exc:
            raise UsageError(f"{path}: no certificates in PEM can be read there ({exc})", _NEXT_CA) from exc
        if known is not None and known.any_name:
            context.check_hostname = False
        return context

    def _unreachable(self, exc: Exception) -> ManagerUnreachable:
        of_tls = tls.explain(exc)
        if of_tls:
            then = _NEXT_CA if tls.is_untrusted(exc) else _NEXT_URL
            return ManagerUnreachable(f"cannot reach the manager at {self.url}: {of_tls}", then)
        cause = str(getattr(exc, "strerror", "") or exc or type(exc).__name__)
        if isinstance(exc, (socket.timeout, TimeoutError)):
            cause = "timed out"
        elif isinstance(exc, ConnectionRefusedError):
            cause = "refused"
        elif isinstance(exc, socket.gaierror):
            cause = "its name can't be resolved"
        return ManagerUnreachable(f"cannot reach the manager at {self.url} ({cause})", _NEXT_URL)


_NEXT_CA = "PROCGUARD_CA=FILE names certificates to trust (of tls: auto: tls/ca.pem beside the manager's state)"
_NEXT_URL = "start it (./start_manager.sh), or set PROCGUARD_MANAGER_URL"


def _json_lines(pieces: Iterator[bytes]) -> Iterator[Json]:
    line = b""
    for piece in pieces:
        *whole, line = (line + piece).split(b"\n")
        yield from (json.loads(one) for one in whole if one)


def quote(segment: str) -> str:
    return urllib.parse.quote(segment, safe=":", errors="replace")


def error_of(status: int, body: bytes) -> ProcGuardError:
    """The manager's JSON error as the error it stands for."""
    try:
        error = json.loads(body)["error"]
        message, next_step, code = str(error["message"]), str(error.get("next") or ""), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError):
        message, next_step, code = f"the manager answered with HTTP {status}", "see its log", ""
    return _BY_STATUS.get(status, ProcGuardError)(message, next_step, code=code)


def worst(errors: list[ProcGuardError]) -> ProcGuardError | None:
    """One error for many: PartlyFailed, or ManagerUnreachable where that is what happened."""
    lost = next((error for error in errors if isinstance(error, ManagerUnreachable)), None)
    if lost or not errors:
        return lost
    return PartlyFailed(f"{len(errors)} failed", "see above")
