"""Low-level client of the manager's HTTP API. Standard library only, stateless.

Knows the paths and errors of the API; knows no terminal. Thread-safe.
"""

from __future__ import annotations

import http.client
import json
import socket
import time
import urllib.parse
from collections.abc import Iterator, Sequence
from typing import Any, cast

from procguard.client.managers import NEXT_URL as _NEXT_URL
from procguard.client.managers import ManagerUrl, ManagerUrls
from procguard.client.types import DeploymentInfo, HostsInfo, OpenedTunnelInfo, OperationInfo, SshTriedInfo, WorkerInfo
from procguard.errors import (
    Conflict,
    ManagerUnreachable,
    NotFound,
    PartlyFailed,
    ProcGuardError,
    Refused,
)
from procguard.json_types import Json
from remote_agent.transport import tls

DEFAULT_URL = "http://localhost:5000"
TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S, QUICK_CONNECT_S = 5.0, 2.0  # the second one if there are several managers
TAKEOVER_S, TAKEOVER_LOOK_S = 10.0, 0.5  # how long, and at which interval, several managers are asked for the leader
MAX_PLACES = 8  # positions that are kept of a followed log
FOLLOW_IDLE_S = 20.0  # a followed log without data for this long is requested again: its manager may be frozen
FOLLOW_AGAIN_S = 0.2
NO_LEADER = "no_leader"  # code of a ManagerUnreachable
NOT_LEADING = {(421, "standby"), (503, "fenced")}  # (status, code) of a manager that does not lead and has done nothing
MAX_REPLY_BYTES = 256 * 1024 * 1024
_BY_STATUS: dict[int, type[ProcGuardError]] = {401: Refused, 403: Refused, 404: NotFound, 409: Conflict}


class ManagerClient:
    """A client of one manager, or of the leader of several. Every call raises ManagerUnreachable, or the ProcGuardError
    that the manager returned. The token is sent only to the addresses in `url`, never to one named in a response."""

    def __init__(self, url: str | Sequence[str], token: str = "", ca_file: str = "") -> None:
        """`url`: an address, or those of several managers, as a list or separated by commas. `ca_file`: certificates
        (PEM) to trust for https; "" for the system's, or those of this user's manager on this machine."""
        self._managers = ManagerUrls(url, ca_file)
        self._token = token

    @property
    def url(self) -> str:
        """The address in use."""
        return self._managers.current.url

    @property
    def urls(self) -> list[str]:
        return [one.url for one in self._managers.all]

    def __repr__(self) -> str:
        return f"<ManagerClient {self.url}>"

    # ------------------------------------------------------------------------------------------------ routes

    def workers(self, **query: Any) -> list[WorkerInfo]:
        return list(self.call("GET", "/api/remote-workers", query=query)["workers"])

    def worker(self, worker_id: str) -> WorkerInfo:
        return cast(WorkerInfo, self.call("GET", f"/api/remote-workers/{quote(worker_id)}"))

    def command(self, worker_id: str, verb: str, reason: str = "") -> Json:
        body = {"command": verb, **({"reason": reason} if reason else {})}
        return self.call("POST", f"/api/workers/{quote(worker_id)}/command", body)

    def command_status(self, command_id: str) -> Json:
        return self.call("GET", f"/api/commands/{quote(command_id)}")

    def preview(self, verb: str, selector: str) -> Json:
        """Preview an operation. The token in the response begins it."""
        return self.call("POST", "/api/operations/preview", {"command": verb, "selector": selector})

    def begin_operation(self, request: Json) -> OperationInfo:
        return cast(OperationInfo, self.call("POST", "/api/operations", request))

    def operations(self) -> list[Json]:
        return list(self.call("GET", "/api/operations")["operations"])

    def operation(self, operation_id: str, **query: Any) -> OperationInfo:
        """With `items` and `items_total`."""
        return cast(OperationInfo, self.call("GET", f"/api/operations/{quote(operation_id)}", query=query))

    def cancel_operation(self, operation_id: str) -> Json:
        return self.call("POST", f"/api/operations/{quote(operation_id)}/cancel", {})

    def retry_operation(self, operation_id: str, rest: bool) -> OperationInfo:
        answer = self.call("POST", f"/api/operations/{quote(operation_id)}/retry", {"rest": rest})
        return cast(OperationInfo, answer)

    def forget(self, worker_id: str) -> Json:
        return self.call("DELETE", f"/api/workers/{quote(worker_id)}")

    def hosts(self) -> HostsInfo:
        return cast(HostsInfo, self.call("GET", "/api/hosts"))

    def agents(self) -> Json:
        """{"agents": [HostView…], "version", "releases"}; the last two are missing from a manager of an earlier
        release."""
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
        """`undeployed`: only if the agent was declared but never deployed."""
        return self.call("DELETE", f"/api/agents/{quote(agent_id)}", query={"undeployed": 1} if undeployed else {})

    def events(self, **query: Any) -> list[Json]:
        return list(self.call("GET", "/api/events", query=query)["events"])

    def specification(self, worker_id: str) -> Json:
        return self.call("GET", f"/api/workers/{quote(worker_id)}/spec")

    def explain(self, worker_id: str, language: str = "") -> Json:
        return self.call("GET", f"/api/workers/{quote(worker_id)}/explain", query={"lang": language})

    def notifications(self) -> list[Json]:
        return list(self.call("GET", "/api/notifications")["notifications"])

    def acknowledge(self, worker_id: str, note: str) -> Json:
        return self.call("POST", f"/api/workers/{quote(worker_id)}/acknowledge", {"note": note})

    def firing(self) -> Json:
        """{"alerts", "total", "rules"}: the alerts on measurements that fire."""
        return self.call("GET", "/api/alerts")

    def acknowledge_alert(self, alert: str, note: str) -> Json:
        return self.call("POST", "/api/alerts/acknowledge", {"alert": alert, "note": note})

    def mutes(self) -> list[Json]:
        return list(self.call("GET", "/api/mutes")["mutes"])

    def mute(self, select: str, for_s: float, begins: float | None, note: str) -> Json:
        body: Json = {"select": select, "for_s": for_s, "note": note}
        return dict(self.call("POST", "/api/mutes", body if begins is None else {**body, "begins": begins})["mute"])

    def unmute(self, mute_id: str) -> Json:
        return dict(self.call("DELETE", f"/api/mutes/{quote(mute_id)}")["mute"])

    def test_notifications(self, name: str = "") -> list[Json]:
        body = {"name": name} if name else {}
        return list(self.call("POST", "/api/notifications/test", body, timeout_s=150.0)["results"])

    def export_events(self, **query: Any) -> Iterator[bytes]:
        """Every event kept on disk that matches, as JSON lines, in pieces."""
        yield from self._pieces("/api/events", {**query, "format": "jsonl"})

    def deploy(self, request: Json) -> DeploymentInfo:
        return cast(DeploymentInfo, self.call("POST", "/api/deployments", request, timeout_s=120.0))

    def set_credentials(self, agent_id: str, secret_sha256: str) -> Json:
        return self.call("PUT", f"/api/agents/{quote(agent_id)}/credentials", {"secret_sha256": secret_sha256})

    def groups(self) -> list[Json]:
        return list(self.call("GET", "/api/groups")["groups"])

    def cordon(self, host: str, reason: str, gpu: int | None = None) -> Json:
        body: Json = {"reason": reason}
        return self.call("POST", f"/api/hosts/{quote(host)}/cordon", body if gpu is None else {**body, "gpu": gpu})

    def uncordon(self, host: str, gpu: int | None = None) -> Json:
        return self.call("POST", f"/api/hosts/{quote(host)}/uncordon", {} if gpu is None else {"gpu": gpu})

    def move(self, worker_id: str, host: str) -> Json:
        return self.call("POST", f"/api/workers/{quote(worker_id)}/move", {"host": host})

    def check_ssh(self, host: str) -> SshTriedInfo:
        return cast(SshTriedInfo, self.call("POST", f"/api/hosts/{quote(host)}/check-ssh", {}, timeout_s=45.0))

    def open_tunnel(self, host: str) -> OpenedTunnelInfo:
        """Waits until the host's tunnel is open or has failed."""
        return cast(OpenedTunnelInfo, self.call("POST", f"/api/hosts/{quote(host)}/tunnel", {}, timeout_s=60.0))

    def tokens(self) -> list[Json]:
        return list(self.call("GET", "/api/tokens")["tokens"])

    def create_token(self, scope: str, name: str, life_s: float | None = None, uses: int | None = None) -> Json:
        body = {"scope": scope, "name": name, "expires_in_s": life_s, "uses": uses}
        return self.call("POST", "/api/tokens", {key: value for key, value in body.items() if value is not None})

    def audit(self, **query: Any) -> list[Json]:
        return list(self.call("GET", "/api/audit", query=query)["audit"])

    def revoke_token(self, token_id: str) -> Json:
        return self.call("DELETE", f"/api/tokens/{quote(token_id)}")

    def log_pieces(self, worker_id: str, **query: Any) -> Iterator[bytes]:
        """The last lines of a worker's log, in pieces."""
        yield from self._pieces(f"/api/remote-workers/{quote(worker_id)}/logs", query, TIMEOUT_S)

    def follow_logs(self, worker_id: str, **query: Any) -> Iterator[bytes]:
        """The log as it grows, in pieces, until the manager or the caller ends it."""
        yield from self._pieces(f"/api/remote-workers/{quote(worker_id)}/logs", {**query, "follow": 1})

    def log_lines(self, worker_id: str, **query: Any) -> list[Json]:
        """The last lines, each {"attempt", "stream", "offset", "at", "text"}."""
        path = f"/api/remote-workers/{quote(worker_id)}/logs"
        return list(self.call("GET", path, query={**query, "format": "json"})["lines"])

    def follow_log_lines(self, worker_id: str, **query: Any) -> Iterator[Json]:
        """New lines as they are written, each once it is complete. If the leader of several managers fails, following
        continues at the next leader after the last line, so that no line is missing or repeated."""
        if len(self.urls) == 1:
            yield from _finished(self.follow_logs(worker_id, **{**query, "format": "json"}))
            return
        place = FollowedPlace()
        if query.get("tail") == 0:  # the start position must be known before the first connection ends
            place.note(self.log_lines(worker_id, **{**query, "tail": 1}))
        path = f"/api/remote-workers/{quote(worker_id)}/logs"
        while True:
            asked = {**query, "format": "json", "follow": 1, "resume": place.resume}
            try:
                for line in _finished(self._pieces(path, asked, FOLLOW_IDLE_S)):
                    place.note([line])
                    yield line
            except ManagerUnreachable as exc:
                if exc.code == NO_LEADER:
                    raise
            time.sleep(FOLLOW_AGAIN_S)

    def search_logs(self, **query: Any) -> Iterator[Json]:
        """The results of a log search in order of arrival: {"t": "begin" | "host" | "end", …}."""
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
        """Send one request. Returns the JSON object of the response; any other JSON value as {"value": …}."""
        with self._open(method, path, query or {}, body, timeout_s) as reply:
            try:
                data = json.loads(reply.read(MAX_REPLY_BYTES) or b"{}")
            except (OSError, http.client.HTTPException) as exc:
                raise self._unreachable(exc) from exc
            except ValueError as exc:
                raise ManagerUnreachable(f"{self.url} does not respond as a ProcGuard manager", _NEXT_URL) from exc
        return data if isinstance(data, dict) else {"value": data}

    def _open(
        self, method: str, path: str, query: Json, body: Json | None, timeout_s: float | None
    ) -> http.client.HTTPResponse:
        """The response, whose status is already known to be a success; closing it closes the connection. Of several
        managers, the response of the leader; while none leads, waits for a takeover."""
        text = urllib.parse.urlencode({name: value for name, value in query.items() if value not in (None, "")})
        target = path + (f"?{text}" if text else "")
        deadline = time.monotonic() + (TAKEOVER_S if len(self._managers.all) > 1 else 0.0)
        failures: dict[str, ManagerUnreachable] = {}
        while True:
            at = self._managers.current
            try:
                return self._ask(at, method, target, body, timeout_s)
            except _Elsewhere as exc:
                failures[at.url] = exc
                self._managers.failed(at)
                if not exc.nothing_done:
                    raise ManagerUnreachable(exc.message, _NEXT_UNSURE if method != "GET" else exc.next_step) from exc
            if self._managers.current.url in failures:
                if time.monotonic() >= deadline:
                    break
                failures.clear()
                time.sleep(TAKEOVER_LOOK_S)
        if len(self._managers.all) == 1:
            raise failures[at.url]
        reasons = "; ".join(dict.fromkeys(one.message for one in failures.values()))
        raise ManagerUnreachable(f"no manager leads: {reasons}", "see the log of each manager", code=NO_LEADER)

    def _ask(
        self, at: ManagerUrl, method: str, target: str, body: Json | None, timeout_s: float | None
    ) -> http.client.HTTPResponse:
        """Send the request to one manager. Raises _Elsewhere if it is unreachable, does not lead, or disconnects."""
        headers = {"Accept": "application/json, text/plain", "Connection": "close"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        connection = at.connection(QUICK_CONNECT_S if len(self._managers.all) > 1 else CONNECT_TIMEOUT_S)
        sent = False
        try:
            connection.connect()
            connection.sock.settimeout(timeout_s)
            sent = True
            connection.request(method, at.path + target, None if body is None else json.dumps(body), headers)
            reply = connection.getresponse()
        except (OSError, http.client.HTTPException) as exc:
            connection.close()
            error = self._unreachable(exc, at.url)
            raise _Elsewhere(error.message, error.next_step, nothing_done=not sent or method == "GET") from exc
        if reply.status >= 400:
            with reply:
                failed = error_of(reply.status, reply.read(1024 * 1024))
            if (reply.status, failed.code) in NOT_LEADING:
                raise _Elsewhere(f"{at.url} does not lead ({failed.code})", failed.next_step)
            raise failed
        if reply.status >= 300:  # never followed, because the token would be sent there
            with reply:
                where = str(reply.headers.get("Location", "elsewhere"))[:200]
            raise _Elsewhere(f"{at.url} is not the manager: it redirects to {where}", _NEXT_URL)
        return reply

    def _unreachable(self, exc: Exception, url: str = "") -> ManagerUnreachable:
        url = url or self.url
        of_tls = tls.explain(exc)
        if of_tls:
            then = _NEXT_CA if tls.is_untrusted(exc) else _NEXT_URL
            return ManagerUnreachable(f"cannot reach the manager at {url}: {of_tls}", then)
        cause = str(getattr(exc, "strerror", "") or exc or type(exc).__name__)
        if isinstance(exc, (socket.timeout, TimeoutError)):
            cause = "timed out"
        elif isinstance(exc, ConnectionRefusedError):
            cause = "refused"
        elif isinstance(exc, socket.gaierror):
            cause = "its name cannot be resolved"
        return ManagerUnreachable(f"cannot reach the manager at {url} ({cause})", _NEXT_URL)


class _Elsewhere(ManagerUnreachable):
    """This manager cannot serve the request. `nothing_done`: it may be repeated at another manager."""

    def __init__(self, message: str, next_step: str, *, nothing_done: bool = True) -> None:
        super().__init__(message, next_step)
        self.nothing_done = nothing_done


_NEXT_UNSURE = "it is unknown whether the request was carried out; check before you repeat it"
_NEXT_CA = "set PROCGUARD_CA=FILE to the certificates to trust (with tls: auto: tls/ca.pem beside the manager's state)"


class FollowedPlace:
    """The positions up to which a followed log has been read, of its newest attempts."""

    def __init__(self) -> None:
        self._ends: dict[tuple[int, str], int] = {}

    def note(self, lines: list[Json]) -> None:
        for line in lines:
            key = (int(line["attempt"]), str(line["stream"]))
            if line["end"] > self._ends.get(key, 0):
                self._ends[key] = int(line["end"])
                for oldest in sorted(self._ends)[:-MAX_PLACES]:
                    del self._ends[oldest]

    @property
    def resume(self) -> str:
        return ",".join(f"{attempt}.{stream}.{end}" for (attempt, stream), end in sorted(self._ends.items()))


def _finished(pieces: Iterator[bytes]) -> Iterator[Json]:
    """The complete lines only."""
    return (line for line in _json_lines(pieces) if not line.get("partial"))


def _json_lines(pieces: Iterator[bytes]) -> Iterator[Json]:
    line = b""
    for piece in pieces:
        *whole, line = (line + piece).split(b"\n")
        yield from (json.loads(one) for one in whole if one)


def quote(segment: str) -> str:
    return urllib.parse.quote(segment, safe=":", errors="replace")


def error_of(status: int, body: bytes) -> ProcGuardError:
    """The ProcGuardError for an error response: its class by `status`, its texts and code from the JSON `body`."""
    try:
        error = json.loads(body)["error"]
        message, next_step, code = str(error["message"]), str(error.get("next") or ""), str(error.get("code") or "")
    except (ValueError, KeyError, TypeError):
        message, next_step, code = f"the manager answered with HTTP {status}", "see the manager's log", ""
    return _BY_STATUS.get(status, ProcGuardError)(message, next_step, code=code)


def worst(errors: list[ProcGuardError]) -> ProcGuardError | None:
    """One error for several: the first ManagerUnreachable among them, else PartlyFailed; None for an empty list."""
    lost = next((error for error in errors if isinstance(error, ManagerUnreachable)), None)
    if lost or not errors:
        return lost
    return PartlyFailed(f"{len(errors)} failed", "see above")
