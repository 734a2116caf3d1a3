"""Hostile connections by name: what one peer can send to block a manager.

`python -m tests.zoo PORT SECONDS NAME,… TOKENS` keeps one after the other going (`TOKENS`: JSON, {"stranger": "",
"viewer": …, "agent": …}; the name `strangers`: all of theirs at once) and prints a line of JSON for each. Loopback
only. Most are a head and a block that is sent again and again, faster than anybody could answer; `reads`: whether the
attacker reads what comes back. A connection that is closed is opened again.

Used one by one in tests/unit/scripts/test_zoo.py, and all of them in chaos scenario 27 (tests/fleet/test_chaos_zoo.py).
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import json
import select
import socket
import sys
import threading
import time
from collections import Counter
from typing import Literal

from tests.raw_websocket import BINARY, CLOSE, PING, PONG, TEXT, encode

Who = Literal["stranger", "viewer", "agent"]
CONTINUATION = 0
BLOCK_BYTES = 128 * 1024  # of what is sent again and again
ALL = "strangers"
STRANGERS_HOST = "elsewhere"  # under this name nobody is the local operator


@dataclasses.dataclass(frozen=True)
class Attack:
    """`opening` begins a connection, `block` follows until it is closed. `{token}` in both stands for the token."""

    name: str
    opening: bytes
    block: bytes = b""
    who: Who = "stranger"
    reads: bool = True
    pause_s: float = 0.0  # after each block
    upgrades: bool = False  # `opening` is a WebSocket handshake: wait for its answer
    resets: bool = False  # a new connection for each block


def request(method: str, path: str, body: bytes = b"", headers: str = "", token: bool = False) -> bytes:
    shown = "Authorization: Bearer {token}\r\n" if token else ""
    length = f"Content-Length: {len(body)}\r\n" if body or method != "GET" else ""
    return f"{method} {path} HTTP/1.1\r\nHost: {STRANGERS_HOST}\r\n{shown}{headers}{length}\r\n".encode() + body


def chunked(path: str) -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: {STRANGERS_HOST}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()


def upgrade(token: bool) -> bytes:
    key = base64.b64encode(b"0123456789abcdef").decode()
    headers = f"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
    return request("GET", "/ws", headers=headers, token=token)


def many(piece: bytes) -> bytes:
    return piece * max(1, BLOCK_BYTES // len(piece))


def text(message: object) -> bytes:
    return encode(TEXT, json.dumps(message).encode())


def registration(command: str) -> bytes:
    body = json.dumps({"worker_id": "w", "command": command, "host": "h", "secret_sha256": "0" * 64}).encode()
    return request("POST", "/api/workers/register", body)


LONG_COOKIE = "".join("Cookie: a=" + '"' + "\\" * 8000 + '"\r\n' for _ in range(7))
MANY_HEADERS = "".join(f"X-{number}: {'v' * 600}\r\n" for number in range(95))
EIGHT_KB = 7_900
PAGE = "/static/css/api.css"

ATTACKS: dict[str, Attack] = {
    attack.name: attack
    for attack in (
        # ------------------------------------------------------------------------------------------ of strangers
        Attack("pipelined", b"", many(request("GET", "/healthz"))),
        Attack("pipelined_pages", b"", many(request("GET", "/"))),
        Attack("pipelined_nowhere", b"", many(request("GET", "/nowhere"))),
        Attack("pipelined_heartbeats", b"", many(request("POST", "/api/agents/a/heartbeat", b"{}"))),
        Attack("pipelined_never_read", b"", many(request("GET", "/api/openapi.json")), reads=False),
        Attack("trailers", chunked("/api/login") + b"0\r\n", many(b"a: b\r\n")),
        Attack("chunk_extensions", chunked("/api/login"), many(b"1;" + b"x" * 8000 + b"\r\nx\r\n")),
        Attack("endless_extension", chunked("/api/login") + b"1;", many(b"x")),
        Attack("tiny_chunks", chunked("/api/workers/register"), many(b"1\r\nx\r\n")),
        Attack("endless_chunks", chunked("/api/workers/register"), b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        Attack("empty_chunk_size", b"", chunked("/api/login") + b"\r\n\r\n", resets=True),
        Attack("cookies", b"", request("GET", "/api/session", headers=LONG_COOKIE)),
        Attack("many_headers", b"", many(request("GET", "/healthz", headers=MANY_HEADERS))),
        Attack("head_without_end", b"GET / HTTP/1.1\r\n", many(b"a: b\r\n")),
        Attack("slow_bytes", b"GET /healthz HTTP/1.1\r\nX-Slow: ", b"x", pause_s=0.0005),
        Attack("websocket_pongs", upgrade(False), many(encode(PONG, b"")), upgrades=True),
        Attack("websocket_pings", upgrade(False), many(encode(PING, b"x" * 100)), upgrades=True),
        Attack("connections", b"", b"", resets=True),
        Attack("noise", b"", bytes(range(256)) * 512),
        Attack("tls_hello", b"", b"\x16\x03\x01" + b"x" * 500, resets=True),
        Attack("many_parameters", b"", many(request("GET", "/api/hello?" + "a=%41&" * (EIGHT_KB // 6)))),
        Attack("many_ranges", b"", many(request("GET", PAGE, headers="Range: bytes=" + "0-," * 2500 + "0-\r\n"))),
        Attack("dates", b"", many(request("GET", PAGE, headers="If-Modified-Since: " + "1 " * 3900 + "\r\n"))),
        Attack("languages", b"", many(request("GET", "/", headers="Accept-Language: " + "a;q=0," * 1300 + "\r\n"))),
        Attack("forwarded", b"", many(request("GET", "/healthz", headers="X-Forwarded-For: " + "1," * 3900 + "1\r\n"))),
        Attack("percent_path", b"", many(request("GET", "/" + "%41" * 2600))),
        Attack("json_exponents", b"", request("POST", "/api/workers/register", b"[" + b'"a1e999",' * 28_000 + b"1]")),
        Attack("json_infinities", b"", request("POST", "/api/workers/register", b"[1e999" + b",1" * 125_000 + b"]")),
        Attack("json_deep", b"", request("POST", "/api/workers/register", b"[" * 250_000)),
        Attack("json_objects", b"", request("POST", "/api/workers/register", b"[" + b"{}," * 85_000 + b"1]")),
        Attack("json_digits", b"", request("POST", "/api/workers/register", b"1" * 250_000)),
        Attack("json_fraction", b"", request("POST", "/api/workers/register", b"1." + b"1" * 250_000)),
        Attack(
            "json_same_keys",
            b"",
            request("POST", "/api/workers/register", b"{" + b'"worker_id":1,' * 17_000 + b'"a":1}'),
        ),
        Attack("registrations", b"", many(registration("true"))),
        Attack("log_ins", b"", many(request("POST", "/api/login", b'{"token": "pg-wrong"}'))),
        # ------------------------------------------------------------------------------------------- of a viewer
        Attack("viewer_tiny_frames", upgrade(True), many(encode(PONG, b"")), "viewer", upgrades=True),
        Attack(
            "viewer_fragments",
            upgrade(True) ,
            encode(TEXT, b"{", fin=False) + many(encode(CONTINUATION, b" ", fin=False)),
            "viewer",
            upgrades=True,
        ),
        Attack("viewer_messages", upgrade(True), many(encode(BINARY, b"x")), "viewer", upgrades=True),
        Attack("viewer_json", upgrade(True), encode(TEXT, b"[" + b"{}," * 340_000 + b"1]"), "viewer", upgrades=True),
        Attack("viewer_closes", upgrade(True), many(encode(CLOSE, b"")), "viewer", upgrades=True),
        Attack(
            "viewer_subscriptions",
            upgrade(True),
            many(
                b"".join(
                    text({"t": kind, "topic": topic, "seq": 0})
                    for topic in ("workers", "hosts", "events", "rows:workers")
                    for kind in ("sub", "unsub")
                )
            ),
            "viewer",
            upgrades=True,
        ),
        Attack("viewer_lists", b"", many(request("GET", "/api/remote-workers", token=True)), "viewer"),
        Attack("viewer_metrics", b"", many(request("GET", "/metrics", token=True)), "viewer"),
        Attack(
            "viewer_selectors",
            b"",
            request("GET", "/api/remote-workers?select=" + "*a*b*c*|" * 950 + "x", token=True),
            "viewer",
        ),
        Attack(
            "viewer_expressions",
            b"",
            request("GET", "/api/remote-workers/zoo/logs?regex=a.*a.*a.*b", token=True),
            "viewer",
        ),
        Attack("viewer_follows", b"", request("GET", "/api/remote-workers/zoo/logs?follow=1", token=True), "viewer",
               resets=True),
        Attack("viewer_sessions", b"", many(request("POST", "/api/login", b'{"token": "{token}"}')), "viewer"),
        # ------------------------------------------------------------------------------------------ of an agent
        Attack(
            "agent_empty_reports",
            b"",
            request("POST", "/api/agents/zoo/heartbeat", b'{"x":[' + b"{}," * 2_700_000 + b"1]}", token=True),
            "agent",
        ),
        Attack(
            "agent_numbers",
            b"",
            request("POST", "/api/agents/zoo/heartbeat", b'{"x":[' + b"1," * 4_000_000 + b"1]}", token=True),
            "agent",
        ),
        Attack("agent_heartbeats", b"", many(request("POST", "/api/agents/zoo/heartbeat", b"{}", token=True)), "agent"),
    )
}  # fmt: skip


LATE_S = 10.0


class Attacker:
    """One connection at a time, which does what `attack` says until `seconds` are over; on a busy machine until it has
    sent anything at all, LATE_S longer at most."""

    def __init__(self, port: int, seconds: float, attack: Attack, token: str = "") -> None:
        self.port = port
        self.until = time.monotonic() + seconds
        self.attack = attack
        self.opening = self._with_token(attack.opening, token)
        self.block = self._with_token(attack.block, token)
        self.counts: Counter[str] = Counter()

    @staticmethod
    def _with_token(data: bytes, token: str) -> bytes:
        """Lengths stay true: a body that holds the token is made with it."""
        if b"{token}" not in data:
            return data
        if b'{"token": "{token}"}' in data:
            body = json.dumps({"token": token}).encode()
            return many(request("POST", "/api/login", body))
        return data.replace(b"{token}", token.encode())

    @property
    def going_on(self) -> bool:
        late_s = 0.0 if self.counts.get("sent") or not self.block else LATE_S
        return time.monotonic() < self.until + late_s

    def run(self) -> Counter[str]:
        held: list[socket.socket] = []
        while self.going_on:
            self.counts["connections"] += 1
            with contextlib.suppress(OSError):
                sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                held.append(sock)
                self._serve_connection(sock)
            while len(held) > (32 if self.attack.name == "viewer_follows" else 0):
                held.pop(0).close()
        for sock in held:
            sock.close()
        return self.counts

    def _serve_connection(self, sock: socket.socket) -> None:
        sock.sendall(self.opening)
        if self.attack.upgrades:
            sock.recv(65536)
        sock.setblocking(False)
        block, sent = memoryview(self.block), 0
        while self.going_on and block:
            writable = sent < len(block)
            ready = select.select([sock] if self.attack.reads else [], [sock] if writable else [], [], 0.05)
            if ready[0] and not self._read(sock):
                return
            if ready[1]:
                sent += (taken := sock.send(block[sent:]))
                self.counts["sent"] += taken
            if sent == len(block):
                self.counts["blocks"] += 1
                if self.attack.resets:
                    sock.settimeout(0.05)
                    with contextlib.suppress(TimeoutError):
                        self._read(sock)
                    return
                sent = 0
                if self.attack.pause_s:
                    time.sleep(self.attack.pause_s)

    def _read(self, sock: socket.socket) -> bool:
        data = sock.recv(1 << 20)
        self.counts["read"] += len(data)
        if data.startswith(b"HTTP/1.1 "):
            self.counts["told_" + data[9:12].decode("latin-1")] += 1
        return bool(data)


def together(port: int, seconds: float) -> Counter[str]:
    """Every stranger of the zoo at once."""
    attackers = [Attacker(port, seconds, one) for one in ATTACKS.values() if one.who == "stranger"]
    threads = [threading.Thread(target=one.run) for one in attackers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum((one.counts for one in attackers), Counter[str]())


def main(arguments: list[str]) -> None:
    port, seconds, names, tokens = arguments
    for name in names.split(","):
        if name == ALL:
            counts = together(int(port), float(seconds))
        else:
            counts = Attacker(int(port), float(seconds), ATTACKS[name], json.loads(tokens)[ATTACKS[name].who]).run()
        print(json.dumps({"name": name, "counts": counts}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
