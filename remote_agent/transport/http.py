"""A small HTTP/1.1 client: one persistent connection, one request at a time, every wait bounded.

Owns the format of requests and the validation of responses; knows neither managers nor secrets. Replaces
http.client, which loads the e-mail parser and OpenSSL (8 MB of the agent's 20). Supports https (tls.py), and responses
with Content-Length, chunked, or up to the end of the connection.
"""

from __future__ import annotations

import socket
import time

from remote_agent.protocol.hints import Any, Optional
from remote_agent.protocol.records import record
from remote_agent.transport.tls import Trust

MAX_HEAD_BYTES = 64 * 1024
MAX_EXCHANGE_S = 600.0  # limits the time of a peer that sends single bytes slowly
HEAD_PIECE_BYTES = 4 * 1024  # most responses fit into it; larger buffers for small responses would fragment the heap
PIECE_BYTES = 64 * 1024
DEFAULT_PORTS = {"http": 80, "https": 443}
_PROOF = b"x-procguard-proof"
_UNACKED_AT, _UNACKED_BYTES = 24, 4  # tcpi_unacked in the kernel's struct tcp_info
_UNRESERVED = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")


class WireTrouble(Exception):
    """The response is not valid HTTP, or not accepted by this client."""


class PeerClosed(WireTrouble):
    """The connection ended before the response was complete."""


@record(frozen=True)
class Address:
    """The parts of a URL. `path`: with the query, without the fragment; `netloc`: as in the Host header."""

    scheme: str
    host: str
    port: int
    netloc: str
    path: str


@record(frozen=True)
class HttpAnswer:
    """A response. `proof`: the header that authenticates it (protocol/session.py)."""

    status: int
    body: bytes
    proof: str = ""


def split_url(url: str) -> Address:
    """Split a URL. Raises ValueError if it is not an http(s) URL."""
    scheme, mark, rest = url.partition("://")
    scheme = scheme.lower()
    if not mark or scheme not in DEFAULT_PORTS:
        raise ValueError(f"not an http address: {url}")
    cut = min((rest.find(char) for char in "/?#" if char in rest), default=len(rest))
    netloc, path = rest[:cut].rpartition("@")[2], rest[cut:]
    host, port = netloc, ""
    if netloc.startswith("["):
        host, _, after = netloc[1:].partition("]")
        port = after[1:] if after.startswith(":") else ""
    elif ":" in netloc:
        host, _, port = netloc.partition(":")
    if not host or (port and not (port.isdigit() and int(port) < 65536)):
        raise ValueError(f"not an http address: {url}")
    return Address(scheme, host, int(port) if port else DEFAULT_PORTS[scheme], netloc, path.partition("#")[0])


def quote(text: str) -> str:
    """Percent-encode one segment of a path or one value of a query."""
    return "".join(char if char in _UNRESERVED else "".join(f"%{byte:02X}" for byte in char.encode()) for char in text)


class HttpConnection:
    """Connects on construction. `trust`: the accepted certificates, for https. Raises OSError (including TimeoutError)
    or ValueError."""

    def __init__(self, address: Address, timeout_s: float, trust: Optional[Trust] = None) -> None:
        # As bytes: a name given as text is encoded by the idna codec, which loads the Unicode database.
        host: Any = address.host.encode() if address.host.isascii() else address.host.encode("idna")
        self._netloc = address.netloc
        self._left = b""  # bytes read beyond the previous response
        self._deadline = 0.0  # monotonic deadline of the exchange in progress
        self.sock: socket.socket = socket.create_connection((host, address.port), timeout_s)
        if address.scheme == "https":
            self.sock = (trust or Trust()).wrap(self.sock, address.host)

    def close(self) -> None:
        self.sock.close()

    def exchange(
        self,
        method: str,
        target: str,
        headers: "dict[str, str]",
        body: Optional[bytes],
        *,
        timeout_s: float,
        max_bytes: int,
        extra_timeout_s: float = 0.0,
    ) -> "tuple[HttpAnswer, bool]":
        """Send one request. Returns the response and whether the connection can be reused.

        `timeout_s` bounds each silence, MAX_EXCHANGE_S the whole. A peer whose kernel has acknowledged the whole
        request has `extra_timeout_s` more for the first byte: it is reachable, but slow. Raises OSError, WireTrouble.
        """
        self._deadline = time.monotonic() + max(MAX_EXCHANGE_S, timeout_s)
        self.sock.settimeout(timeout_s)
        self._send(_head(method, target, self._netloc, headers, body), body or b"")
        if not self._left:
            self._await_first_byte(timeout_s, extra_timeout_s)
        status, version, fields = self._read_head()
        keep = version != b"HTTP/1.0" and fields.get(b"connection", b"").lower() != b"close"
        if method == "HEAD" or status in (204, 304):
            payload = b""
        elif fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            payload = self._read_chunked(max_bytes)
        elif b"content-length" in fields:
            payload = self._read_exactly(_length(fields[b"content-length"], max_bytes))
        else:
            payload, keep = self._read_to_end(max_bytes), False
        return HttpAnswer(status, payload, fields.get(_PROOF, b"").decode("latin-1")), keep

    # -------------------------------------------------------------------------------------------------- inside

    def _send(self, head: bytes, body: bytes) -> None:
        """Send a small body together with the head in one packet; a large one without copying it."""
        if len(body) <= PIECE_BYTES:
            head, body = head + body, b""
        for data in (head, body):
            view = memoryview(data)
            while view:
                view = view[self.sock.send(view[: 4 * PIECE_BYTES]) :]
                self._check_deadline()

    def _await_first_byte(self, timeout_s: float, extra_timeout_s: float) -> None:
        try:
            self._left = self._more()
        except (TimeoutError, socket.timeout):  # two classes before Python 3.10
            if extra_timeout_s <= 0 or not self._is_acknowledged():
                raise
            self.sock.settimeout(extra_timeout_s)
            self._left = self._more()
            self.sock.settimeout(timeout_s)

    def _is_acknowledged(self) -> bool:
        """Whether the peer's kernel has received everything that was sent. False if the kernel does not say."""
        try:
            info = self.sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _UNACKED_AT + _UNACKED_BYTES)
        except (OSError, AttributeError):
            return False
        return len(info) == _UNACKED_AT + _UNACKED_BYTES and not any(info[_UNACKED_AT:])

    def _more(self, max_bytes: int = HEAD_PIECE_BYTES) -> bytes:
        data = self.sock.recv(max_bytes)
        if not data:
            raise PeerClosed("the connection was closed before the answer")
        self._check_deadline()
        return data

    def _check_deadline(self) -> None:
        if time.monotonic() > self._deadline:
            raise TimeoutError("the answer takes too long")

    def _read_head(self) -> "tuple[int, bytes, dict[bytes, bytes]]":
        """(status, version, header fields by lower-case name); interim responses (1xx) are skipped."""
        for _ in range(10):
            line = self._read_line()
            words = line.split(None, 2)
            if len(words) < 2 or not words[0].startswith(b"HTTP/1.") or not words[1].isdigit() or len(words[1]) != 3:
                raise WireTrouble("the answer is not HTTP")
            fields = self._read_fields()
            if not 100 <= int(words[1]) < 200:
                return int(words[1]), words[0], fields
        raise WireTrouble("the answer is not HTTP")

    def _read_fields(self) -> "dict[bytes, bytes]":
        fields: "dict[bytes, bytes]" = {}
        taken = 0
        while True:
            line = self._read_line()
            if not line:
                return fields
            taken += len(line)
            name, mark, value = line.partition(b":")
            if not mark or taken > MAX_HEAD_BYTES:
                raise WireTrouble("the answer's head is not HTTP")
            fields[name.strip().lower()] = value.strip()

    def _read_line(self) -> bytes:
        while b"\n" not in self._left:
            if len(self._left) > MAX_HEAD_BYTES:
                raise WireTrouble("the answer's head is too long")
            self._left += self._more()
        line, _, self._left = self._left.partition(b"\n")
        return line.rstrip(b"\r")

    def _read_exactly(self, length: int) -> bytes:
        parts, have = [self._left[:length]], min(length, len(self._left))
        self._left = self._left[length:]
        while have < length:
            parts.append(self._more(min(length - have, PIECE_BYTES)))
            have += len(parts[-1])
        return b"".join(parts)

    def _read_chunked(self, max_bytes: int) -> bytes:
        parts: "list[bytes]" = []
        have = 0
        while True:
            length = _length(self._read_line().partition(b";")[0], max_bytes - have, base=16)
            if length == 0:
                self._read_fields()  # trailers
                return b"".join(parts)
            parts.append(self._read_exactly(length))
            have += length
            if self._read_line():
                raise WireTrouble("a chunk of the answer is longer than it says")

    def _read_to_end(self, max_bytes: int) -> bytes:
        data, self._left = bytearray(self._left), b""
        while len(data) <= max_bytes:
            piece = self.sock.recv(PIECE_BYTES)
            if not piece:
                return bytes(data)
            data += piece
            self._check_deadline()
        raise WireTrouble("answer too long")


def _head(method: str, target: str, netloc: str, headers: "dict[str, str]", body: Optional[bytes]) -> bytes:
    lines = [f"{method} {target} HTTP/1.1", f"Host: {netloc}", "Accept-Encoding: identity"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    text = "\r\n".join(lines)
    if text.count("\n") != len(lines) - 1 or " " in target:
        raise ValueError("a header or address holds a line break or a space")  # prevents request smuggling
    return (text + "\r\n\r\n").encode("latin-1")


def _length(text: bytes, max_bytes: int, base: int = 10) -> int:
    digits = b"0123456789abcdefABCDEF" if base == 16 else b"0123456789"
    text = text.strip()
    if not text or text.strip(digits):
        raise WireTrouble("the answer's length cannot be read")
    length = int(text[:20], base)
    if length > max_bytes:
        raise WireTrouble("answer too long")
    return length
