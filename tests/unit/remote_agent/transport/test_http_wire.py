"""The agent's HTTP client: its requests, the responses it accepts, and its limits against slow and flooding peers."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from remote_agent.transport import http as http_wire
from remote_agent.transport.http import Address, HttpAnswer, HttpConnection, PeerClosed, WireTrouble, quote, split_url
from tests.waiting import Stopwatch

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """Answers each request on a connection with the next of `answers`; `requests` records the received bytes."""

    def __init__(self) -> None:
        self.answers: list[bytes] = []
        self.requests: list[bytes] = []
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = split_url(f"http://127.0.0.1:{self.listener.getsockname()[1]}")
        self.wrap: Callable[[socket.socket], socket.socket] = lambda sock: sock
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                plain, _ = self.listener.accept()
                with self.wrap(plain) as sock:
                    self._talk(sock)
            except OSError:
                if self.listener.fileno() < 0:
                    return

    def _talk(self, sock: socket.socket) -> None:
        while True:
            data = b""
            while b"\r\n\r\n" not in data:
                piece = sock.recv(65536)
                if not piece:
                    return
                data += piece
            head, _, body = data.partition(b"\r\n\r\n")
            length = next(
                (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"Content-Length")), 0
            )
            while len(body) < length:
                body += sock.recv(65536)
            self.requests.append(head + b"\r\n\r\n" + body)
            self.may_answer.wait()
            if not self.answers:
                return
            sock.sendall(self.answers.pop(0))


@pytest.fixture
def peer() -> Iterator[Peer]:
    one = Peer()
    yield one
    one.listener.close()


def ask(
    connection: HttpConnection,
    body: bytes | None = None,
    *,
    timeout_s: float = 2.0,
    max_bytes: int = 1000,
    extra_timeout_s: float = 0.0,
) -> tuple[HttpAnswer, bool]:
    return connection.exchange(
        "POST" if body else "GET",
        "/x",
        {"A": "b"},
        body,
        timeout_s=timeout_s,
        max_bytes=max_bytes,
        extra_timeout_s=extra_timeout_s,
    )


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("http://10.0.0.5:5000", ("http", "10.0.0.5", 5000, "10.0.0.5:5000", "")),
        ("http://manager", ("http", "manager", 80, "manager", "")),
        ("https://m.example/pg/", ("https", "m.example", 443, "m.example", "/pg/")),
        ("http://[fe80::1]:81/a?b=c#d", ("http", "fe80::1", 81, "[fe80::1]:81", "/a?b=c")),
        ("HTTP://u:p@h:1?q", ("http", "h", 1, "h:1", "?q")),
    ],
)
def test_an_address_is_taken_apart(url: str, parts: tuple[str, str, int, str, str]) -> None:
    """Schemes, ports, IPv6 and paths, as managers' addresses come."""
    assert split_url(url) == Address(*parts)


@pytest.mark.parametrize(
    "url", ["manager:5000", "ftp://h", "http://", "http://:80", "http://h:99999", "http://h:x", ""]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    """Named in the error, so that the wrong line can be found."""
    with pytest.raises(ValueError, match="not an http address"):
        split_url(url)


def test_quoting_is_that_of_urllib() -> None:
    """Every ASCII character and some beyond."""
    from urllib.parse import quote as reference

    text = "".join(chr(code) for code in range(32, 127)) + "é漢"
    assert quote(text) == reference(text, safe="")


def test_request_goes_out_whole_and_the_connection_is_kept(peer: Peer) -> None:
    """Two requests on one connection with Content-Length and headers."""
    peer.answers = [OK, OK]
    connection = HttpConnection(peer.address, 2.0)
    assert ask(connection) == (HttpAnswer(200, b"ok"), True)
    assert ask(connection, b"body") == (HttpAnswer(200, b"ok"), True)
    connection.close()
    head, _, body = peer.requests[1].partition(b"\r\n\r\n")
    assert body == b"body"
    lines = head.split(b"\r\n")
    assert lines[0] == b"POST /x HTTP/1.1"
    assert b"A: b" in lines and b"Content-Length: 4" in lines and f"Host: {peer.address.netloc}".encode() in lines


def test_large_body_arrives_byte_for_byte(peer: Peer) -> None:
    """More than one packet and more than one send."""
    peer.answers = [OK]
    body = bytes(range(256)) * 8192
    assert ask(HttpConnection(peer.address, 2.0), body)[0].status == 200
    assert peer.requests[0].partition(b"\r\n\r\n")[2] == body


@pytest.mark.parametrize(
    ("raw", "answer", "kept"),
    [
        (b"HTTP/1.1 204 No Content\r\n\r\n", HttpAnswer(204, b""), True),
        (b"HTTP/1.1 100 Continue\r\n\r\n" + OK, HttpAnswer(200, b"ok"), True),
        (b"HTTP/1.1 200 OK\r\nConnection: Close\r\nContent-Length: 1\r\n\r\nx", HttpAnswer(200, b"x"), False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx", HttpAnswer(200, b"x"), False),
        (b"HTTP/1.1 409\nContent-Length: 1\n\nx", HttpAnswer(409, b"x"), True),
        (
            CHUNKED + b"3;a=b\r\nabc\r\n0a\r\n0123456789\r\n0\r\nT: x\r\n\r\n",
            HttpAnswer(200, b"abc0123456789"),
            True,
        ),
    ],
)
def test_answers_of_every_common_shape(peer: Peer, raw: bytes, answer: HttpAnswer, kept: bool) -> None:
    """Without body, interim, closing, HTTP/1.0, bare line feeds, chunked; and the next answer is found."""
    peer.answers = [raw, OK]
    connection = HttpConnection(peer.address, 2.0)
    assert ask(connection) == (answer, kept)
    if kept:
        assert ask(connection) == (HttpAnswer(200, b"ok"), True)


def test_answer_without_a_length_ends_with_the_connection() -> None:
    """As an old proxy sends it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        whole = b"HTTP/1.1 200 OK\r\n\r\nall of it"
        threading.Thread(target=_answer_and_close, args=(listener, whole), daemon=True).start()
        connection = HttpConnection(split_url(f"http://127.0.0.1:{listener.getsockname()[1]}"), 2.0)
        assert ask(connection) == (HttpAnswer(200, b"all of it"), False)


def test_silence_is_bounded(peer: Peer) -> None:
    """An answer of unknown length that does not end."""
    peer.answers = [b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 500]
    connection = HttpConnection(peer.address, 2.0)
    with pytest.raises((TimeoutError, socket.timeout)):  # two classes before Python 3.10
        ask(connection, timeout_s=0.3)


def _answer_and_close(listener: socket.socket, data: bytes) -> None:
    sock, _ = listener.accept()
    with sock:
        sock.recv(65536)
        sock.sendall(data)


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon here\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1_0\r\n\r\n0123456789",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1ff\r\n" + b"x" * 511 + b"\r\n1ff\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 11,
        b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 2000,
    ],
    ids=lambda raw: raw[:60].decode().replace("\r\n", "|"),
)
def test_what_is_no_answer_or_too_long_is_refused(peer: Peer, raw: bytes) -> None:
    """Another server at the address, a broken proxy, a flood: one clear error, without delay."""
    peer.answers = [raw]
    watch = Stopwatch()
    with pytest.raises(WireTrouble):
        ask(HttpConnection(peer.address, 2.0))
    assert watch.seconds < 1.5


def test_connection_closed_half_way_is_distinguished() -> None:
    """The caller may retry."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        half = b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"
        threading.Thread(target=_answer_and_close, args=(listener, half), daemon=True).start()
        with pytest.raises(PeerClosed):
            ask(HttpConnection(split_url(f"http://127.0.0.1:{listener.getsockname()[1]}"), 2.0))


def test_a_peer_that_drips_is_given_up(peer: Peer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Occasional bytes keep each wait short; the whole response has its own limit."""
    monkeypatch.setattr(http_wire, "MAX_EXCHANGE_S", 0.3)

    def drip(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            try:
                for byte in b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000:
                    sock.sendall(bytes([byte]))
                    time.sleep(0.02)
            except OSError:
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=drip, args=(listener,), daemon=True).start()
        watch = Stopwatch()
        connection = HttpConnection(split_url(f"http://127.0.0.1:{listener.getsockname()[1]}"), 2.0)
        with pytest.raises(TimeoutError):
            ask(connection, timeout_s=0.2)
        assert watch.seconds < 2.0
        connection.close()


@pytest.mark.parametrize("part", ["target", "name", "value"])
def test_a_line_break_never_makes_a_second_request(peer: Peer, part: str) -> None:
    """Ids and secrets come from files and user input."""
    evil = "x\r\nY: z"
    headers = {evil: "v"} if part == "name" else {"A": evil} if part == "value" else {}
    connection = HttpConnection(peer.address, 2.0)
    with pytest.raises(ValueError, match="line break"):
        connection.exchange("GET", evil if part == "target" else "/", headers, None, timeout_s=1.0, max_bytes=10)
    assert peer.requests == []


def test_https_checks_the_certificate(peer: Peer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An untrusted certificate is refused; a trusted one works."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "cert.pem")
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", key, "-out", certificate]
    subprocess.run(words, check=True, capture_output=True, timeout=60)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    peer.wrap = lambda sock: context.wrap_socket(sock, server_side=True)
    peer.answers = [OK]
    address = split_url(f"https://localhost:{peer.address.port}")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(ssl.SSLCertVerificationError):
        HttpConnection(address, 5.0)
    monkeypatch.setenv("SSL_CERT_FILE", certificate)
    connection = HttpConnection(address, 5.0)
    assert ask(connection, timeout_s=5.0) == (HttpAnswer(200, b"ok"), True)
    connection.close()


def test_digests_are_those_of_hashlib_and_hmac() -> None:
    """Whichever module computes them: short and long keys, and a comparison that tells right from wrong."""
    import hashlib
    import hmac

    from remote_agent.protocol.digests import hmac_sha256_hex, same, sha256_hex

    for length in (0, 1, 63, 64, 65, 200):
        key, message = b"k" * length, bytes(range(length))
        assert sha256_hex(message) == hashlib.sha256(message).hexdigest()
        assert hmac_sha256_hex(key, message) == hmac.new(key, message, "sha256").hexdigest()
    assert same("abc", "abc") and not same("abc", "abd") and not same("abc", "ab")


def test_a_peer_whose_kernel_has_the_request_gets_more_time(peer: Peer) -> None:
    connection = HttpConnection(peer.address, 2.0)
    peer.answers = [OK, OK]
    peer.may_answer.clear()
    waited = threading.Timer(0.5, peer.may_answer.set)
    waited.start()
    try:
        assert ask(connection, timeout_s=0.1, extra_timeout_s=20.0)[0].body == b"ok"
        assert ask(connection, timeout_s=2.0)[0].body == b"ok"
        assert peer.requests == [peer.requests[0]] * 2  # nothing was sent again
    finally:
        waited.cancel()
        peer.may_answer.set()
        connection.close()


class Unreachable:
    """A socket whose peer acknowledges nothing, as behind a link that has failed."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def getsockopt(self, level: int, option: int, size: int) -> bytes:
        assert (level, option) == (socket.IPPROTO_TCP, socket.TCP_INFO)
        return bytes(24) + (1).to_bytes(4, sys.byteorder)


def test_a_peer_that_acknowledges_nothing_gets_no_more_time(peer: Peer) -> None:
    connection = HttpConnection(peer.address, 2.0)
    peer.may_answer.clear()
    connection.sock = Unreachable(connection.sock)  # type: ignore[assignment]
    try:
        watch = Stopwatch()
        with pytest.raises(TimeoutError):
            ask(connection, timeout_s=0.1, extra_timeout_s=60.0)
        assert watch.seconds < 30
    finally:
        peer.may_answer.set()
        connection.close()
