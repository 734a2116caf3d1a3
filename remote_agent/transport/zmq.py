"""ZeroMQ connection to the manager, if this Python has pyzmq: one DEALER socket with CURVE, one request at a time.

The only module that imports pyzmq, and only after the manager has offered its zmq channel (`Zmq`). Owns frames
and the detection of lost connections; knows neither proofs nor retries. Requests and responses are those of
HTTP: each is one frame, a line of JSON ({"id", "method", "path"}; {"id", "status"}) followed by the body.
"""

from __future__ import annotations

import binascii
import json
import os
import struct
import sys
import threading
import time

from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.messages import ZMQ_INLINE_BYTES, ZmqOffer

PING_EVERY_MS, PONG_WITHIN_MS = 10_000, 5_000  # a busy manager still answers pings, because libzmq sends its pongs
DEAD_AFTER_MS = 30_000  # without an acknowledgement for this time the connection is dead
MAX_WAITING = 16  # messages, in each direction
_EVENT = struct.Struct("=H")


class ZmqTrouble(Exception):
    """The connection could not be established or has ended; the text has the reason."""


class ZmqTimeout(ZmqTrouble, TimeoutError):
    """The connection is established, but no response arrived in time."""


class Zmq:
    """pyzmq and this process's CURVE key. Raises ImportError if pyzmq is not available."""

    def __init__(self) -> None:
        self.module = _import()
        if not self.module.has("curve"):
            raise ImportError("its libzmq has no CURVE")
        self.renew()
        self.context = self.module.Context()

    def renew(self) -> None:
        """Create a new key for connections opened from now on."""
        self.public_z85, self.secret_key = self.module.curve_keypair()
        self.public_key = binascii.hexlify(_from_z85(self.public_z85)).decode()


def _import() -> Any:
    """Import pyzmq. The agent runs without site-packages (-S), which are added for this import only."""
    try:
        import zmq

        return zmq
    except ImportError:
        pass
    known = list(sys.path)
    sys.path += [path for path in _package_paths() if os.path.isdir(os.path.join(path, "zmq"))]
    try:
        import zmq

        return zmq
    finally:
        sys.path[:] = known


def _package_paths() -> "list[str]":
    """A virtual environment's own packages first (Debian's `site` knows them only while it runs in one)."""
    import site

    folder = os.path.dirname(os.path.dirname(os.path.abspath(sys.executable)))
    own = [os.path.join(folder, lib, "python%d.%d" % sys.version_info[:2], "site-packages") for lib in ("lib", "lib64")]
    in_venv = os.path.exists(os.path.join(folder, "pyvenv.cfg"))
    return [*(own if in_venv else []), *site.getsitepackages(), site.getusersitepackages()]


def _from_z85(text: bytes) -> bytes:
    """Decode Z85, in which five characters are four bytes (ZeroMQ's RFC 32)."""
    alphabet = b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
    found = b""
    for start in range(0, len(text), 5):
        number = 0
        for letter in text[start : start + 5]:
            number = number * 85 + alphabet.index(letter)
        found += number.to_bytes(4, "big")
    return found


class ZmqWire:
    """One connection. All but `interrupt` belong to one thread."""

    def __init__(self, own: Zmq, host: str, port: int, offer: ZmqOffer) -> None:
        self._zmq = own.module
        self._where = f"tcp://{f'[{host}]' if ':' in host else host}:{port}"
        self._timeout_s = offer.timeout_ms / 1000.0
        self._number = 0
        self._sent_secret = False
        self._interrupted = False
        self._lock = threading.Lock()
        self._wake_r, self._wake_w = os.pipe()
        socket = self._socket = own.context.socket(self._zmq.DEALER)
        for name, value in (
            ("LINGER", 0),
            ("RECONNECT_IVL", -1),  # closed connections are reopened by this module, because another manager may answer
            ("CONNECT_TIMEOUT", offer.timeout_ms),
            ("HANDSHAKE_IVL", offer.timeout_ms),
            ("HEARTBEAT_IVL", PING_EVERY_MS),
            ("HEARTBEAT_TIMEOUT", max(PONG_WITHIN_MS, offer.timeout_ms)),
            ("TCP_MAXRT", DEAD_AFTER_MS),
            ("IMMEDIATE", 1),
            ("RCVHWM", MAX_WAITING),
            ("SNDHWM", MAX_WAITING),
            ("CURVE_PUBLICKEY", own.public_z85),
            ("CURVE_SECRETKEY", own.secret_key),
            ("CURVE_SERVERKEY", binascii.unhexlify(offer.curve_key)),
            ("IPV6", 1 if ":" in host else 0),
        ):
            socket.setsockopt(getattr(self._zmq, name), value)
        self._monitor = socket.get_monitor_socket()
        self._poller = self._zmq.Poller()
        for one in (socket, self._monitor, self._wake_r):
            self._poller.register(one, self._zmq.POLLIN)

    def connect(self) -> None:
        """Connect with CURVE. Raises ZmqTrouble if that does not succeed within the offer's timeout."""
        zmq = self._zmq
        try:
            self._socket.connect(self._where)
        except zmq.ZMQError as exc:
            raise ZmqTrouble(f"{self._where}: {exc}") from exc
        deadline = time.monotonic() + self._timeout_s
        while True:
            self._wait(deadline, f"no zmq connection within {self._timeout_s:g} s")
            event = self._event()
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                return
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                raise ZmqTrouble(
                    f"{self._where}: the manager does not admit this agent's key, or it has too many connections"
                )
            if event in (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL):
                raise ZmqTrouble(f"{self._where}: the CURVE handshake failed")
            if event in (zmq.EVENT_CLOSED, zmq.EVENT_DISCONNECTED):
                raise ZmqTrouble(f"{self._where}: refused")

    def exchange(
        self, method: str, target: str, secret: str, body: Optional[bytes], *, timeout_s: float
    ) -> "tuple[int, bytes]":
        """Send one request. Returns (status, body). Raises ZmqTrouble (ZmqTimeout)."""
        status, answer = self._exchange(method, target, "" if self._sent_secret else secret, body, timeout_s)
        if status == 401 and self._sent_secret:  # the manager no longer knows the secret of this connection
            status, answer = self._exchange(method, target, secret, body, timeout_s)
        self._sent_secret = status != 401
        return status, answer

    def interrupt(self) -> None:
        """End the request in progress and all later ones with ZmqTrouble. Callable from any thread."""
        with self._lock:
            if not self._interrupted:
                self._interrupted = True
                os.write(self._wake_w, b".")

    def close(self) -> None:
        with self._lock:
            self._interrupted = True
            for fd in (self._wake_r, self._wake_w):
                os.close(fd)
        self._socket.disable_monitor()
        self._monitor.close(0)
        self._socket.close(0)

    # -------------------------------------------------------------------------------------------------- inside

    def _exchange(
        self, method: str, target: str, secret: str, body: Optional[bytes], timeout_s: float
    ) -> "tuple[int, bytes]":
        self._number += 1
        header: "dict[str, Any]" = {"id": self._number, "method": method, "path": target}
        if secret:
            header["secret"] = secret
        announced = body is not None and len(body) > ZMQ_INLINE_BYTES
        if announced:
            header["body_bytes"] = len(body or b"")
        self._send(header, None if announced else body)
        status, answer = self._answer(timeout_s)
        if status == 100:
            self._send({"id": self._number}, body)
            status, answer = self._answer(timeout_s)
        return status, answer

    def _send(self, header: "dict[str, Any]", body: Optional[bytes]) -> None:
        message = json.dumps(header, separators=(",", ":")).encode() + b"\n" + (body or b"")
        try:
            self._socket.send(message, self._zmq.NOBLOCK)
        except self._zmq.ZMQError as exc:
            raise ZmqTrouble(f"{self._where}: the connection was closed") from exc

    def _answer(self, timeout_s: float) -> "tuple[int, bytes]":
        """The response to the last request; late responses to earlier ones are skipped."""
        deadline = time.monotonic() + timeout_s
        while True:
            self._wait(deadline, "no answer in time", ZmqTimeout)
            ended = self._event() in (self._zmq.EVENT_DISCONNECTED, self._zmq.EVENT_CLOSED)
            # including data received just before the end
            while self._socket.getsockopt(self._zmq.EVENTS) & self._zmq.POLLIN:
                found = self._read(self._socket.recv(self._zmq.NOBLOCK))
                if found is not None:
                    return found
            if ended:
                raise ZmqTrouble(f"{self._where}: the connection was closed before the answer")

    def _read(self, message: bytes) -> "Optional[tuple[int, bytes]]":
        head, _, body = message.partition(b"\n")
        try:
            header = json.loads(head)
            number, status = header["id"], header["status"]
        except (ValueError, TypeError, KeyError, RecursionError) as exc:
            raise ZmqTrouble(f"{self._where}: the answer cannot be read") from exc
        if number != self._number or not isinstance(status, int):
            return None
        return status, body

    def _wait(self, deadline: float, late: str, error: type = ZmqTrouble) -> None:
        """Wait until data can be read. Raises ZmqTrouble when interrupted, `error` at the deadline."""
        left_s = deadline - time.monotonic()
        if left_s <= 0 or not self._poller.poll(max(1, int(left_s * 1000))):
            raise error(f"{self._where}: {late}")
        if self._interrupted:
            raise ZmqTrouble(f"{self._where}: the agent is ending")

    def _event(self) -> int:
        """The next event of the connection's monitor; 0 if there is none."""
        if not self._monitor.getsockopt(self._zmq.EVENTS) & self._zmq.POLLIN:
            return 0
        return int(_EVENT.unpack(self._monitor.recv_multipart(self._zmq.NOBLOCK)[0][:2])[0])
