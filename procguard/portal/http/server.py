"""The HTTP server: gevent's pywsgi with additions.

Adds TCP_NODELAY (otherwise every keep-alive response waits 40 ms for a delayed acknowledgement), a strict parser for
the head, deadlines without a timer per connection, a connection limit that evicts unidentified clients first, JSON
errors for requests that cannot be parsed, no reading of refused bodies, and a fast path for heartbeats.

Knows sockets and HTTP framing; nothing of routes.
"""

from __future__ import annotations

import _socket
import contextlib
import http
import logging
import secrets
import socket
import ssl
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import unquote
from wsgiref.types import WSGIEnvironment

import gevent
import gevent.pool
from gevent import pywsgi

from procguard.admission.connections import ConnectionHandle, ConnectionLimiter, IdleTimeouts
from procguard.admission.memory import Bodies, SendMemory
from procguard.admission.rate import RecordLimiter
from procguard.admission.turns import work_of
from procguard.agent_api import http_io
from procguard.config.limits import WebLimits
from procguard.portal.http import parser, websocket
from procguard.portal.http.body import Body
from procguard.portal.http.buffer import SocketReader
from procguard.portal.http.fast_path import FastPath
from procguard.portal.http.middleware import SECURITY_HEADERS
from procguard.portal.http.proxies import TrustedProxies

log = logging.getLogger(__name__)

LINGER_S = 1.0  # a refused sender may continue for this time and size before the connection is cut
LINGER_BYTES = 16 * 1024 * 1024
JOINED_BYTES = 64 * 1024  # smaller bodies are sent together with their head
HANDSHAKE_TIMEOUT_S = 10.0
EMPTY_LINE = b"\r\n"  # skipped before a request (RFC 9112, 2.2); ends the head after its fields
TLS_HANDSHAKE = b"\x16"  # the first bytes of a TLS connection
LOG_LINES_AT_ONCE = 50  # about peers that do not send HTTP; then one every two seconds
LOG_LINES_PER_S = 0.5
REQUEST_WORK = 10  # minimum cost of a request in units of admission/turns.py, in addition to its bytes
ACCEPTED_AT_ONCE = 16  # connections accepted before existing ones are served


class _HeadersTimeout(gevent.Timeout):
    pass


class _ThrottledLog:
    """A log for messages that peers can cause. Limits their rate and counts those that are left out."""

    def __init__(self) -> None:
        self._throttled_log = RecordLimiter(LOG_LINES_AT_ONCE, LOG_LINES_PER_S)

    def say(self, text: str, *values: Any) -> None:
        left_out = self._throttled_log.suppressed("", time.monotonic())
        if left_out is None:
            return
        log.info(text + (" (%d more left out)" if left_out else ""), *values, *([left_out] if left_out else ()))


class ConnectionHandler(websocket.UpgradeHandler):
    """One connection. A request that arrives in one piece, with its body, is answered without timers."""

    waits_since = 0.0  # for IdleTimeouts: the time since which the server waits for the peer
    request_version: Any = None
    wsgi_input: Any = None

    _head: parser.Head
    _held_back: list[bytes] | None = None

    def __init__(self, sock: Any, address: Any, server: Server, rfile: Any = None) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._connection_handle: ConnectionHandle = server.connection_handle_of(address)
        self._connection_handle.cut = self._make_room
        self._serving = False
        super().__init__(sock, address, server, rfile or SocketReader(sock, self._connection_handle.spend))

    @property
    def idle_timeout_s(self) -> float:
        """The time for which the peer may be idle."""
        limits: WebLimits = self.server.limits
        return limits.idle_timeout if self._connection_handle.caller else limits.unproven_timeout

    def handle(self) -> None:
        self.server.idle_timeouts.add(self)
        try:
            super().handle()
        except OSError:  # the peer had gone before the refusal was sent
            pass
        finally:
            self.server.idle_timeouts.remove(self)

    def cut(self) -> None:
        self._shut_down(socket.SHUT_RDWR)

    def _make_room(self) -> None:
        """Close this connection, because others need its place. Its greenlet notices the end and reports the reason to
        the peer if possible."""
        self._shut_down(socket.SHUT_RDWR if self._serving else socket.SHUT_RD)

    def _shut_down(self, how: int) -> None:
        try:
            shut_down(self.socket.fileno(), how)
        except (OSError, AttributeError):  # it has ended by itself
            pass

    # ---------------------------------------------------------------------------------------------- one request

    def handle_one_request(self) -> Any:
        """True: another request may follow; None: the connection ends; (status, bytes): it ends with this response."""
        self.waits_since = time.monotonic()
        self.response_length = 0
        try:
            raw = self._read_head()
            if self._connection_handle.evicted:
                return self._raw_error(503, "too_many_connections", "too many connections", "try later, with a token")
            if raw is None:
                return None
            self._head = parser.parse(raw)
        except _HeadersTimeout:
            return self._raw_error(408, "too_slow", "the request's headers did not arrive in time", "send it again")
        except parser.BadHead as exc:
            self._say_and_linger(self._refuse(exc))
            return None
        except OSError:
            return None
        self.waits_since = 0.0
        head = self._head
        self.command, self.path, self.request_version = head.method, head.target, head.version
        self.content_length, self.close_connection = head.content_length, head.close
        self.environ = self.get_environ()
        self.application = self.server.application
        self._serving = True
        self.handle_one_response()
        self._serving = False
        if self.close_connection or self.rfile.closed or self.server.ending:
            return None
        self._forget()
        # if its next request has already arrived, it waits until others were served
        self._connection_handle.spend(REQUEST_WORK)
        return True

    def _forget(self) -> None:
        """Release the data of this request while the connection waits for the next one."""
        del self._head
        self.environ = self.application = self.wsgi_input = self.response_headers = self.status = None

    def _read_head(self) -> bytes | None:
        """Read the head up to the empty line; None if the connection has ended. Raises BadHead, _HeadersTimeout."""
        if not self.rfile.wait():  # idle until a request begins
            return None
        if self.rfile.begins_with(TLS_HANDSHAKE):  # it would never send a complete head
            raise parser.BadHead("this port speaks http, not https")
        head: bytes = self.rfile.head()
        if len(head) > self.server.limits.headers_size:
            raise parser.TooLarge("the head is too long")
        if head and head[0] != EMPTY_LINE[0]:
            return head
        with _HeadersTimeout(self.server.limits.headers_timeout):
            return _without_empty_lines(head) or self._read_lines()

    def _read_lines(self) -> bytes | None:
        """Read a head that arrives in pieces."""
        head: list[bytes] = []
        size = 0
        while True:
            line: bytes = self.rfile.readline(parser.MAX_LINE_BYTES)
            if not line.endswith(b"\n"):
                if len(line) >= parser.MAX_LINE_BYTES:
                    raise parser.TooLarge("a line of the head is too long", in_target=not head)
                return None
            size += len(line)
            if line[-2:] != EMPTY_LINE:
                raise parser.BadHead("a line does not end with CRLF")
            if line != EMPTY_LINE or head:
                head.append(line)
                if line == EMPTY_LINE:
                    return b"".join(head)
            if size > self.server.limits.headers_size or len(head) > parser.MAX_FIELDS + 2:
                raise parser.TooLarge("the head is too long")

    def get_environ(self) -> Any:
        head = self._head
        environ = self.server.get_environ()
        path, _, query = head.target.partition("?")
        address = self.client_address
        environ.update(
            head.fields,
            REQUEST_METHOD=head.method,
            SCRIPT_NAME="",
            PATH_INFO=unquote(path, "latin-1") if "%" in path else path,
            QUERY_STRING=query,
            SERVER_PROTOCOL=head.version,
            REMOTE_ADDR=str(address[0]),
            REMOTE_PORT=str(address[1]),
        )
        length = head.content_length
        asks_to_go_on = None
        if head.fields.get("HTTP_EXPECT", "").lower() == "100-continue" and head.version != "HTTP/1.0":
            asks_to_go_on = self.socket
        self.wsgi_input = Body(self.rfile, length, head.chunked, asks_to_go_on)
        environ["wsgi.input"] = self.wsgi_input
        environ["wsgi.input_terminated"] = True
        environ["procguard.socket"] = self.socket
        self.server.proxies.apply(environ)
        environ[http_io.CONNECTION_HANDLE] = self._connection_handle
        environ[http_io.BODY_IS_HERE] = not head.chunked and (length or 0) <= self.rfile.ready_bytes
        return environ

    def run_application(self) -> None:
        fast_path = self.server.fast_path
        found = fast_path.find(self.command, self.path.partition("?")[0]) if fast_path is not None else None
        if found is None or self.request_version == "HTTP/1.0":
            super().run_application()
            return
        self.headers_sent, self.code = True, 200
        self._sendall(fast_path.answer(found, self.environ))

    # ------------------------------------------------------------------------------------------------- answers

    def _write_with_headers(self, data: bytes) -> None:
        """Send head and body of a small response in one packet: half the system calls, and the peer wakes once."""
        if len(data) > JOINED_BYTES:
            super()._write_with_headers(data)
            return
        self._held_back = []
        try:
            super()._write_with_headers(data)
        finally:
            parts, self._held_back = self._held_back, None
        self._sendall(b"".join(parts))

    def _sendall(self, data: bytes) -> None:
        if self._held_back is not None:
            self._held_back.append(data)
            return
        self.waits_since = time.monotonic()
        sent = self._sent_at_once(data) if len(data) <= JOINED_BYTES else 0
        if sent < len(data):
            super()._sendall(data[sent:])
        self.waits_since = 0.0
        self._connection_handle.spend(work_of(len(data)))

    def _sent_at_once(self, data: bytes) -> int:
        """The number of bytes that the kernel accepted at once: nearly always a whole small response, without the
        system call by which sendall queries the size of the buffer."""
        try:
            return int(self.socket.send(data))
        except OSError:
            return 0  # sendall raises the error

    def handle_one_response(self) -> None:
        super().handle_one_response()
        if getattr(self.wsgi_input, "abandoned", False):
            self.close_connection = True
            self._linger()

    def _linger(self) -> None:
        """Let the peer read the refusal: closing at once with unread bytes would reset the connection."""
        try:
            self.socket.shutdown(socket.SHUT_WR)
            with gevent.Timeout(LINGER_S):
                read_bytes = 0
                while read_bytes < LINGER_BYTES and (data := self.socket.recv(65536)):
                    read_bytes += len(data)
                    self._connection_handle.spend(work_of(len(data)))
        except (OSError, gevent.Timeout):
            pass

    def _say_and_linger(self, answer: tuple[str, bytes]) -> None:
        """Send a response, then read the remaining input for a while; unread input would reset the connection before
        the peer has read the response."""
        try:
            self.socket.sendall(answer[1])
        except OSError:
            return
        self._linger()

    def _refuse(self, problem: parser.BadHead) -> tuple[str, bytes]:
        self.server.throttled_log.say("bad request peer=%s error=%s", self.client_address[0], str(problem)[:200])
        if isinstance(problem, parser.UnknownCoding):
            return self._raw_error(501, "unknown_coding", str(problem), "send the body in chunks, or with its length")
        if not isinstance(problem, parser.TooLarge):
            return self._raw_error(400, "bad_request", f"this is no HTTP request: {problem}", "check the client")
        if problem.in_target:
            return self._raw_error(414, "address_too_long", "the request line is too long", "shorten the address")
        return self._raw_error(431, "headers_too_large", f"the request's headers are too large: {problem}", "send less")

    def _raw_error(self, status: int, code: str, message: str, next_step: str) -> tuple[str, bytes]:
        self.waits_since = time.monotonic()
        return str(status), raw_error(status, code, message, next_step)

    def handle_error(self, t: Any, v: Any, tb: Any) -> None:
        """Ignore the errors with which TLS reports that the peer has gone."""
        if isinstance(v, ssl.SSLError):
            self.close_connection = True
            return
        super().handle_error(t, v, tb)

    def log_error(self, msg: str, *args: Any) -> None:
        said = (msg % args if args else msg)[:500]
        self.server.throttled_log.say("connection error peer=%s %s", self.client_address, said)

    def _log_error(self, t: Any, v: Any, tb: Any) -> None:
        if not issubclass(t, gevent.GreenletExit):
            log.error("request handler failed", exc_info=(t, v, tb))


def raw_error(status: int, code: str, message: str, next_step: str) -> bytes:
    """A complete response to a request that did not reach the application."""
    identifier = secrets.token_hex(8)
    body = http_io.dumps(http_io.error_body(code, message, next_step, identifier))
    headers = [
        ("Content-Type", "application/json"),
        ("Connection", "close"),
        ("Content-Length", str(len(body))),
        ("Date", formatdate(usegmt=True)),  # RFC 9110, 6.6.1: MUST
        ("X-Request-Id", identifier),
        *([("Retry-After", "5")] if status == 503 else []),
        *SECURITY_HEADERS,
    ]
    reason = http.HTTPStatus(status).phrase
    head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    return head.encode("latin-1") + b"\r\n" + body


def _without_empty_lines(head: bytes) -> bytes:
    begin = 0
    while head.startswith(EMPTY_LINE, begin):
        begin += len(EMPTY_LINE)
    return head[begin:]


def shut_down(descriptor: int, how: int) -> None:
    """End a connection that another greenlet waits on, below TLS, which would not notice it."""
    same = _socket.socket(fileno=descriptor)
    try:
        same.shutdown(how)
    finally:
        same.detach()  # the descriptor stays with its owner; a duplicate could fail for lack of descriptors


class Server(pywsgi.WSGIServer):
    """The HTTP server. `websocket_guard`: serves /ws; None if there is no such route. `book`: the limiter of all
    connections, shared by several servers."""

    max_accept = ACCEPTED_AT_ONCE
    ending = False

    def __init__(
        self,
        listener: Any,
        application: Any,
        websocket_guard: websocket.Guard | None = None,
        fast_path: FastPath | None = None,
        limits: WebLimits | None = None,
        book: ConnectionLimiter | None = None,
        bodies: Bodies | None = None,
        proxies: TrustedProxies | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self.websocket_guard = websocket_guard
        self.proxies = proxies or TrustedProxies(())
        self._tls = tls
        self.limits = limits or WebLimits()
        self.book = ConnectionLimiter(self.limits) if book is None else book  # an empty limiter is false, but valid
        self.send_memory = SendMemory(self.limits.websocket_memory)
        self.throttled_log = _ThrottledLog()
        # The newest connection of each peer address: a port may be reused before its previous connection has ended
        # here.
        self._handles: dict[Any, ConnectionHandle] = {}
        self._handles_of: dict[int, ConnectionHandle] = {}  # by socket identity: all open connections
        bodies = bodies or Bodies(self.limits.bodies_in_memory, self.limits.unproven_bodies_in_memory)
        self.idle_timeouts = IdleTimeouts(min(self.limits.idle_timeout, self.limits.unproven_timeout))
        self.fast_path = fast_path
        secured: dict[str, Any] = {"ssl_context": tls} if tls is not None else {}
        super().__init__(
            listener,
            application,
            handler_class=ConnectionHandler,
            log=None,
            error_log=log,
            spawn=gevent.pool.Pool(self.book.most + 16),  # the limiter admits no more
            environ={
                "SERVER_NAME": "procguard",  # the default queries DNS, which may hang
                http_io.LIMITS: self.limits,
                http_io.BODIES: bodies,
            },
            **secured,
        )

    def stop(self, timeout: float | None = None) -> None:
        """Stop the server. Idle connections end at once; requests in progress have `timeout` seconds."""
        self.ending = True
        self.stop_accepting()
        self.idle_timeouts.cut_all()
        super().stop(timeout)

    def connection_handle_of(self, address: Any) -> ConnectionHandle:
        return self._handles[address]

    def do_handle(self, sock: Any, address: Any) -> None:
        descriptor = sock.fileno()

        def cut() -> None:
            with contextlib.suppress(OSError):  # it has ended by itself; the new connection is unrelated
                shut_down(descriptor, socket.SHUT_RDWR)

        connection_handle = self.book.admit(str(address[0]), cut, time.monotonic())
        if connection_handle is None:
            self._refuse(sock)
            return
        self._handles[address] = self._handles_of[id(sock)] = connection_handle
        super().do_handle(sock, address)

    def do_close(self, sock: Any, address: Any) -> None:
        connection_handle = self._handles_of.pop(id(sock))
        if self._handles.get(address) is connection_handle:
            del self._handles[address]
        connection_handle.leave()
        super().do_close(sock, address)

    def wrap_socket_and_handle(self, client_socket: Any, address: Any) -> None:
        """The TLS handshake, with its own deadline and an error message for clients that use plain HTTP."""
        client_socket.settimeout(HANDSHAKE_TIMEOUT_S)
        try:
            if client_socket.recv(1, socket.MSG_PEEK) not in (TLS_HANDSHAKE, b""):
                self._say_https(client_socket)
                return
            assert self._tls is not None
            secured = self._tls.wrap_socket(client_socket, server_side=True)
        except OSError as exc:  # also reached if the peer does not trust the CA
            self.throttled_log.say("no TLS handshake peer=%s error=%s", address[0], str(exc)[:200])
            return
        try:
            secured.settimeout(None)
            self.handle(secured, address)
        finally:
            secured.close()

    def _say_https(self, sock: Any) -> None:
        """Answer a plain HTTP request on the TLS port with one plain HTTP response."""
        address = f"https://localhost:{self.server_port}"
        sock.sendall(raw_error(400, "https_only", "this port speaks https", f"use an https address, e.g. {address}"))
        sock.shutdown(socket.SHUT_WR)
        sock.settimeout(LINGER_S)
        sock.recv(JOINED_BYTES)

    def _refuse(self, sock: Any) -> None:
        """Refuse a connection above the limit without blocking, then close it."""
        plain = getattr(sock, "_sock", sock)
        try:
            plain.send(
                raw_error(503, "too_many_connections", "the manager serves as many as it may", "come back later")
            )
        except OSError:
            pass
        sock.close()

    def get_environ(self) -> WSGIEnvironment:
        return dict(self.environ)
