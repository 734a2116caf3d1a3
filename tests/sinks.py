"""Real endpoints on loopback that record what they receive: HTTP with scripted answers, and a small SMTP server."""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Posted:
    path: str
    headers: dict[str, str]
    body: bytes
    at: float = field(default_factory=time.time)

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """`after_s`: the delay before the answer."""

    status: int = 200
    body: bytes = b"ok"
    headers: dict[str, str] = field(default_factory=dict)
    after_s: float = 0.0


class HttpSink:
    """`replies` are used up one by one; then `reply` stands."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.posted: list[Posted] = []
        self.replies: list[Reply] = []
        self.reply = Reply()


@contextlib.contextmanager
def http_sink() -> Iterator[HttpSink]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            sink.posted.append(Posted(self.path, dict(self.headers), body))
            reply = sink.replies.pop(0) if sink.replies else sink.reply
            time.sleep(reply.after_s)
            with contextlib.suppress(OSError):
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink = HttpSink(server.server_address[1])
    with _served(server):
        yield sink


class SmtpSink:
    """`refuse`: what RCPT is answered, "" = accepted. `login`: user and password as AUTH PLAIN brought them."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.mails: list[bytes] = []
        self.receivers: list[str] = []
        self.refuse = ""
        self.login = b""


@contextlib.contextmanager
def smtp_sink() -> Iterator[SmtpSink]:
    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self._say("220 sink")
            while line := self.rfile.readline():
                text = line.decode("latin-1").strip()
                verb = text[:4].upper()
                if verb == "EHLO":
                    self._say("250-sink\r\n250-AUTH PLAIN\r\n250 8BITMIME")
                elif verb == "AUTH":
                    sink.login = text.partition("PLAIN ")[2].encode()
                    self._say("235 welcome")
                elif verb == "RCPT":
                    sink.receivers.append(text)
                    self._say(sink.refuse or "250 ok")
                elif verb == "DATA":
                    self._say("354 go on")
                    sink.mails.append(self._message())
                    self._say("250 taken")
                elif verb == "QUIT":
                    self._say("221 bye")
                    return
                else:
                    self._say("250 ok")

        def _message(self) -> bytes:
            lines = []
            while (line := self.rfile.readline()) not in (b".\r\n", b""):
                lines.append(line)
            return b"".join(lines)

        def _say(self, text: str) -> None:
            self.wfile.write(text.encode() + b"\r\n")

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    sink = SmtpSink(server.server_address[1])
    with _served(server):
        yield sink


@contextlib.contextmanager
def _served(server: socketserver.BaseServer) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
