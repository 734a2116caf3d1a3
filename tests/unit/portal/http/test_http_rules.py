"""HTTP/1.1 according to RFC 9110 and RFC 9112: a table of requests against a running server (scenario 29).

Each request is followed, in the same bytes, by a plain one: whether that is answered too says where the server believes
the first one ends. Everything is sent twice, as a whole and byte by byte. Sources: the sections of the RFCs, the cases
of h1spec (uNetworking) and of http-garden (narfindustries), as they are known from their descriptions; the requests are
our own. What deviates, and why: docs/security.md.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from tests.rows import each
from tests.server_process import RunningServer

FOLLOWER = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
GOES_ON, ENDS = True, False


def get(*lines: bytes, line: bytes = b"GET /healthz HTTP/1.1", host: bytes = b"Host: localhost") -> bytes:
    fields = [one for one in (host, *lines) if one]
    return b"\r\n".join([line, *fields, b"", b""])


def post(*lines: bytes, body: bytes = b"") -> bytes:
    """To a route that reads its body and refuses it as not an object (bad_request): nothing is changed."""
    return get(*lines, line=b"POST /api/operations/preview HTTP/1.1") + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


REQUEST_LINES = {
    "9112-3 a plain request": (get(), 200, GOES_ON),
    "9112-2.2 one empty line before it is ignored": (b"\r\n" + get(), 200, GOES_ON),
    "9112-2.2 several empty lines before it": (b"\r\n\r\n\r\n" + get(), 200, GOES_ON),
    "9112-2.2 a bare LF ends no line": (get().replace(b"\r\n", b"\n"), 400, ENDS),
    "9112-2.2 a bare LF after the request line": (get().replace(b"\r\n", b"\n", 1), 400, ENDS),
    "9112-2.2 a bare LF ends no head": (b"GET /healthz HTTP/1.1\r\nHost: a\r\n\n", 400, ENDS),
    "9112-2.2 LF CRLF ends no head": (b"GET /healthz HTTP/1.1\r\nHost: a\n\r\n", 400, ENDS),
    "9112-2.2 a bare CR in the request line": (get(line=b"GET /healthz HTTP/1.1\r"), 400, ENDS),
    "9112-2.2 white space before the first field": (get(host=b" Host: localhost"), 400, ENDS),
    "9112-2.3 lower case in the version": (get(line=b"GET /healthz http/1.1"), 400, ENDS),
    "9112-2.3 no minor version": (get(line=b"GET /healthz HTTP/1"), 400, ENDS),
    "9112-2.3 two digits": (get(line=b"GET /healthz HTTP/1.10"), 400, ENDS),
    "9112-2.3 a later minor version is understood": (get(line=b"GET /healthz HTTP/1.7"), 200, GOES_ON),
    "9110-2.5 another major version": (get(line=b"GET /healthz HTTP/2.0"), 400, ENDS),
    "9110-2.5 HTTP/0.9": (b"GET /healthz\r\n\r\n", 400, ENDS),
    "9112-3 two spaces": (get(line=b"GET  /healthz HTTP/1.1"), 400, ENDS),
    "9112-3 a tab for a space": (get(line=b"GET\t/healthz HTTP/1.1"), 400, ENDS),
    "9112-3 a space in the target": (get(line=b"GET /health z HTTP/1.1"), 400, ENDS),
    "9112-3 a space behind it": (get(line=b"GET /healthz HTTP/1.1 "), 400, ENDS),
    "9112-3 a space before it": (get(line=b" GET /healthz HTTP/1.1"), 400, ENDS),
    "9112-3.1 no token for a method": (get(line=b"G(T /healthz HTTP/1.1"), 400, ENDS),
    "9112-3.1 an empty method": (get(line=b" /healthz HTTP/1.1"), 400, ENDS),
    "9112-3 nothing but words": (b"nonsense\r\n\r\n", 400, ENDS),
    "9110-9.1 methods are case-sensitive": (get(line=b"get /healthz HTTP/1.1"), 400, ENDS),
    "9110-9.1 an unknown method": (get(line=b"BREW /healthz HTTP/1.1"), 405, GOES_ON),
    "9110-9.3.8 TRACE shows nothing": (get(line=b"TRACE /healthz HTTP/1.1"), 405, GOES_ON),
    "9112-3.2 a control character in the target": (get(line=b"GET /\x01 HTTP/1.1"), 400, ENDS),
    "9112-3.2 NUL in the target": (get(line=b"GET /healthz\0 HTTP/1.1"), 400, ENDS),
    "9112-3.2 a fragment": (get(line=b"GET /healthz#top HTTP/1.1"), 400, ENDS),
    "9112-3.2.1 no slash": (get(line=b"GET healthz HTTP/1.1"), 400, ENDS),
    "9112-3.2.2 absolute form": (get(line=b"GET http://localhost/healthz HTTP/1.1"), 200, GOES_ON),
    "9112-3.2.2 absolute form, scheme in capitals": (get(line=b"GET HTTP://localhost/healthz HTTP/1.1"), 200, GOES_ON),
    "9112-3.2.2 absolute form without a path": (get(line=b"GET http://localhost?a=1 HTTP/1.1"), 200, GOES_ON),
    "9112-3.2.2 absolute form, user information": (get(line=b"GET http://a@localhost/healthz HTTP/1.1"), 400, ENDS),
    "9112-3.2.2 absolute form, no host": (get(line=b"GET http:///healthz HTTP/1.1"), 400, ENDS),
    "9112-3.2.2 absolute form, another scheme": (get(line=b"GET ftp://localhost/healthz HTTP/1.1"), 400, ENDS),
    "9112-3.2.3 CONNECT": (get(line=b"CONNECT localhost:80 HTTP/1.1"), 400, ENDS),
    "9112-3.2.4 OPTIONS *": (get(line=b"OPTIONS * HTTP/1.1"), 404, GOES_ON),
    "9112-3.2.4 GET *": (get(line=b"GET * HTTP/1.1"), 400, ENDS),
    "9112-3 a target of 8 KiB": (get(line=b"GET /" + b"x" * 9000 + b" HTTP/1.1"), 414, ENDS),
}

FIELDS = {
    "9112-3.2 Host missing": (get(host=b""), 400, ENDS),
    "9112-3.2 Host missing in HTTP/1.0": (get(line=b"GET /healthz HTTP/1.0", host=b""), 200, ENDS),
    "9112-3.2 Host twice": (get(b"Host: localhost"), 400, ENDS),
    "9112-3.2 Host twice, in other letters": (get(b"HOST: evil.example"), 400, ENDS),
    "9112-3.2 Host with a space": (get(host=b"Host: a b"), 400, ENDS),
    "9112-3.2 Host with a path": (get(host=b"Host: localhost/x"), 400, ENDS),
    "9112-3.2 Host with user information": (get(host=b"Host: a@localhost"), 400, ENDS),
    "9112-3.2 two names in Host": (get(host=b"Host: a, b, c d"), 400, ENDS),
    "9112-3.2 a port that is not a number": (get(host=b"Host: localhost:x"), 400, ENDS),
    "9110-4.2.1 Host empty": (get(host=b"Host:"), 400, ENDS),
    "9110-4.2.1 a port alone": (get(host=b"Host: :5000"), 400, ENDS),
    "9112-3.2 Host: IPv6 that does not stop": (get(host=b"Host: ["), 400, ENDS),
    "9112-3.2 Host: IPv6": (get(host=b"Host: [::1]:5000"), 200, GOES_ON),
    "9112-3.2 Host: a port that is empty": (get(host=b"Host: localhost:"), 200, GOES_ON),
    "9110-5.6.3 white space around a value": (get(host=b"Host: \t localhost \t"), 200, GOES_ON),
    "9112-5 no white space around a value": (get(host=b"Host:localhost"), 200, GOES_ON),
    "9112-5.1 a space before the colon": (get(host=b"Host : localhost"), 400, ENDS),
    "9112-5.1 a tab before the colon": (get(b"X-A\t: 1"), 400, ENDS),
    "9112-5.2 a folded line": (get(b"X-A: 1", b" 2"), 400, ENDS),
    "9112-5.2 a line folded by a tab": (get(b"X-A: 1", b"\t2"), 400, ENDS),
    "9112-5 no colon": (get(b"X-A"), 400, ENDS),
    "9112-5 no name": (get(b": 1"), 400, ENDS),
    "9110-5.1 a name that is no token": (get(b"X(A): 1"), 400, ENDS),
    "9110-5.1 a name beyond ASCII": (get(b"X-\xc3\xa9: 1"), 400, ENDS),
    "9110-5.5 NUL in a value": (get(b"X-A: a\0b"), 400, ENDS),
    "9110-5.5 CR in a value": (get(b"X-A: a\rX-B: b"), 400, ENDS),
    "9110-5.5 LF in a value": (get(b"X-A: a\nX-B: b"), 400, ENDS),
    "9110-5.5 LF in a value of a field that is left out": (get(b"X_A: a\nX-B: b"), 400, ENDS),
    "9110-5.5 CR before CRLF": (get(b"X-A: a\r"), 400, ENDS),
    "9110-5.5 another control character": (get(b"X-A: a\x01b"), 400, ENDS),
    "9110-5.5 bytes beyond ASCII": (get(b"X-A: \xc3\xa9"), 200, GOES_ON),
    "9110-5.5 an empty value": (get(b"X-A:"), 200, GOES_ON),
    "9110-5.3 a list in two lines": (get(b"X-A: 1", b"X-A: 2"), 200, GOES_ON),
    "9110-11.6.2 Authorization twice": (get(b"Authorization: Bearer a", b"Authorization: Bearer b"), 400, ENDS),
    "9110-5.4 a line of 8 KiB": (get(b"X-A: " + b"x" * 9000), 431, ENDS),
    "9110-5.4 101 lines": (get(*[b"X-A: 1"] * 101), 431, ENDS),
    "9112-9.3 Connection: close": (get(b"Connection: close"), 200, ENDS),
    "9112-9.3 close among others, in capitals": (get(b"Connection: x, CLOSE"), 200, ENDS),
    "9112-9.3 a word with close in it": (get(b"Connection: not-close"), 200, GOES_ON),
    "9112-9.3 HTTP/1.0": (get(line=b"GET /healthz HTTP/1.0"), 200, ENDS),
    "9112-9.3 HTTP/1.0, keep-alive": (get(b"Connection: keep-alive", line=b"GET /healthz HTTP/1.0"), 200, GOES_ON),
    "9110-7.8 an unknown Upgrade is ignored": (get(b"Upgrade: h2c", b"Connection: Upgrade"), 200, GOES_ON),
    "9110-10.1.1 an unknown expectation": (get(b"Expect: 200-ok"), 200, GOES_ON),
    "9110-13 a condition that is no date": (get(b"If-Modified-Since: never"), 200, GOES_ON),
    "9110-14.2 Range is ignored": (get(b"Range: bytes=0-1"), 200, GOES_ON),
}

LENGTHS = {
    "9112-6.2 a body": (post(b"Content-Length: 2", body=b"[]"), 400, GOES_ON),
    "9112-6.3 no length, no body": (post(), 400, GOES_ON),
    "9112-6.3 of a GET, too": (get(b"Content-Length: 2") + b"[]", 200, GOES_ON),
    "9112-6.3 a length and a coding": (
        post(b"Content-Length: 3", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
        400,
        ENDS,
    ),
    "9112-6.3 a coding and a length": (
        post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"),
        400,
        ENDS,
    ),
    "9112-6.3 two lengths": (post(b"Content-Length: 2", b"Content-Length: 3", body=b"[]"), 400, ENDS),
    "9112-6.3 the same length twice": (post(b"Content-Length: 2", b"Content-Length: 2", body=b"[]"), 400, ENDS),
    "9112-6.3 a list of lengths": (post(b"Content-Length: 2, 2", body=b"[]"), 400, ENDS),
    "9110-8.6 a sign": (post(b"Content-Length: +2", body=b"[]"), 400, ENDS),
    "9110-8.6 below zero": (post(b"Content-Length: -2", body=b"[]"), 400, ENDS),
    "9110-8.6 hexadecimal": (post(b"Content-Length: 0x2", body=b"[]"), 400, ENDS),
    "9110-8.6 a fraction": (post(b"Content-Length: 2.0", body=b"[]"), 400, ENDS),
    "9110-8.6 an underscore": (post(b"Content-Length: 0_2", body=b"[]"), 400, ENDS),
    "9110-8.6 white space within": (post(b"Content-Length: 0 2", body=b"[]"), 400, ENDS),
    "9110-8.6 other digits than ASCII's": (post(b"Content-Length: \xb2", body=b"[]"), 400, ENDS),
    "9110-8.6 empty": (post(b"Content-Length:", body=b"[]"), 400, ENDS),
    "9110-8.6 words": (post(b"Content-Length: two", body=b"[]"), 400, ENDS),
    "9110-8.6 more than any number": (post(b"Content-Length: " + b"9" * 40, body=b"[]"), 400, ENDS),
    "9110-8.6 zeros before it": (post(b"Content-Length: 0002", body=b"[]"), 400, GOES_ON),
    "9110-8.6 too large": (post(b"Content-Length: 9999999999", body=b"[]"), 413, ENDS),
    "9112-6.1 an unknown coding": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501, ENDS),
    "9112-6.1 chunked is not the last": (post(b"Transfer-Encoding: chunked, gzip", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 identity": (post(b"Transfer-Encoding: identity", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 chunked twice": (post(b"Transfer-Encoding: chunked, chunked", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 chunked in two fields": (post(*[b"Transfer-Encoding: chunked"] * 2, body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 a parameter of chunked": (post(b"Transfer-Encoding: chunked;a=1", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 a vertical tab": (post(b"Transfer-Encoding: \x0bchunked", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 a name like it": (post(b"Transfer-Encodin: chunked", body=b""), 400, GOES_ON),
    "9112-6.1 empty": (post(b"Transfer-Encoding:", body=b"0\r\n\r\n"), 400, ENDS),
    "9112-6.1 HTTP/1.0": (chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"), 400, ENDS),
    "9112-6.1 codings are case-insensitive": (
        post(b"Transfer-Encoding: CHUNKED", body=b"2\r\n[]\r\n0\r\n\r\n"),
        400,
        GOES_ON,
    ),
}

CHUNKS = {
    "9112-7.1 one": (b"2\r\n[]\r\n0\r\n\r\n", True),
    "9112-7.1 two": (b"1\r\n[\r\n1\r\n]\r\n0\r\n\r\n", True),
    "9112-7.1 zeros before the size": (b"0002\r\n[]\r\n000\r\n\r\n", True),
    "9112-7.1 hexadecimal in both cases": (b"a\r\n[         \r\nA\r\n         ]\r\n0\r\n\r\n", True),
    "9112-7.1.1 an extension": (b"2;a=b\r\n[]\r\n0;c\r\n\r\n", True),
    "9112-7.1.1 a quoted extension": (b'2;a="b;c"\r\n[]\r\n0\r\n\r\n', True),
    "9112-7.1.2 a trailer": (b"2\r\n[]\r\n0\r\nX-A: 1\r\n\r\n", True),
    "9112-7.1.2 a trailer decides nothing": (b"2\r\n[]\r\n0\r\nContent-Length: 99\r\nConnection: close\r\n\r\n", True),
    "9112-7.1.1 LF in an extension": (b"2;a\nb\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1.1 LF ends an extension": (b"2;a\n[]\r\n0\r\n\r\n", False),
    "9112-7.1.1 CR in an extension": (b"2;a\rb\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1.1 NUL in an extension": (b"2;a\0b\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1.1 an extension of the last chunk with LF": (b"2\r\n[]\r\n0;a\n\r\n", False),
    "9112-7.1.1 an extension without end": (b"2;" + b"x" * 300 + b"\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 no size": (b"\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 no hexadecimal digit": (b"g\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 a sign": (b"+2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 below zero": (b"-2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 0x": (b"0x2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 an underscore": (b"0_2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 a space before the size": (b" 2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 a space behind the size": (b"2 \r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 a tab before an extension": (b"2\t;a\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 more than any size": (b"1" * 17 + b"\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 a size that overflows 64 bits": (b"1" + b"0" * 15 + b"2\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 LF ends a size": (b"2\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 CR ends a size": (b"2\r[]\r\n0\r\n\r\n", False),
    "9112-7.1 LF ends the data": (b"2\r\n[]\n0\r\n\r\n", False),
    "9112-7.1 CR CR ends the data": (b"2\r\n[]\r\r0\r\n\r\n", False),
    "9112-7.1 data longer than its size": (b"2\r\n[]]\r\n0\r\n\r\n", False),
    "9112-7.1 data shorter than its size": (b"3\r\n[]\r\n0\r\n\r\n", False),
    "9112-7.1 nothing behind the data": (b"2\r\n[]0\r\n\r\n", False),
    "9112-7.1 LF ends the body": (b"2\r\n[]\r\n0\r\n\n", False),
    "9112-7.1.2 a trailer without a colon": (b"2\r\n[]\r\n0\r\nX-A\r\n\r\n", False),
    "9112-7.1.2 a trailer without a name": (b"2\r\n[]\r\n0\r\n: 1\r\n\r\n", False),
    "9112-7.1.2 a space before a trailer's colon": (b"2\r\n[]\r\n0\r\nX-A : 1\r\n\r\n", False),
    "9112-7.1.2 a folded trailer": (b"2\r\n[]\r\n0\r\nX-A: 1\r\n 2\r\n\r\n", False),
    "9112-7.1.2 LF ends a trailer": (b"2\r\n[]\r\n0\r\nX-A: 1\n\r\n", False),
    "9112-7.1.2 NUL in a trailer": (b"2\r\n[]\r\n0\r\nX-A: \0\r\n\r\n", False),
    "9112-7.1.2 a hundred trailers": (b"2\r\n[]\r\n0\r\n" + b"X-A: 1\r\n" * 100 + b"\r\n", False),
}

CASES = {**REQUEST_LINES, **FIELDS, **LENGTHS}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    running = RunningServer(tmp_path_factory.mktemp("server"))
    yield running
    running.close()
    assert "Traceback" not in running.log()


def answers(
    server: RunningServer, sent: bytes, pieces: bool, head_only: bool = False
) -> list[tuple[int, dict[str, str], bytes]]:
    """Responses until the server ends the connection: (status, fields, body) of each."""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            if pieces:
                for at in range(len(sent)):
                    connection.send(sent[at : at + 1])
            else:
                connection.sendall(sent)
        except OSError:  # refused in the middle
            pass
        received = b""
        try:
            while data := connection.recv(65536):
                received += data
        except ConnectionResetError:
            pass
    found = []
    while received:
        head, _, received = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(": ", 1) for line in lines)
        status = int(re.fullmatch(r"HTTP/1\.1 (\d{3}) .+", first)[1])  # type: ignore[index]
        length = 0 if head_only and not found else int(fields.get("content-length", 0))
        body, received = received[:length], received[length:]
        found.append((status, fields, body))
    return found


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "bytewise"])
@each("name", CASES)
def test_requests_are_understood_or_refused_as_the_standard_says(
    server: RunningServer, name: str, pieces: bool
) -> None:
    sent, status, goes_on = CASES[name]
    found = answers(server, sent + FOLLOWER, pieces)
    assert [one[0] for one in found] == [status] + [200] * goes_on
    for code, fields, body in found:
        assert "date" in fields  # RFC 9110, 6.6.1
        assert code < 400 or b'"next":' in body
        assert code != 405 or fields["allow"]  # RFC 9110, 15.5.6


@pytest.mark.parametrize("pieces", [False, True], ids=["whole", "bytewise"])
@each("name", CHUNKS)
def test_bodies_in_chunks_end_where_the_standard_says(server: RunningServer, name: str, pieces: bool) -> None:
    body, good = CHUNKS[name]
    found = answers(server, chunked(body) + FOLLOWER, pieces)
    assert [one[0] for one in found] == [400] + [200] * good
    assert (b'"code":"body_incomplete"' in found[0][2]) is not good


def test_a_head_is_answered_without_a_body_and_with_its_length(server: RunningServer) -> None:
    """RFC 9110, 9.3.2 and 8.6."""
    (status, fields, _), follower = answers(server, get(line=b"HEAD / HTTP/1.1") + FOLLOWER, False, head_only=True)
    (_, same, body), _ = answers(server, get(line=b"GET / HTTP/1.1") + FOLLOWER, False)
    assert status == 200 and follower[0] == 200
    assert fields["content-length"] == same["content-length"] == str(len(body))


def test_many_requests_at_once_are_answered_in_their_order(server: RunningServer) -> None:
    """RFC 9112, 9.3.2."""
    sent = get() + get(line=b"GET /nope HTTP/1.1") + chunked(b"2\r\n[]\r\n0\r\n\r\n") + FOLLOWER
    assert [one[0] for one in answers(server, sent, False)] == [200, 404, 400, 200]


@pytest.mark.parametrize(
    ("version", "expected"), [(b"1.1", [100, 400]), (b"1.0", [400])], ids=["HTTP/1.1", "HTTP/1.0 is told nothing"]
)
def test_expect_100_continue_is_answered(server: RunningServer, version: bytes, expected: list[int]) -> None:
    """RFC 9110, 10.1.1: 100 before the body is read, never to HTTP/1.0."""
    asked = post(b"Expect: 100-continue", b"Content-Length: 2", b"Connection: close", body=b"[]")
    assert [one[0] for one in answers(server, asked.replace(b"HTTP/1.1", b"HTTP/" + version), False)] == expected


def test_the_host_of_an_absolute_address_counts_and_not_the_field(server: RunningServer) -> None:
    """RFC 9112, 3.2.2: an absolute target with a foreign name is foreign, whatever Host contains."""
    own, foreign = (b"GET http://%s/api/tokens HTTP/1.1" % name for name in (b"localhost", b"evil.example"))
    assert [answers(server, get(b"Connection: close", line=line), False)[0][0] for line in (own, foreign)] == [200, 401]


def test_refusals_say_what_the_standard_wants_with_them(server: RunningServer) -> None:
    """RFC 9110, 11.6.1 (401: WWW-Authenticate), 15.5.22 (426: Upgrade), RFC 6455, 4.2.2 (426: the version)."""
    [(status, fields, _)] = answers(
        server, get(b"Authorization: Bearer wrong", b"Connection: close", line=b"GET /api/tokens HTTP/1.1"), False
    )
    assert status == 401 and fields["www-authenticate"].startswith("bearer")
    handshake = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 8", b"Sec-WebSocket-Key: x")
    [(status, fields, _)] = answers(server, get(*handshake, line=b"GET /ws HTTP/1.1"), False)
    assert status == 426 and (fields["upgrade"], fields["sec-websocket-version"]) == ("websocket", "13")
