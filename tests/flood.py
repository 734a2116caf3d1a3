"""Clients that try to exhaust a manager, as a separate process.

`python -m tests.flood PORT SECONDS WHAT=N…`:

    slow=1000       connections that send a byte of a header now and then, and come back when they are closed
    endless=4       chunked bodies without end
    ids=100000      requests about workers and agents that nobody has, from strangers and from an operator
    websockets=1000 portals that subscribe to everything and never read

Prints one JSON object of what came back. Loopback only; what it sends in all is bounded by its time.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import socket
import sys
import time
from collections import Counter

from tests.raw_websocket import TEXT, encode

AT_ONCE = 16  # connections that ask about unknown ids
CHUNK = b"10000\r\n" + b"x" * 65536 + b"\r\n"
HEAD = "POST /api/workers/register HTTP/1.1\r\nHost: elsewhere\r\nTransfer-Encoding: chunked\r\n\r\n"


class Flood:
    def __init__(self, port: int, seconds: float) -> None:
        self.port = port
        self.until = time.monotonic() + seconds
        self.counts: Counter[str] = Counter()

    async def run(self, wanted: dict[str, int]) -> None:
        tasks = [self.slow(number) for number in range(wanted.get("slow", 0))]
        tasks += [self.endless() for _ in range(wanted.get("endless", 0))]
        tasks += [self.websocket() for _ in range(wanted.get("websockets", 0))]
        share = wanted.get("ids", 0) // AT_ONCE
        tasks += [self.ids(number, share) for number in range(AT_ONCE if share else 0)]
        await asyncio.gather(*tasks)

    @property
    def going_on(self) -> bool:
        return time.monotonic() < self.until

    async def connect(self, receive_buffer: int = 0) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        sock = socket.socket()
        if receive_buffer:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", self.port))
        return await asyncio.open_connection(sock=sock)

    async def slow(self, number: int) -> None:
        await asyncio.sleep(number / 1000)
        while self.going_on:
            with contextlib.suppress(OSError):
                reader, writer = await self.connect()
                self.counts["slow_connections"] += 1
                writer.write(b"GET /api/hosts HTTP/1.1\r\nHost: elsewhere\r\nX-Slow: ")
                while self.going_on and not reader.at_eof():
                    writer.write(b"x")
                    await writer.drain()
                    with contextlib.suppress(asyncio.TimeoutError):
                        if data := await asyncio.wait_for(reader.read(4096), 0.5):
                            self.counts["slow_told_" + data[9:12].decode("latin-1")] += 1
                writer.close()
            await asyncio.sleep(0.05)

    async def endless(self) -> None:
        while self.going_on:
            with contextlib.suppress(OSError):
                reader, writer = await self.connect()
                writer.write(HEAD.encode())
                while self.going_on and not reader.at_eof():
                    writer.write(CHUNK)
                    await writer.drain()
                    self.counts["endless_bytes"] += len(CHUNK)
                writer.close()
            self.counts["endless_bodies"] += 1
            await asyncio.sleep(0.01)

    async def ids(self, number: int, count: int) -> None:
        asked = 0
        while self.going_on and asked < count:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                reader, writer = await self.connect()
                while self.going_on and asked < count:
                    writer.write(self._request(number, asked))
                    await writer.drain()
                    head = await reader.readuntil(b"\r\n\r\n")
                    lines = head.decode("latin-1").lower().split("\r\n")
                    length = next((int(line[15:]) for line in lines if line.startswith("content-length:")), 0)
                    await reader.readexactly(length)
                    asked += 1
                    self.counts["ids_" + lines[0][9:12]] += 1
                writer.close()

    @staticmethod
    def _request(number: int, asked: int) -> bytes:
        name = f"nobody-{number}-{asked}"
        secret = f"Authorization: Bearer pg-{name}\r\n"
        digest = f"{number:032x}{asked:032x}"
        body = json.dumps({"worker_id": name, "command": "true", "host": name, "secret_sha256": digest})
        method, path, host, extra, body = (
            ("POST", f"/api/agents/{name}/heartbeat", "elsewhere", secret, "{}"),
            ("POST", "/api/workers/register", "elsewhere", "", body),
            ("GET", f"/api/remote-workers/{name}", "localhost", "", ""),
            ("POST", f"/api/workers/{name}/command", "localhost", "", '{"command": "stop"}'),
            ("POST", f"/api/workers/{name}/logs?attempt=1&offset=0", "elsewhere", secret, "x" * 1000),
            ("GET", f"/api/hello?agent={name}&nonce=00", "elsewhere", "", ""),
        )[asked % 6]
        head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{extra}Content-Length: {len(body)}\r\n\r\n"
        return (head + body).encode()

    async def websocket(self) -> None:
        """A portal that subscribes to everything and reads nothing, until the manager closes it."""
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            reader, writer = await self.connect(receive_buffer=4096)
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(
                "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            self.counts["websockets_" + head[9:12].decode("latin-1")] += 1
            writer.transport.pause_reading()  # type: ignore[attr-defined]
            for topic in ("workers", "hosts", "events", "operations"):
                writer.write(encode(TEXT, json.dumps({"t": "sub", "topic": topic, "seq": 0}).encode()))
            while self.going_on and not writer.is_closing():
                await asyncio.sleep(0.2)
            writer.transport.abort()


def main(arguments: list[str]) -> None:
    port, seconds, *pairs = arguments
    flood = Flood(int(port), float(seconds))
    asyncio.run(flood.run({name: int(number) for name, number in (pair.split("=") for pair in pairs)}))
    print(json.dumps(flood.counts), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
