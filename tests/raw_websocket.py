"""A small WebSocket client that can misbehave: it writes whatever bytes a test wants and reads frames one by one."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import ssl
import struct
from typing import Any, NamedTuple

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
_GUID = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Frame(NamedTuple):
    opcode: int
    payload: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.payload)

    @property
    def close_code(self) -> int:
        assert self.opcode == CLOSE, self
        return int(struct.unpack("!H", self.payload[:2])[0])


def encode(opcode: int, payload: bytes, *, fin: bool = True, masked: bool = True, flags: int = 0) -> bytes:
    size = len(payload)
    head = bytes([(0x80 if fin else 0) | flags | opcode])
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 65536:
        head += bytes([mask_bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    key = (mask * (size // 4 + 1))[:size]
    return head + mask + (int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")).to_bytes(size, "big")


class RawWebSocket:
    def __init__(
        self,
        port: int,
        headers: dict[str, str] | None = None,
        *,
        timeout_s: float = 10.0,
        receive_buffer: int = 0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.key = base64.b64encode(os.urandom(16)).decode()
        sent = {
            "Host": f"localhost:{port}",
            "Upgrade": "websocket",
            "Connection": "keep-alive, Upgrade",
            "Sec-WebSocket-Version": "13",
            "Sec-WebSocket-Key": self.key,
            **(headers or {}),
        }
        self.socket: socket.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(timeout_s)
        self.socket.connect(("127.0.0.1", port))
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname="localhost")
        lines = "".join(f"{name}: {value}\r\n" for name, value in sent.items() if value)
        self.socket.sendall(f"GET /ws HTTP/1.1\r\n{lines}\r\n".encode())
        self._file = self.socket.makefile("rb")
        self.status = int(self._file.readline().split()[1])
        self.headers: dict[str, str] = {}
        while (line := self._file.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            self.headers[name.lower()] = value.strip()

    @property
    def accepted(self) -> bool:
        digest = hashlib.sha1((self.key + _GUID).encode()).digest()
        return self.status == 101 and self.headers.get("sec-websocket-accept") == base64.b64encode(digest).decode()

    def body(self) -> bytes:
        """What came instead of a connection."""
        return self._file.read(int(self.headers.get("content-length", "0")))

    def send(self, opcode: int, payload: bytes = b"", **options: Any) -> None:
        self.socket.sendall(encode(opcode, payload, **options))

    def say(self, message: Any) -> None:
        self.send(TEXT, json.dumps(message).encode())

    def frame(self) -> Frame | None:
        """The next frame; None at the end of the connection."""
        head = self._file.read(2)
        if len(head) < 2:
            return None
        assert head[0] & 0x80, "servers here never fragment"
        assert not head[1] & 0x80, "servers never mask"
        size = head[1] & 0x7F
        if size == 126:
            size = struct.unpack("!H", self._file.read(2))[0]
        elif size == 127:
            size = struct.unpack("!Q", self._file.read(8))[0]
        payload = self._file.read(size)
        return Frame(head[0] & 0x0F, payload) if len(payload) == size else None

    def message(self) -> Any:
        """The next text message as JSON; pings are answered on the way."""
        while (frame := self.frame()) is not None:
            if frame.opcode == PING:
                self.send(PONG, frame.payload)
            elif frame.opcode == TEXT:
                return frame.json
            else:
                raise AssertionError(f"unexpected frame {frame}")
        raise AssertionError("the connection ended")

    def until(self, kind: str) -> Any:
        """The next message with this `t`."""
        while (message := self.message())["t"] != kind:
            pass
        return message

    def close_code(self) -> int:
        """Skip what is in flight; the server's close code, or 1006 if it just ended."""
        while (frame := self.frame()) is not None:
            if frame.opcode == CLOSE:
                return frame.close_code
        return 1006

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def __enter__(self) -> RawWebSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
