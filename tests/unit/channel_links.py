"""A test's end of each channel, with one interface: `ask` sends an agent's request, `close` acts like a killed agent.

Written from docs/protocol.md, not with the agent's code: what is tested is the manager's side.
"""

from __future__ import annotations

import base64
import http.client
import json
import os
import socket
from pathlib import Path
from typing import Any, Protocol

import zmq
from zmq.utils import z85

from remote_agent.protocol import messages
from tests.ports import free_ports
from tests.server_process import RunningServer

CHANNELS = ("http", "zmq", "mock")


class Link(Protocol):
    """One connection of an agent."""

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]: ...

    def begin(self, method: str, path: str) -> None:
        """Ask, and wait for no answer."""
        ...

    def close(self) -> None: ...


class World:
    """A manager with one channel beside HTTP, in a process of its own, and the way to speak by it."""

    def __init__(self, name: str, directory: Path, *options: str) -> None:
        self.name = name
        self.directory = directory
        self.port = free_ports(2)
        self.options = options
        self.proof_keys: dict[str, str] = {}
        self.context = zmq.Context()
        self.server = self._start()

    def _start(self) -> RunningServer:
        kind = "zmq" if self.name == "zmq" else "mock"
        ports = {"zmq": f"communication.adapter_config.port_base={self.port}", "mock": f"test.bridge_port={self.port}"}
        more = [ports[self.name]] if self.name in ports else []
        return RunningServer(self.directory, f"communication.adapter_type={kind}", *more, *self.options)

    def restart(self) -> None:
        """The manager is killed, and another one starts on its state."""
        self.server.process.kill()
        self.server.process.wait()
        if self.server.process.stdout is not None:
            self.server.process.stdout.close()
        self.server = self._start()

    def close(self) -> None:
        self.server.close()
        self.context.destroy(0)

    def deploy(self, host: str, *worker_ids: str) -> str:
        """Declare a host with workers; returns its agent's secret."""
        workers = [{"worker_id": worker_id, "spec": {"command": "sleep 9"}} for worker_id in worker_ids]
        declared = {"hosts": [{"host": host, "ssh": {"hostname": host}, "workers": workers}]}
        answer = self.server.ask("POST", "/api/deployments", declared)
        assert answer.status == 200, answer.body
        self.proof_keys[host] = answer.json["hosts"][host]["proof_key"]
        secret = f"secret-of-{host}"
        digest = {"secret_sha256": messages.secret_sha256(secret)}
        assert self.server.ask("PUT", f"/api/agents/{host}/credentials", digest).status == 200
        return secret

    def link(self, agent_id: str, secret: str, *, logs: bool = False) -> Link:
        if self.name == "http":
            return HttpLink(self.server.port, secret)
        if self.name == "mock":
            return MockLink(self.port, secret)
        return ZmqLink(self, agent_id, secret, logs)


class HttpLink:
    def __init__(self, port: int, secret: str) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        self._headers = {"Authorization": f"Bearer {secret}"} if secret else {"X-Forwarded-For": "192.0.2.1"}

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        self._connection.timeout = timeout_s
        if self._connection.sock is not None:
            self._connection.sock.settimeout(timeout_s)
        self._connection.request(method, path, encoded(body), self._headers)
        response = self._connection.getresponse()
        return response.status, json.loads(response.read())

    def begin(self, method: str, path: str) -> None:
        self._connection.request(method, path, None, self._headers)

    def close(self) -> None:
        self._connection.close()


class MockLink:
    def __init__(self, port: int, secret: str) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 10)
        self._lines = self._sock.makefile("rb")
        self._secret = secret

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        self._sock.settimeout(timeout_s)
        self.begin(method, path, body)
        status, data = json.loads(self._lines.readline())
        return status, data

    def begin(self, method: str, path: str, body: Any = None) -> None:
        asked = {"secret": self._secret, "method": method, "path": path}
        asked["body"] = base64.b64encode(encoded(body) or b"").decode()
        self._sock.sendall(json.dumps(asked).encode() + b"\n")

    def close(self) -> None:
        self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()


class ZmqLink:
    """As docs/protocol.md has it: hello over HTTP with our CURVE key, then DEALER frames."""

    def __init__(self, world: World, agent_id: str, secret: str, logs: bool = False) -> None:
        public, own_secret = zmq.curve_keypair()
        offer = offered(world, agent_id, z85.decode(public).hex())
        self.socket = world.context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.curve_publickey, self.socket.curve_secretkey = public, own_secret
        self.socket.curve_serverkey = z85.encode(bytes.fromhex(offer["curve_key"]))
        self.socket.connect(f"tcp://127.0.0.1:{offer['logs_port' if logs else 'port']}")
        self._secret = secret
        self._number = 0

    def ask(self, method: str, path: str, body: Any = None, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        header = self._header(method, path)
        data = encoded(body)
        large = data is not None and len(data) > messages.ZMQ_INLINE_BYTES
        if large:
            header["body_bytes"] = len(data or b"")
        self.send(header, *([] if data is None or large else [data]))
        status, answer = self.answer(timeout_s)
        if status == 100:
            self.send({"id": self._number}, data or b"")
            status, answer = self.answer(timeout_s)
        return status, answer

    def begin(self, method: str, path: str) -> None:
        self.send(self._header(method, path))

    def _header(self, method: str, path: str) -> dict[str, Any]:
        self._number += 1
        header: dict[str, Any] = {"id": self._number, "method": method, "path": path}
        if self._secret and self._number == 1:
            header["secret"] = self._secret
        return header

    def send(self, header: Any, *bodies: bytes) -> None:
        head = header if isinstance(header, bytes) else json.dumps(header).encode()
        self.socket.send(b"\n".join([head, *bodies]))

    def answer(self, timeout_s: float = 10.0) -> tuple[int, dict[str, Any]]:
        assert self.socket.poll(int(timeout_s * 1000)), f"no answer within {timeout_s} s"
        head, _, body = self.socket.recv().partition(b"\n")
        return json.loads(head)["status"], json.loads(body) if body else {}

    def close(self) -> None:
        self.socket.close(0)


def offered(world: World, agent_id: str, curve_key: str = "", proof_key: str = "") -> dict[str, Any]:
    """`zmq` of the hello's answer, with our key admitted; its proof is checked."""
    nonce, key = os.urandom(8).hex(), proof_key or world.proof_keys[agent_id]
    path = f"/api/hello?agent={agent_id}&nonce={nonce}"
    if curve_key:
        path += f"&curve={curve_key}&mac={messages.curve_key_proof(key, agent_id, nonce, curve_key)}"
    answer = world.server.ask("GET", path)
    assert answer.status == 200, answer.body
    offer: dict[str, Any] = answer.json["zmq"]
    parsed = messages.decode(messages.ZmqOffer, offer)
    assert parsed.proof == messages.zmq_offer_proof(key, agent_id, nonce, parsed)
    return offer


def encoded(body: Any) -> bytes | None:
    return body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
