"""Load over the zmq channel from one core, like load.py, with one connection per sender.

Each sender sends hello over HTTP as an agent does, then its prepared requests in turn, each as soon as it has received
the response to the previous one. All connections, each with its own CURVE key, belong to one ROUTER socket, because
polling 64 sockets costs more than the work to be measured.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import zmq
import zmq.backend
from zmq.utils import z85

from remote_agent.protocol import messages as protocol
from scripts.bench import common
from scripts.bench.load import Answered
from scripts.bench.server import on_core

OK = b'{"id":1,"status":200}'
_recv, _send = zmq.backend.Socket.recv, zmq.backend.Socket.send  # bypasses pyzmq's wrapper


@dataclass
class Sender:
    """An agent with its requests: (path, body)."""

    agent_id: str
    secret: str
    proof_key: str
    requests: list[tuple[str, str]]


class ZmqLoad:
    def __init__(self, folder: str, core: int | None) -> None:
        self._folder, self._core = folder, core

    def run(self, name: str, port: int, senders: list[Sender], seconds: float) -> Answered:
        path = os.path.join(self._folder, f"{name}.senders")
        with open(path, "w", encoding="utf-8") as file:
            json.dump([asdict(one) for one in senders], file)
        words = [*on_core(self._core), sys.executable, "-m", "scripts.bench.zmq_load", path, str(port), str(seconds)]
        done = subprocess.run(words, cwd=common.ROOT, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: the zmq load failed: {done.stderr[-500:]}")
        return Answered(**json.loads(done.stdout))


def zmq_ports() -> int:
    """The first of two consecutive free ports below the range of ephemeral ports."""
    while True:
        first = random.randrange(20_000, 32_000)
        try:
            for port in (first, first + 1):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first


class Client:
    """One connection of one sender, which has received its first response."""

    def __init__(self, context: Any, port: int, sender: dict[str, Any]) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(_admitted(self.socket, port, sender))
        self.socket.send(_first(sender))
        if not self.socket.recv().startswith(OK):
            sys.exit("refused")

    def hold(self, path: str) -> None:
        self.socket.send(json.dumps({"id": 2, "method": "GET", "path": path}).encode())

    def held(self, timeout_s: float) -> dict[str, Any]:
        """The response to a held request."""
        if not self.socket.poll(int(timeout_s * 1000)):
            sys.exit("bench: no answer to a held request")
        answer: dict[str, Any] = json.loads(self.socket.recv().partition(b"\n")[2])
        return answer


def _admitted(socket: Any, port: int, sender: dict[str, Any]) -> str:
    """The address of the sender's next connection; its keys are set on the socket."""
    public, secret = zmq.curve_keypair()
    offer = _hello(port, sender["agent_id"], sender["proof_key"], z85.decode(public).hex())
    socket.curve_publickey, socket.curve_secretkey = public, secret
    socket.curve_serverkey = z85.encode(bytes.fromhex(offer["curve_key"]))
    return f"tcp://127.0.0.1:{offer['port']}"


def _message(path: str, body: str, **more: str) -> bytes:
    return (json.dumps({"id": 1, "method": "POST", "path": path, **more}, separators=(",", ":")) + "\n" + body).encode()


def _first(sender: dict[str, Any]) -> bytes:
    """The first request of a connection."""
    return _message(*sender["requests"][0], secret=sender["secret"])


def _hello(port: int, agent_id: str, proof_key: str, curve_key: str) -> dict[str, Any]:
    nonce = os.urandom(8).hex()
    mac = protocol.curve_key_proof(proof_key, agent_id, nonce, curve_key)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", f"/api/hello?agent={agent_id}&nonce={nonce}&curve={curve_key}&mac={mac}")
    offer: dict[str, Any] = json.loads(connection.getresponse().read())["zmq"]
    connection.close()
    return offer


def _drive(senders: list[dict[str, Any]], port: int, seconds: float) -> Answered:
    context = zmq.Context()
    socket = context.socket(zmq.ROUTER)
    socket.linger, socket.router_mandatory = 0, 1
    requests = {}
    for number, sender in enumerate(senders):
        socket.connect_routing_id = name = b"%04d" % number
        socket.connect(_admitted(socket, port, sender))
        requests[name] = itertools.cycle([_message(path, body) for path, body in sender["requests"]])
        socket.send_multipart([name, _first(sender)])
    for _ in senders:
        if not socket.recv_multipart()[1].startswith(OK):
            sys.exit("refused")
    sent: dict[bytes, float] = {}
    delays: list[float] = []
    refused, now = 0, time.perf_counter
    began = now()
    for name, messages in requests.items():
        sent[name] = now()
        socket.send_multipart([name, next(messages)])
    while now() - began < seconds:
        name = _recv(socket, 0)
        refused += not _recv(socket, 0).startswith(OK)
        answered = now()
        delays.append(answered - sent[name])
        sent[name] = answered
        _send(socket, name, zmq.SNDMORE)
        _send(socket, next(requests[name]), 0)
    took_s = now() - began
    delays.sort()
    p50, p99 = (1000 * delays[int(share * len(delays))] if delays else 0.0 for share in (0.5, 0.99))
    context.destroy(0)
    return Answered(len(delays), took_s, p50, p99, refused)


def main() -> None:
    path, port, seconds = sys.argv[1:]
    with open(path, encoding="utf-8") as file:
        senders = json.load(file)
    print(json.dumps(vars(_drive(senders, int(port), float(seconds)))))


if __name__ == "__main__":
    main()
