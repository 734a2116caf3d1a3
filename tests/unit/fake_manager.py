"""A manager that knows one fleet and remembers what it was asked: enough for installer, deployer and client tests."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from remote_agent import protocol

FLEET = "fleet-test"
KEY = "proof-key"
Route = Callable[[dict[str, Any]], "tuple[int, Any]"]


class FakeManager:
    """Set `routes["GET /api/x"] = lambda body: (200, {...})`; `requests` holds (method, path, body, headers)."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.requests: list[tuple[str, str, Any, dict[str, str]]] = []
        self.routes: dict[str, Route] = {}
        self.heard: list[str] = []  # agent ids, one per heartbeat
        self.beats: list[dict[str, Any]] = []  # the heartbeats themselves
        self.assignments: list[protocol.Assignment] = []

    def asked(self, method: str, prefix: str) -> list[tuple[str, str, Any, dict[str, str]]]:
        return [one for one in self.requests if one[0] == method and one[1].startswith(prefix)]

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        parts = urllib.parse.urlsplit(path)
        route = self.routes.get(f"{method} {parts.path}")
        if route is not None:
            return route(body)
        query = dict(urllib.parse.parse_qsl(parts.query))
        if parts.path == "/api/hello":
            proof = protocol.manager_proof(KEY, FLEET, query.get("agent", ""), query.get("nonce", ""))
            return 200, {"fleet_id": FLEET, "proof": proof, "version": "test"}
        if parts.path.endswith("/heartbeat"):
            self.heard.append(parts.path.split("/")[3])
            self.beats.append(body or {})
            reply = protocol.AgentReply(
                fleet_id=FLEET, interval_s=0.2, assignments=self.assignments, assignments_rev="1"
            )
            return 200, protocol.encode(reply)
        if parts.path.endswith("/commands"):
            threading.Event().wait(0.3)
            return 200, protocol.encode(protocol.AgentReply(fleet_id=FLEET, interval_s=0.2))
        return 404, {"error": {"code": "not_found", "message": f"no such thing: {parts.path}", "next": "look again"}}


@contextlib.contextmanager
def running() -> Iterator[FakeManager]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self) -> None:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.loads(data) if data.startswith(b"{") else None
            manager.requests.append((self.command, self.path, body, dict(self.headers)))
            status, reply = manager.answer(self.command, self.path, body)
            raw = reply.encode() if isinstance(reply, str) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            with contextlib.suppress(OSError):
                self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_DELETE = _serve

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    manager = FakeManager(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield manager
    finally:
        server.shutdown()
        server.server_close()
