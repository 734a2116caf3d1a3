"""HTTP load from one core: by wrk (installed from Debian if this user is root), or else by a generator of this module.

Both send prepared requests in turn over CONNECTIONS keep-alive connections. Each connection sends its next request as
soon as it has received the response to the previous one.
"""

from __future__ import annotations

import json
import os
import re
import select
import socket
import struct
import subprocess
import sys
import time
from dataclasses import dataclass

from scripts.bench import common
from scripts.bench.server import on_core

CONNECTIONS = 64

# The file contains the requests in order, each preceded by its length in 4 bytes.
_LUA = """
local file = io.open("%s", "rb")
local text = file:read("*a")
file:close()
local requests, at = {}, 1
while at < #text do
  local a, b, c, d = text:byte(at, at + 3)
  local size = ((a * 256 + b) * 256 + c) * 256 + d
  requests[#requests + 1] = text:sub(at + 4, at + 3 + size)
  at = at + 4 + size
end
local turn = 0
request = function()
  turn = turn %% #requests + 1
  return requests[turn]
end
"""


@dataclass
class Answered:
    """The responses of a server during one measurement. `refused`: responses other than 2xx, and broken connections."""

    requests: int
    took_s: float
    p50_ms: float
    p99_ms: float
    refused: int


class Load:
    """The load generator. `program`: the path of wrk; "" for the generator of this module."""

    def __init__(self, folder: str, core: int | None) -> None:
        self._folder, self._core = folder, core
        self.program, self.note = common.program("wrk", "wrk")

    def run(self, name: str, port: int, requests: list[bytes], seconds: float) -> Answered:
        path = os.path.join(self._folder, f"{name}.requests")
        with open(path, "wb") as file:
            for one in requests:
                file.write(struct.pack("!I", len(one)) + one)
        return self._wrk(path, port, seconds) if self.program else self._own(path, port, seconds)

    def _wrk(self, path: str, port: int, seconds: float) -> Answered:
        script = path + ".lua"
        with open(script, "w", encoding="ascii") as file:
            file.write(_LUA % path)
        words = [*on_core(self._core), self.program, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency"]
        done = subprocess.run(
            [*words, "-s", script, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=False
        )
        whole = re.search(r"(\d+) requests in ([0-9.]+)(ms|s|m),", done.stdout)
        if done.returncode != 0 or whole is None:
            sys.exit(f"bench: wrk failed: {done.stdout[-500:]}{done.stderr[-500:]}")
        refused = re.search(r"Non-2xx or 3xx responses: (\d+)", done.stdout)
        broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", done.stdout)
        return Answered(
            requests=int(whole[1]),
            took_s=_seconds(whole[2], whole[3]),
            p50_ms=1000 * _seconds(*re.search(r"50% +([0-9.]+)(\w+)", done.stdout).groups()),  # type: ignore[union-attr,arg-type]
            p99_ms=1000 * _seconds(*re.search(r"99% +([0-9.]+)(\w+)", done.stdout).groups()),  # type: ignore[union-attr,arg-type]
            refused=int(refused[1] if refused else 0) + (sum(map(int, broken.groups())) if broken else 0),
        )

    def _own(self, path: str, port: int, seconds: float) -> Answered:
        words = [*on_core(self._core), sys.executable, "-m", "scripts.bench.load", path, str(port), str(seconds)]
        done = subprocess.run(words, cwd=common.ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: the load failed: {done.stderr[-500:]}")
        return Answered(**json.loads(done.stdout))


def _seconds(number: str, unit: str) -> float:
    return float(number) * {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}[unit]


class KeptConnection:
    """One keep-alive connection."""

    def __init__(self, port: int) -> None:
        self.sock = socket.create_connection(("127.0.0.1", port))
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sent = 0.0
        self.read = b""

    def ask(self, request: bytes) -> None:
        self.sent = time.perf_counter()
        self.sock.sendall(request)

    def answer(self) -> int | None:
        """The status of the response once it is complete, None before, and 0 if the connection has ended."""
        data = self.sock.recv(65536)
        if not data:
            return 0
        self.read += data
        head = self.read.find(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: *(\d+)", self.read[: max(0, head)])
        if head < 0 or length is None or len(self.read) < head + 4 + int(length[1]):
            return None
        status = int(self.read[9:12])
        self.read = b""
        return status


def _drive(requests: list[bytes], port: int, seconds: float) -> Answered:
    poll = select.epoll()
    clients = {}
    turn = 0
    for _ in range(CONNECTIONS):
        client = KeptConnection(port)
        clients[client.sock.fileno()] = client
        poll.register(client.sock, select.EPOLLIN)
    began = time.perf_counter()
    for client in clients.values():
        client.ask(requests[turn % len(requests)])
        turn += 1
    delays: list[float] = []
    refused = 0
    while clients and time.perf_counter() - began < seconds:
        for fd, _ in poll.poll(0.1):
            client, status = clients[fd], clients[fd].answer()
            if status is None:
                continue
            delays.append(time.perf_counter() - client.sent)
            refused += not 200 <= status < 300
            if status == 0:
                poll.unregister(fd)
                del clients[fd]
                continue
            client.ask(requests[turn % len(requests)])
            turn += 1
    took_s = time.perf_counter() - began
    delays.sort()
    p50, p99 = (1000 * delays[int(share * len(delays))] if delays else 0.0 for share in (0.5, 0.99))
    return Answered(len(delays), took_s, p50, p99, refused)


def main() -> None:
    path, port, seconds = sys.argv[1:]
    requests = []
    with open(path, "rb") as file:
        while head := file.read(4):
            requests.append(file.read(struct.unpack("!I", head)[0]))
    print(json.dumps(vars(_drive(requests, int(port), float(seconds)))))


if __name__ == "__main__":
    main()
