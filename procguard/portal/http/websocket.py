"""The one module that may import geventwebsocket, and the repair of its faults (unmaintained since 2017).

Only the handshake is used; frames.py encodes and reads frames:
- one writer greenlet per client sends everything, including pongs and close frames, so frames are never interleaved;
- frames wait in a bounded queue: a stalled reader does not delay others, and overflow closes with 4408;
- messages are capped at 1 MiB; close codes are sent and echoed as they are;
- foreign origins and bad keys are refused before the 101;
- silent peers are pinged and closed by `PingReaper`.

Knows connections, not what the messages mean.
"""

from __future__ import annotations

import base64
import binascii
import logging
import socket
import time
from collections import deque
from typing import Any, Protocol
from wsgiref.types import WSGIEnvironment

import gevent
import gevent.event
from gevent.pywsgi import WSGIHandler
from geventwebsocket.handler import WebSocketHandler

from procguard.admission.memory import SendMemory
from procguard.agent_api import http_io
from procguard.config.limits import WebLimits
from procguard.portal.http import frames
from procguard.portal.http.frames import (
    BINARY,
    CLOSE,
    CLOSE_BAD_DATA,
    CLOSE_NORMAL,
    CLOSE_PROTOCOL_ERROR,
    CONTINUATION,
    PING,
    PONG,
    Violation,
)  # fmt: skip

log = logging.getLogger(__name__)

MAX_MESSAGE_BYTES = 1024 * 1024
MAX_QUEUED_BYTES = 8 * 1024 * 1024  # a first frame may be larger: one snapshot always fits
MAX_QUEUED_FRAMES = 4096
MAX_OFFERED_BYTES = 256 * 1024  # above this queue length, frames that may be dropped are dropped
PING_EVERY_S = 15.0
REAP_AFTER_S = 45.0
REST_EVERY = 100  # clients checked per step
CLOSE_GRACE_S = 3.0  # to send the close frame and receive the peer's

CLOSE_GOING_AWAY = 1001
CLOSE_LOST = 1006  # the connection has ended without a close frame
CLOSE_UNAUTHORIZED = 4401
CLOSE_OVERFLOW = 4408
CLOSE_TOO_MANY = 4429


class Refusal(Exception):
    """An upgrade answered with an HTTP error instead of 101."""

    def __init__(
        self, status: str, code: str, message: str, next_step: str, headers: list[tuple[str, str]] | None = None
    ):
        super().__init__(message)
        self.status, self.code, self.message, self.next_step = status, code, message, next_step
        self.headers = headers or []


class Guard(Protocol):
    """The interface of a WebSocket endpoint: its path and its handler."""

    path: str

    def check(self, environ: WSGIEnvironment) -> None:
        """Raise Refusal to answer with an HTTP error before the 101."""
        ...

    def serve(self, connection: WebSocketConnection, environ: WSGIEnvironment) -> None:
        """Use the connection until it is closed. Return at once to ignore everything that the client sends."""
        ...


class WebSocketConnection:
    """One client after the handshake. `receive` is called by one greenlet, everything else by any."""

    def __init__(
        self,
        sock: Any,
        rfile: Any,
        max_queued_bytes: int = MAX_QUEUED_BYTES,
        memory: SendMemory | None = None,
    ) -> None:
        """`memory`: the budget of queued bytes of all connections."""
        self._socket = sock
        self._rfile = rfile
        self._max_queued_bytes = max_queued_bytes
        self._queue: deque[bytes] = deque()
        self._queued_bytes = 0
        self._memory = memory or SendMemory(max_queued_bytes)
        self._memory.join(self)
        # Payload of the newest unanswered ping. One slot, so that a flood of pings cannot fill memory (RFC 6455,
        # 5.5.3).
        self._pong: bytes | None = None
        self._signal = gevent.event.Event()
        self._close_sent = False
        self.close_code: int | None = None  # ours, once decided
        self.peer_close_code: int | None = None
        self.last_received = time.monotonic()
        self.last_pinged = self.last_received
        self._writer = gevent.spawn(self._write_loop)
        self._closer: Any = None

    # ---------------------------------------------------------------------------------------------- sending

    @property
    def open(self) -> bool:
        return self.close_code is None

    def send_frame(self, frame: bytes) -> bool:
        """Queue a frame made by `frames.encode`. False if the client is gone; overflow closes it."""
        if not self.open:
            return False
        full = self._queued_bytes + len(frame) > self._max_queued_bytes or len(self._queue) >= MAX_QUEUED_FRAMES
        if full and self._queue:
            self.overflow()
            return False
        self._enqueue(frame)
        return self.open

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def overflow(self) -> None:
        """Drop the queue of a slow reader and close the connection with a request to reconnect."""
        self._drop_queue()
        self.close(CLOSE_OVERFLOW, "reading too slowly")

    def revoke(self) -> None:
        """The client's right has ended: drop its queue and close."""
        self._drop_queue()
        self.close(CLOSE_UNAUTHORIZED, "log in again")

    def offer_frame(self, frame: bytes) -> bool:
        """As `send_frame`, for frames that may be dropped: False if a slow reader's queue is already long."""
        return self._queued_bytes <= MAX_OFFERED_BYTES and self.send_frame(frame)

    def send_text(self, text: bytes) -> bool:
        return self.send_frame(frames.encode(frames.TEXT, text))

    def ping(self, now: float) -> None:
        self.last_pinged = now
        if self.open:
            self._enqueue(frames.encode(PING, b"pg"))

    def close(self, code: int = CLOSE_NORMAL, reason: str = "") -> None:
        """Send a close frame after the queued frames. The first call determines the code."""
        if not self.open:
            return
        self.close_code = code
        self._enqueue(frames.encode(CLOSE, code.to_bytes(2, "big") + reason.encode()[:123]))
        self._closer = gevent.spawn_later(CLOSE_GRACE_S, self.shut_down)

    def spend(self, work: int) -> None:
        """Account for work done for a message of this client (admission/turns.py); may block to let others run."""
        self._rfile.spend(work)

    def shut_down(self) -> None:
        """Shut the socket down, which ends every greenlet that reads or writes it."""
        if self.close_code is None:
            self.close_code = CLOSE_LOST
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self._signal.set()

    def finish(self) -> None:
        """After the last `receive`: give the writer a moment to empty its queue, then drop the rest."""
        self._signal.set()
        self._writer.join(timeout=CLOSE_GRACE_S if self.close_code != CLOSE_LOST else 0)
        self._writer.kill()
        if self._closer is not None:
            self._closer.kill()
        self._drop_queue()
        self._memory.leave(self)

    def _enqueue(self, frame: bytes) -> None:
        self._queue.append(frame)
        self._queued_bytes += len(frame)
        self._signal.set()
        self._memory.take(frame)

    def _drop_queue(self) -> None:
        dropped = list(self._queue)
        self._queue.clear()
        self._queued_bytes = 0
        for frame in dropped:
            self._memory.release(frame)

    def _write_loop(self) -> None:
        """The only greenlet that writes to this socket."""
        try:
            while True:
                self._signal.wait()
                self._signal.clear()
                while (frame := self._next_frame()) is not None:
                    try:
                        self._socket.sendall(frame)
                    finally:
                        self._memory.release(frame)
                if not self.open:
                    return
        except OSError:
            self.shut_down()

    def _next_frame(self) -> bytes | None:
        if self._pong is not None and self.open:
            pong, self._pong = frames.encode(PONG, self._pong), None
            return pong
        if not self._queue:
            return None
        frame = self._queue.popleft()
        self._queued_bytes -= len(frame)
        return frame

    # --------------------------------------------------------------------------------------------- receiving

    def receive(self) -> str | bytes | None:
        """The next message; None if the connection has ended. Answers pings and close frames itself."""
        try:
            return self._read_message()
        except Violation as violation:
            self.close(violation.code, violation.reason)
        except (OSError, ValueError):
            self.shut_down()  # the connection ended, within a frame or between two
        return None

    def _read_message(self) -> str | bytes | None:
        opcode = 0
        message = bytearray()
        while True:
            frame = frames.read(self._rfile, MAX_MESSAGE_BYTES - len(message))
            self._rfile.spend(1)
            self.last_received = time.monotonic()
            if frame.opcode == CLOSE:
                self._answer_close(frame.payload)
                return None
            if frame.opcode == PING:
                self._pong = frame.payload
                self._signal.set()
                continue
            if frame.opcode == PONG:
                continue
            if (frame.opcode == CONTINUATION) != bool(opcode):
                raise Violation(CLOSE_PROTOCOL_ERROR, "fragments out of order")
            opcode = opcode or frame.opcode
            message += frame.payload
            if frame.fin:
                return self._complete(opcode, bytes(message))

    @staticmethod
    def _complete(opcode: int, message: bytes) -> str | bytes:
        if opcode == BINARY:
            return message
        try:
            return message.decode("utf-8")
        except UnicodeDecodeError as exc:
            raise Violation(CLOSE_BAD_DATA, "text is not UTF-8") from exc

    def _answer_close(self, payload: bytes) -> None:
        self.peer_close_code = int.from_bytes(payload[:2], "big") if len(payload) > 1 else CLOSE_NORMAL
        self.close(frames.closing_code(payload))


class PingReaper:
    """Pings every client and closes those that no longer answer. One greenlet for all."""

    def __init__(self, ping_every_s: float = PING_EVERY_S, reap_after_s: float = REAP_AFTER_S) -> None:
        self._ping_every_s = ping_every_s
        self._reap_after_s = reap_after_s
        self._clients: dict[WebSocketConnection, None] = {}
        self._greenlet: Any = None

    def __len__(self) -> int:
        return len(self._clients)

    def add(self, connection: WebSocketConnection) -> None:
        self._clients[connection] = None

    def remove(self, connection: WebSocketConnection) -> None:
        self._clients.pop(connection, None)

    def start(self) -> None:
        self._greenlet = gevent.spawn(self._loop)

    def stop(self) -> None:
        if self._greenlet is not None:
            self._greenlet.kill()
        for connection in list(self._clients):
            connection.close(CLOSE_GOING_AWAY, "the manager stops")

    def _loop(self) -> None:
        while True:
            gevent.sleep(min(1.0, self._ping_every_s / 3))
            self._ping_or_close()

    def _ping_or_close(self) -> None:
        for number, connection in enumerate(list(self._clients), 1):
            if number % REST_EVERY == 0:
                gevent.sleep(0.001)
            now = time.monotonic()
            if now - connection.last_received > self._reap_after_s:
                log.info("websocket client reaped silent_s=%.0f", now - connection.last_received)
                connection.shut_down()
            elif now - connection.last_pinged >= self._ping_every_s:
                connection.ping(now)


class UpgradeHandler(WebSocketHandler):  # type: ignore[misc]
    """Serves upgrades for the server's `websocket_guard`; other requests are plain HTTP and bypass the library."""

    websocket: Any = None

    def run_application(self) -> None:
        guard: Guard | None = self.server.websocket_guard
        if guard is None or not self._asks_for_websocket(guard):
            WSGIHandler.run_application(self)
            return
        try:
            self._check_handshake()
            guard.check(self.environ)
        except Refusal as refusal:
            self._answer(refusal)
            return
        self.upgrade_connection()
        self.write(b"")  # sends the response 101
        self._serve(guard)

    def _asks_for_websocket(self, guard: Guard) -> bool:
        environ = self.environ
        upgrade = environ.get("HTTP_UPGRADE", "").lower() == "websocket"
        return bool(upgrade and environ["PATH_INFO"] == guard.path and environ["REQUEST_METHOD"] == "GET")

    def _check_handshake(self) -> None:
        environ = self.environ
        tokens = [token.strip().lower() for token in environ.get("HTTP_CONNECTION", "").split(",")]
        if self.request_version != "HTTP/1.1" or "upgrade" not in tokens:
            raise Refusal("400 Bad Request", "bad_handshake", "not a WebSocket handshake", "use a WebSocket client")
        if environ.get("HTTP_SEC_WEBSOCKET_VERSION") != "13":
            raise Refusal(
                "426 Upgrade Required",
                "bad_websocket_version",
                "only WebSocket version 13 is spoken here",
                "use a current client",
                [("Sec-WebSocket-Version", "13"), ("Upgrade", "websocket")],
            )
        try:
            key = base64.b64decode(environ.get("HTTP_SEC_WEBSOCKET_KEY", "").strip(), validate=True)
        except (binascii.Error, ValueError):
            key = b""
        if len(key) != 16:
            raise Refusal(
                "400 Bad Request", "bad_handshake", "Sec-WebSocket-Key is not 16 bytes in base64", "fix the client"
            )

    def _answer(self, refusal: Refusal) -> None:
        identifier = self.environ.get("procguard.request_id", "-")
        body = http_io.dumps(http_io.error_body(refusal.code, refusal.message, refusal.next_step, identifier))
        headers = [("Content-Type", "application/json"), ("Connection", "close"), *refusal.headers]
        self.close_connection = True
        self.result = [body]
        self.start_response(refusal.status, headers)
        self.process_result()

    def upgrade_connection(self) -> None:
        super().upgrade_connection()
        raw = self.websocket
        # The library's __del__ would write its own close frame into the connection.
        raw.closed, raw.stream = True, None
        self.socket.settimeout(None)
        limits: WebLimits = self.server.limits
        self.websocket = WebSocketConnection(self.socket, self.rfile, limits.websocket_queue, self.server.send_memory)
        self.environ["wsgi.websocket"] = self.websocket

    def _serve(self, guard: Guard) -> None:
        connection = self.websocket
        try:
            guard.serve(connection, self.environ)
        except Exception:
            log.exception("websocket client failed")
            connection.close(1011, "the manager failed")
        finally:
            connection.close()
            connection.finish()
            if connection.peer_close_code is None and connection.close_code != CLOSE_LOST:
                self._linger()
            self.environ["wsgi.websocket"] = None
            self.websocket = None

    def _linger(self) -> None:
        """Let the client read the last frame before the connection is closed (server.py)."""

    def log_request(self) -> None:
        """Requests are counted by the middleware and not logged individually."""
